"""Fetching the real files from the hub: resumed where it broke off, held against the manifest before it counts."""

import hashlib
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import httpx2
from huggingface_hub import get_hf_file_metadata, get_token, hf_hub_url
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.file_download import http_get

from weights import stamp
from weights.errors import FetchError
from weights.manifest import PublishedFile
from weights.sums import sum_of

PARTS: Final = ".parts"
"""Folder, below that of the models, for what is not whole yet."""
_SPARE: Final = 1_000_000_000
"""Bytes to be left free on the disk."""
_TOKEN_PAGE: Final = "https://huggingface.co/settings/tokens"  # noqa: S105 a page, not a token
_GIT_SUM: Final = 40
"""Letters of the sum by which the hub knows small files."""


@dataclass(frozen=True, slots=True)
class Job:
    """A file to fetch and where to."""

    file: PublishedFile
    path: Path
    part: Path
    """The beginning of it that is there already, if any."""

    @property
    def missing(self) -> int:
        """Bytes still to come, as far as known."""
        return max(0, (self.file.size or 0) - _size(self.part))


def fetch(
    files: Sequence[PublishedFile], models: Path, *, endpoint: str | None = None, say: Callable[[str], object]
) -> None:
    """Brings `files` into the folder `models`. Those that are there and whole are not fetched again.

    The token for gated files is found by huggingface_hub: HF_TOKEN, or what `hf auth login` has stored. `endpoint` is
    the hub's address if not its own. `say` takes lines for the user.
    Raises: FetchError.
    """
    jobs = []
    for file in files:
        path = models / file.name
        if _is_whole(file, path, say=say):
            say(f"{file.name}: is there and whole")
        else:
            jobs.append(Job(file, path, models / PARTS / f"{file.name}.{file.revision[:12]}"))
    _make_room(jobs, models, say=say)
    for job in jobs:
        _fetch(job, endpoint=endpoint)
        say(f"{job.file.name}: fetched and whole")
    for folder in sorted((models / PARTS).rglob("*"), reverse=True):
        if folder.is_dir() and not any(folder.iterdir()):
            folder.rmdir()


def _is_whole(file: PublishedFile, path: Path, *, say: Callable[[str], object]) -> bool:
    """Whether `path` holds `file`, by its stamp, or by its sum if it has none."""
    if stamp.is_current(path, file):
        return True
    if file.sha256 is None or _size(path) != file.size:
        return False
    found = sum_of(path)
    if found == file.sha256:
        stamp.write(path, sha256=found)
        return True
    say(f"{file.name}: found sha256 {found}, expected {file.sha256}; it is fetched anew")
    return False


def _make_room(jobs: Sequence[Job], models: Path, *, say: Callable[[str], object]) -> None:
    if not jobs:
        return
    models.mkdir(parents=True, exist_ok=True)
    needed, free = sum(job.missing for job in jobs), shutil.disk_usage(models).free
    say(f"{len(jobs)} files to fetch, {needed / 1e9:.1f} GB; {free / 1e9:.1f} GB free in {models}")
    if needed + _SPARE > free:
        raise FetchError(
            f"{models}: found {free:,} bytes free; expected at least {needed + _SPARE:,} for {len(jobs)} files. "
            "To mend it: free some, or name a folder on another disk with --data"
        )


def _fetch(job: Job, *, endpoint: str | None) -> None:
    """Fetches one file, from where its part ends, and puts it in its place when it is whole."""
    file = job.file
    token = get_token()
    url = hf_hub_url(file.repository, file.path, revision=file.revision, endpoint=endpoint)
    job.part.parent.mkdir(parents=True, exist_ok=True)
    try:
        about = get_hf_file_metadata(url, endpoint=endpoint, token=token)
        size = file.size if file.size is not None else about.size
        if about.size != size:
            raise FetchError(f"{file.name}: found {about.size} bytes at {url}; expected {size}")
        if size is not None and _size(job.part) > size:
            job.part.unlink()
        with job.part.open("ab") as part:
            http_get(
                url,
                part,
                resume_size=part.tell(),
                headers={"authorization": f"Bearer {token}"} if token else {},
                expected_size=size,
                displayed_filename=file.name,
            )
    except GatedRepoError as error:
        raise FetchError(_gated(file)) from error
    except (RepositoryNotFoundError, RevisionNotFoundError, EntryNotFoundError) as error:
        if file.gated and isinstance(error, RepositoryNotFoundError):
            raise FetchError(_gated(file)) from error
        raise FetchError(f"{file.name}: {url} is not there: {_first_line(error)}") from error
    except OfflineModeIsEnabled as error:
        raise FetchError(f"{file.name}: HF_HUB_OFFLINE is set. To mend it: unset it and fetch again") from error
    except (HfHubHTTPError, httpx2.HTTPError, OSError) as error:
        raise FetchError(
            f"{file.name}: broke off after {_size(job.part):,} bytes: {_first_line(error)}. "
            "To mend it: run the same command again, it goes on from there"
        ) from error
    found = sum_of(job.part)
    _hold_against(job, found, etag=about.etag or "")
    job.path.parent.mkdir(parents=True, exist_ok=True)
    job.part.replace(job.path)
    stamp.write(job.path, sha256=found)


def _hold_against(job: Job, found: str, *, etag: str) -> None:
    """Raises FetchError, and throws the part away, if its sum is not the one of the manifest, or else the hub's."""
    expected = job.file.sha256 or etag
    if len(expected) == _GIT_SUM:
        content = job.part.read_bytes()
        found = hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()
    if found != expected:
        job.part.unlink()
        raise FetchError(
            f"{job.file.name}: found a file with the sum {found}; expected {expected}. It has been thrown away. "
            "To mend it: run the same command again"
        )


def _gated(file: PublishedFile) -> str:
    return (
        f"{file.name}: {file.repository} gives it only to those who have accepted its terms. To mend it: log in at "
        f"{file.terms} and accept them, make a token with read access at {_TOKEN_PAGE}, and run the same command "
        "again with the token in HF_TOKEN, or after `hf auth login`"
    )


def _size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else 0


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
