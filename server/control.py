"""The socket by which `ltxd keys` and `ltxd secrets` speak to a running server: in the data folder, its owner's alone.

One line of JSON asks, one answers. Without a running server the command does the same itself, under the folder's lock.
"""

import asyncio
import contextlib
import json
import logging
import os
import socket
from collections.abc import AsyncIterator, Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from server.certificates import secrets_in
from server.database import open_database
from server.keys import Keys
from server.settings import Settings
from server.shared import NAMES, Secrets

NAME = "control.sock"
MAX_LINE = 65_536

log = logging.getLogger("ltxd.control")


class NoServerError(Exception):
    """No server answers on the socket."""


async def perform(keys: Keys, secrets: Secrets, asked: Mapping[str, Any]) -> dict[str, Any]:
    """Does what is asked of the keys and secrets."""
    match asked:
        case {
            "do": "create",
            "name": str(name),
            "max_in_flight": int() | None as limit,
            "private_webhooks": bool(may),
        }:
            key, credentials = await keys.create(name, max_in_flight=limit, private_webhooks=may)
            return {"key": asdict(key), "credentials": credentials}
        case {"do": "list"}:
            await keys.load()
            return {"keys": [asdict(key) for key in keys.all]}
        case {"do": "revoke", "id": str(key_id)}:
            return {"revoked": await keys.revoke(key_id)}
        case {"do": "rotate", "name": str(name), "at_once": bool(at_once)} if name in NAMES:
            return {"since": await secrets.rotate(name, at_once=at_once)}
        case _:
            return {"error": "not understood: the server is of another version"}


@contextlib.asynccontextmanager
async def listening(data: Path, keys: Keys, secrets: Secrets) -> AsyncIterator[None]:
    """Answers on the socket in the folder `data`, which this process must own."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            asked = json.loads(await reader.readline())
            said = await perform(keys, secrets, asked)
        except Exception as error:
            log.exception("a request on the control socket failed")
            said = {"error": f"it failed: {type(error).__name__}"}
        writer.write(json.dumps(said).encode() + b"\n")
        with contextlib.suppress(ConnectionError):
            await writer.drain()
        writer.close()

    with _socket_path(data) as path, _bound(path) as listener:
        server = await asyncio.start_unix_server(answer, sock=listener, limit=MAX_LINE)
        try:
            yield
        finally:
            server.close()


async def ask(data: Path, asked: Mapping[str, Any]) -> dict[str, Any]:
    """What the server that runs on the folder `data` answers.

    Raises: NoServerError.
    """
    try:
        with _socket_path(data) as path:
            reader, writer = await asyncio.open_unix_connection(path, limit=MAX_LINE * 100)
    except (FileNotFoundError, ConnectionRefusedError) as error:
        raise NoServerError from error
    writer.write(json.dumps(asked).encode() + b"\n")
    line = await reader.readline()
    writer.close()
    answer: dict[str, Any] = json.loads(line or b'{"error": "the server hung up"}')
    return answer


async def ask_or_do(settings: Settings, asked: Mapping[str, Any]) -> dict[str, Any]:
    """What the running server answers or, if none runs, what comes of doing it here.

    Raises: StoreError, OSError.
    """
    settings.data.mkdir(parents=True, exist_ok=True, mode=0o700)
    try:
        return await ask(settings.data, asked)
    except NoServerError:
        database = open_database(settings.data, url=settings.database_url)
    try:
        secrets = secrets_in(database, settings.data)
        await secrets.load()
        return await perform(Keys(database), secrets, asked)
    finally:
        await database.close()


@contextlib.contextmanager
def _bound(path: str) -> Iterator[socket.socket]:
    file = Path(path)
    # why: what a server that was killed left
    file.unlink(missing_ok=True)
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(path)
        try:
            # why: nobody can connect before `listen`, and by then the socket is its owner's alone
            file.chmod(0o600)
            yield listener
        finally:
            file.unlink(missing_ok=True)


@contextlib.contextmanager
def _socket_path(data: Path) -> Iterator[str]:
    # why: the address of a socket has room for 107 bytes, and a folder's path may be longer
    folder = os.open(data, os.O_RDONLY | os.O_DIRECTORY)
    try:
        yield f"/proc/self/fd/{folder}/{NAME}"
    finally:
        os.close(folder)
