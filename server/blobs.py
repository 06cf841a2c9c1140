"""Bytes of files, in a local folder or a bucket. A blob is found by the id of its row, never by a chosen name."""

import asyncio
import contextlib
import hashlib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol


class BlobsUnavailableError(OSError):
    """Blobs cannot be read or kept now: the same call may succeed later."""


@dataclass(frozen=True, slots=True)
class Blob:
    """What is known of stored bytes."""

    size: int
    sha256: str


class Blobs(Protocol):
    """Where bytes are kept."""

    async def put(self, blob_id: str, source: Path) -> None:
        """Takes the file `source` over as blob `blob_id`, all or nothing; an older blob of that id is replaced.

        Raises: OSError.
        """

    async def read(self, blob_id: str) -> bytes:
        """The bytes of the blob.

        Raises: FileNotFoundError.
        """

    async def local(self, blob_id: str) -> Path:
        """A file on this machine that holds the bytes of the blob, to be opened at once and never changed.

        Raises: FileNotFoundError.
        """

    async def delete(self, blob_id: str) -> None:
        """Removes the blob, if it is there."""

    async def check(self) -> None:
        """Returns if blobs can be kept now.

        Raises: OSError.
        """


class LocalBlobs:
    """Blobs in `root`, which must lie on the same file system as the files that are put."""

    def __init__(self, root: Path) -> None:
        self._root = root
        # why: whoever could list it could read every file
        root.mkdir(parents=True, exist_ok=True, mode=0o700)

    async def put(self, blob_id: str, source: Path) -> None:
        """Moves the file `source`.

        Raises: OSError.
        """
        await asyncio.to_thread(self._put, blob_id, source)

    async def local(self, blob_id: str) -> Path:
        """The blob itself.

        Raises: FileNotFoundError.
        """
        path = self._path(blob_id)
        if not await asyncio.to_thread(path.is_file):
            raise FileNotFoundError(f"there is no blob {blob_id}")
        return path

    async def read(self, blob_id: str) -> bytes:
        """The bytes of the blob.

        Raises: FileNotFoundError.
        """
        return await asyncio.to_thread(self._path(blob_id).read_bytes)

    async def delete(self, blob_id: str) -> None:
        """Removes the blob, if it is there."""
        await asyncio.to_thread(self._path(blob_id).unlink, missing_ok=True)

    async def check(self) -> None:
        """Returns if the folder takes a file.

        Raises: OSError.
        """
        await asyncio.to_thread(self._check)

    def _path(self, blob_id: str) -> Path:
        return self._root / blob_id[:2] / blob_id

    def _check(self) -> None:
        probe = self._root / f"probe-{os.getpid()}"
        try:
            probe.write_bytes(b"x")
        finally:
            with contextlib.suppress(OSError):
                probe.unlink(missing_ok=True)

    def _put(self, blob_id: str, source: Path) -> None:
        with source.open("rb") as stream:
            os.fsync(stream.fileno())
        target = self._path(blob_id)
        target.parent.mkdir(exist_ok=True)
        source.replace(target)
        folder = os.open(target.parent, os.O_DIRECTORY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def digest(source: Path) -> Blob:
    """What is known of the file `source`."""
    with source.open("rb") as stream:
        sha256 = hashlib.file_digest(stream, "sha256").hexdigest()
    return Blob(source.stat().st_size, sha256)
