"""The real files as data: names, repositories, revisions, sizes and sums, read from manifest.toml beside this."""

import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path, PurePosixPath


@dataclass(frozen=True, slots=True)
class PublishedFile:
    """One file of a repository on the hub."""

    name: str
    """Its path below the models folder, by which recipes call it."""
    repository: str
    revision: str
    """The commit, so that what is there cannot change."""
    path: str
    """In the repository."""
    size: int | None
    sha256: str | None
    """Size and sum; None where only the hub knows them."""
    gated: bool
    """Whether its makers ask to accept their terms before it can be fetched."""
    terms: str
    """The page where they do."""


@dataclass(frozen=True, slots=True)
class Manifest:
    """Every file that can be fetched."""

    files: tuple[PublishedFile, ...]

    def find(self, name: str) -> list[PublishedFile]:
        """The file called `name`, or all files of the folder called so; none if there is no such one."""
        return [file for file in self.files if file.name == name or file.name.startswith(f"{name}/")]

    def of_path(self, path: Path) -> PublishedFile | None:
        """The file that lies, or would lie, at `path`, told by the end of it."""
        tail = path.absolute().parts
        for file in self.files:
            parts = PurePosixPath(file.name).parts
            if tail[-len(parts) :] == parts:
                return file
        return None


def load_manifest() -> Manifest:
    """The one that is shipped."""
    return parse(resources.files("weights").joinpath("manifest.toml").read_text("utf-8"))


def parse(text: str) -> Manifest:
    """A manifest from TOML. Raises: KeyError, tomllib.TOMLDecodeError."""
    return Manifest(
        tuple(
            PublishedFile(
                name=str(PurePosixPath(repository["folder"], file["path"])),
                repository=repository["id"],
                revision=repository["revision"],
                path=file["path"],
                size=file.get("size"),
                sha256=file.get("sha256"),
                gated=repository["gated"],
                terms=repository["terms"],
            )
            for repository in tomllib.loads(text)["repositories"]
            for file in repository["files"]
        )
    )


def total(files: Sequence[PublishedFile]) -> int:
    """Bytes of `files`, as far as they are known."""
    return sum(file.size or 0 for file in files)
