"""Files that callers upload, whole or in parts, streamed to the disk and then handed to the blobs.

A part is a blob of its own until the upload is completed, so that every node can complete what another one began.
"""

import asyncio
import hashlib
import mimetypes
import re
import secrets
import shutil
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import asdict
from pathlib import Path
from typing import BinaryIO

from sqlalchemy import Connection, delete, func, insert, select
from starlette.requests import ClientDisconnect

from server.blobs import Blob, Blobs, digest
from server.disk import free_bytes
from server.errors import FalError, plain
from server.records import StoredFile
from server.settings import Settings
from server.store import Store
from server.tables import PARTS
from server.tokens import TICKET_SECONDS, Slot

WRITE_BYTES = 1 << 18
MAX_NAME = 100
MAX_PART = 10_000
ANY_TYPE = "application/octet-stream"


def new_slot(name: str, content_type: str, *, key_id: str | None, keep_for: float | None) -> Slot:
    """A slot for a new file, whose name and type are made safe to stand in an address and a header."""
    kind = content_type.partition(";")[0].strip().lower()
    if len(kind) > MAX_NAME or not re.fullmatch(r"[a-z0-9][a-z0-9.+-]*/[a-z0-9][a-z0-9.+-]*", kind):
        kind = ANY_TYPE
    last = re.split(r"[/\\]", name)[-1]
    safe = re.sub(r"[^A-Za-z0-9._-]", "_", last).lstrip(".")[-MAX_NAME:]
    if not safe.strip("_"):
        safe = f"upload{mimetypes.guess_extension(kind) or '.bin'}"
    return Slot(secrets.token_hex(16), safe, kind, key_id, keep_for)


class Uploads:
    """Takes uploads in. Everything passes through a folder of its own, which is emptied at every start."""

    def __init__(self, settings: Settings, store: Store, blobs: Blobs) -> None:
        self._settings = settings
        self._store = store
        self._blobs = blobs
        self._folder = settings.data / "incoming"
        shutil.rmtree(self._folder, ignore_errors=True)
        self._folder.mkdir(parents=True)

    async def put(self, slot: Slot, body: AsyncIterator[bytes]) -> str:
        """Fills `slot` with `body`; gives the SHA-256. The same bytes once more are welcome: clients repeat.

        Raises: FalError.
        """
        async with self._received(body, limit=self._settings.max_upload_bytes) as path:
            return await self._keep(slot, path)

    async def put_part(self, slot: Slot, number: int, body: AsyncIterator[bytes]) -> str:
        """Takes in one part of a file, or takes it again; gives its SHA-256.

        Raises: FalError.
        """
        if not 1 <= number <= MAX_PART:
            raise FalError(plain("bad_request", f"The part is number {number}; 1 to {MAX_PART} are allowed"))
        limit = self._settings.max_upload_bytes
        others = select(func.coalesce(func.sum(PARTS.c.size), 0)).where(
            PARTS.c.file_id == slot.file_id, PARTS.c.number != number
        )
        taken = await self._store.read(lambda connection: connection.scalar(others) or 0)
        async with self._received(body, limit=limit - taken) as path:
            blob = await asyncio.to_thread(digest, path)
            row = {"file_id": slot.file_id, "number": number, "created": time.time(), **asdict(blob)}

            def work(connection: Connection) -> None:
                if connection.dialect.name == "postgresql":
                    # why: two parts of a file that are summed at once would each find room for itself
                    connection.execute(select(func.pg_advisory_xact_lock(func.hashtext(slot.file_id))))
                # why: other parts may have come in while this one did
                if (connection.scalar(others) or 0) + blob.size > limit:
                    raise _too_large(limit)
                connection.execute(delete(PARTS).where(PARTS.c.file_id == slot.file_id, PARTS.c.number == number))
                connection.execute(insert(PARTS), row)

            # why: the row first, so that the sweeper finds whatever was left behind
            await self._store.write(work)
            await self._blobs.put(_part_id(slot.file_id, number), path)
        return blob.sha256

    async def complete(self, slot: Slot, parts: Sequence[tuple[int, str]]) -> None:
        """Makes the file of `parts`, each a number and a SHA-256, in any order. Once made, it stays as it is.

        Raises: FalError.
        """
        query = select(PARTS.c.number, PARTS.c.sha256).where(PARTS.c.file_id == slot.file_id)
        rows = await self._store.read(lambda connection: connection.execute(query).all())
        # why: parts are forgotten once the file is there; looked for in this order, one or the other is found
        if await self._is_there(slot.file_id):
            return
        known = {row.number: row.sha256 for row in rows}
        wanted = dict(parts)
        wrong = sorted(number for number, sha256 in wanted.items() if known.get(number) != sha256)
        if not wanted or wrong:
            what = f"parts {wrong[:10]} are not as they were uploaded" if wanted else "no part is named"
            raise FalError(plain("bad_request", f"The upload cannot be completed: {what}"))
        async with self._scratch() as path:
            for number in sorted(wanted):
                try:
                    part = await self._blobs.local(_part_id(slot.file_id, number))
                except FileNotFoundError as error:
                    # why: another completion may have made the file meanwhile
                    if await self._is_there(slot.file_id):
                        return
                    # why: the node that took it in was killed before its bytes were kept
                    message = f"The upload cannot be completed: part {number} has to be sent again"
                    raise FalError(plain("bad_request", message)) from error
                size = await asyncio.to_thread(_append, part, path)
                if size > self._settings.max_upload_bytes:
                    raise _too_large(self._settings.max_upload_bytes)
            await self._keep(slot, path)
        await self._forget(slot.file_id)

    async def sweep(self) -> None:
        """Forgets the parts of uploads that were never completed."""
        stale = select(PARTS.c.file_id).where(PARTS.c.created < time.time() - TICKET_SECONDS).distinct()
        for file_id in await self._store.read(lambda connection: connection.scalars(stale).all()):
            await self._forget(file_id)

    async def _keep(self, slot: Slot, path: Path) -> str:
        """Makes `path` the bytes of `slot`; gives their SHA-256.

        Raises: FalError if it has others.
        """
        blob = await asyncio.to_thread(digest, path)
        known = await self._store.file(slot.file_id)
        if known is None:
            await self._store.add_file(self._file(slot, blob))
        elif known.sha256 != blob.sha256:
            raise FalError(plain("bad_request", "This file was uploaded already, with other content"))
        await self._blobs.put(slot.file_id, path)
        return blob.sha256

    async def _is_there(self, file_id: str) -> bool:
        """Whether the file can be read: its row alone was written before its bytes."""
        if await self._store.file(file_id) is None:
            return False
        try:
            await self._blobs.local(file_id)
        except FileNotFoundError:
            return False
        return True

    def _file(self, slot: Slot, blob: Blob) -> StoredFile:
        now = time.time()
        return StoredFile(
            id=slot.file_id,
            job_id=None,
            name=slot.name,
            content_type=slot.content_type,
            size=blob.size,
            sha256=blob.sha256,
            created=now,
            expires=now + (slot.keep_for or self._settings.upload_retention),
            key_id=slot.key_id,
        )

    async def _forget(self, file_id: str) -> None:
        parts = PARTS.c.file_id == file_id
        for number in await self._store.read(lambda connection: connection.scalars(_NUMBERS.where(parts)).all()):
            await self._blobs.delete(_part_id(file_id, number))
        await self._store.write(lambda connection: connection.execute(delete(PARTS).where(parts)))

    @asynccontextmanager
    async def _scratch(self) -> AsyncIterator[Path]:
        """A name for a file of this upload alone.

        Raises: FalError if the disk is nearly full.
        """
        if await asyncio.to_thread(free_bytes, self._folder) < self._settings.min_free_bytes:
            raise FalError(plain("storage_full", "The server's disk is nearly full: it takes no upload now"))
        path = self._folder / secrets.token_hex(16)
        try:
            yield path
        finally:
            await asyncio.to_thread(path.unlink, missing_ok=True)

    @asynccontextmanager
    async def _received(self, body: AsyncIterator[bytes], *, limit: int) -> AsyncIterator[Path]:
        """A file that holds `body`.

        Raises: FalError.
        """
        async with self._scratch() as path:
            with await asyncio.to_thread(path.open, "xb") as file:
                await _write(file, body, limit=limit)
            yield path


async def _write(file: BinaryIO, body: AsyncIterator[bytes], *, limit: int) -> None:
    """Writes `body` in pieces, off the event loop: a disk may be slow, and the whole of it need not fit in memory."""
    size, piece = 0, bytearray()
    try:
        async for chunk in body:
            size += len(chunk)
            if size > limit:
                raise _too_large(limit)
            piece += chunk
            if len(piece) >= WRITE_BYTES:
                await asyncio.to_thread(file.write, piece)
                piece = bytearray()
    except ClientDisconnect as error:
        raise FalError(plain("client_disconnected", "The client went away")) from error
    await asyncio.to_thread(file.write, piece)


def _too_large(limit: int) -> FalError:
    return FalError(plain("body_too_large", f"The upload has more than the {limit} bytes allowed"))


def _append(source: Path, target: Path) -> int:
    """The size that `target` then has."""
    with source.open("rb") as part, target.open("ab") as out:
        shutil.copyfileobj(part, out, WRITE_BYTES)
        return out.tell()


_NUMBERS = select(PARTS.c.number)


def _part_id(file_id: str, number: int) -> str:
    return hashlib.sha256(f"part:{file_id}:{number}".encode()).hexdigest()[:32]
