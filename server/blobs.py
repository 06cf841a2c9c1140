"""Bytes of files, in one local folder. A blob is found by the id of its row, never by a name that a caller chose."""

import asyncio
import hashlib
import os
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Blob:
    """What is known of stored bytes."""

    size: int
    sha256: str


class LocalBlobs:
    """Blobs in `root`, which must lie on the same file system as the files that are put."""

    def __init__(self, root: Path) -> None:
        self._root = root
        root.mkdir(parents=True, exist_ok=True)

    async def put(self, blob_id: str, source: Path) -> Blob:
        """Takes the file `source` over as blob `blob_id`, all or nothing."""
        return await asyncio.to_thread(self._put, blob_id, source)

    def path(self, blob_id: str) -> Path:
        """Where the blob lies."""
        return self._root / blob_id[:2] / blob_id

    async def read(self, blob_id: str) -> bytes:
        """The bytes of the blob.

        Raises: FileNotFoundError.
        """
        return await asyncio.to_thread(self.path(blob_id).read_bytes)

    async def delete(self, blob_id: str) -> None:
        """Removes the blob, if it is there."""
        await asyncio.to_thread(self.path(blob_id).unlink, missing_ok=True)

    def _put(self, blob_id: str, source: Path) -> Blob:
        with source.open("rb") as stream:
            digest = hashlib.file_digest(stream, "sha256").hexdigest()
            os.fsync(stream.fileno())
        target = self.path(blob_id)
        target.parent.mkdir(exist_ok=True)
        source.replace(target)
        folder = os.open(target.parent, os.O_DIRECTORY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
        return Blob(target.stat().st_size, digest)
