"""Blobs in an S3 bucket, for nodes that share no disk. What is read is kept on this machine for a while."""

import asyncio
import contextlib
import os
import secrets
from collections.abc import Awaitable
from datetime import timedelta
from pathlib import Path
from typing import TypeVar

import obstore
from obstore.exceptions import BaseError
from obstore.store import S3Store

from server.blobs import BlobsUnavailableError

CACHE_BYTES = 2_000_000_000
CONNECT_SECONDS = 5
TRY_SECONDS = 20

T = TypeVar("T")


class BucketBlobs:
    """Blobs in the bucket that `url` names, such as s3://bucket/prefix.

    Endpoint, region and credentials are those of the environment (AWS_ENDPOINT_URL, AWS_REGION, AWS_ACCESS_KEY_ID and
    so on), as every program reads them that speaks S3: a role of the machine works too.
    """

    def __init__(self, url: str, *, cache: Path) -> None:
        self._store = S3Store.from_url(
            url,
            # why: whether the endpoint is reached by plain HTTP is the operator's choice
            client_options={"allow_http": True, "connect_timeout": timedelta(seconds=CONNECT_SECONDS)},
            retry_config={"max_retries": 3, "retry_timeout": timedelta(seconds=TRY_SECONDS)},
        )
        self._cache = cache
        cache.mkdir(parents=True, exist_ok=True)

    async def put(self, blob_id: str, source: Path) -> None:
        """Uploads the file `source`, in parts if it is large."""
        await _spoken(obstore.put_async(self._store, blob_id, source))
        await asyncio.to_thread((self._cache / blob_id).unlink, missing_ok=True)

    async def local(self, blob_id: str) -> Path:
        """A copy in the cache.

        Raises: FileNotFoundError, BlobsUnavailableError.
        """
        kept = self._cache / blob_id
        if not await asyncio.to_thread(kept.is_file):
            await self._fetch(blob_id, kept)
        return kept

    async def read(self, blob_id: str) -> bytes:
        """The bytes of the blob.

        Raises: FileNotFoundError, BlobsUnavailableError.
        """
        return await asyncio.to_thread((await self.local(blob_id)).read_bytes)

    async def delete(self, blob_id: str) -> None:
        """Removes the blob, if it is there; copies of other nodes go when their caches are full."""
        await _spoken(obstore.delete_async(self._store, blob_id))
        await asyncio.to_thread((self._cache / blob_id).unlink, missing_ok=True)

    async def check(self) -> None:
        """Returns if the bucket takes a blob.

        Raises: BlobsUnavailableError.
        """
        await _spoken(obstore.put_async(self._store, f"probe-{os.getpid()}", b"x"))
        await _spoken(obstore.delete_async(self._store, f"probe-{os.getpid()}"))

    async def _fetch(self, blob_id: str, kept: Path) -> None:
        found = await _spoken(obstore.get_async(self._store, blob_id))
        await asyncio.to_thread(_make_room, self._cache, found.meta["size"])
        partial = kept.with_name(f"{blob_id}.{secrets.token_hex(4)}")
        try:
            with await asyncio.to_thread(partial.open, "wb") as file:
                async for part in found.stream():
                    await asyncio.to_thread(file.write, part)
            partial.replace(kept)
        except BaseError as error:
            raise BlobsUnavailableError(str(error)) from error
        finally:
            partial.unlink(missing_ok=True)


async def _spoken(asked: Awaitable[T]) -> T:
    """The answer of the bucket.

    Raises: FileNotFoundError, BlobsUnavailableError.
    """
    try:
        return await asked
    except BaseError as error:
        raise BlobsUnavailableError((str(error).splitlines() or [""])[0]) from error


def _make_room(cache: Path, size: int) -> None:
    """Removes the copies that were made first until `size` more bytes fit."""
    known = []
    for path in cache.iterdir():
        # why: another fetch may have renamed its part or made room meanwhile
        with contextlib.suppress(FileNotFoundError):
            stat = path.stat()
            known.append((stat.st_mtime, stat.st_size, path))
    known.sort()
    used = sum(kept for _, kept, _ in known)
    for _, kept, path in known:
        if used + size <= CACHE_BYTES:
            return
        path.unlink(missing_ok=True)
        used -= kept
