"""What a file was when its sum was last taken, so that a start need not take it again.

A stamp lies beside its file as `.NAME.stamp.json`. A file without one may be whole or not: only its size is known.
"""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Self

from weights.errors import WeightsFileError
from weights.header import Header
from weights.manifest import Manifest, PublishedFile


@dataclass(frozen=True, slots=True)
class Stamp:
    """Size, time of the last change, sum of the header, and sum of the whole."""

    size: int
    mtime_ns: int
    header_sha256: str
    sha256: str

    @classmethod
    def read(cls, path: Path) -> Self | None:
        """The stamp of the file `path`, or None if it has none that can be read."""
        try:
            return cls(**json.loads(place(path).read_text("utf-8")))
        except (OSError, ValueError, TypeError):
            return None


def place(path: Path) -> Path:
    """Where the stamp of the file `path` lies."""
    return path.with_name(f".{path.name}.stamp.json")


def write(path: Path, *, sha256: str) -> None:
    """Stamps the file `path`, whose sum was found to be `sha256`."""
    state = path.stat()
    stamp = Stamp(state.st_size, state.st_mtime_ns, _header_sum(path), sha256)
    place(path).write_text(json.dumps(asdict(stamp), indent=1) + "\n", "utf-8")


def is_current(path: Path, file: PublishedFile) -> bool:
    """Whether the file at `path` is stamped as `file` and has not changed since."""
    stamp = Stamp.read(path)
    if stamp is None or not path.is_file():
        return False
    state = path.stat()
    unchanged = (stamp.size, stamp.mtime_ns) == (state.st_size, state.st_mtime_ns)
    return unchanged and file.size in {None, state.st_size} and file.sha256 in {None, stamp.sha256}


def check(header: Header, *, manifest: Manifest) -> None:
    """Passes a file that is as long as published, and as it was when stamped; takes no sum.

    Raises: WeightsFileError.
    """
    _check(header.path, header.path, size=header.size, header_sha256=header.sha256, manifest=manifest)


def check_plain(path: Path, *, manifest: Manifest) -> None:
    """As `check`, for a file without a header, which belongs to its folder. Raises: WeightsFileError, OSError."""
    _check(path, path.parent, size=path.stat().st_size, header_sha256="", manifest=manifest)


def _check(path: Path, checked: Path, *, size: int, header_sha256: str, manifest: Manifest) -> None:
    """`checked` is what `ltxd weights check` is given to have its sum taken."""
    file, stamp = manifest.of_path(path), Stamp.read(path)
    if file is not None and file.size not in {None, size}:
        raise WeightsFileError(
            path, found=f"{size:,} bytes", expected=f"{file.size:,}, as {file.repository} has published it"
        )
    if stamp is None:
        return
    changed = [
        what
        for what, now, then in (
            ("size", size, stamp.size),
            ("time of the last change", path.stat().st_mtime_ns, stamp.mtime_ns),
            ("header", header_sha256, stamp.header_sha256),
        )
        if now != then
    ]
    if changed:
        raise WeightsFileError(
            path,
            found=f"another {' and '.join(changed)} than when its sum was last taken",
            expected=f"the file with sha256 {stamp.sha256}",
            fix=f"ltxd weights check --sha256 {checked}",
        )


def _header_sum(path: Path) -> str:
    return Header.read(path).sha256 if path.suffix == ".safetensors" else ""
