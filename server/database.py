"""A connection to the database, on a thread of its own."""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

from sqlalchemy import Connection, NullPool, create_engine, event

from server.tables import METADATA

WRITER = ("journal_mode=WAL", "synchronous=FULL", "busy_timeout=30000")
READER = ("query_only=1", "busy_timeout=30000")

T = TypeVar("T")


class Session:
    """One SQLite connection, which `writes` or only reads. Each piece of work is one transaction."""

    def __init__(self, path: Path, *, writes: bool) -> None:
        self._thread = ThreadPoolExecutor(1, "store-write" if writes else "store-read")
        self._connection = self._thread.submit(_connect, path, writes=writes).result()

    async def run(self, work: Callable[[Connection], T]) -> T:
        """What `work` gives; what it wrote is kept, all or nothing."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, self._transact, work)

    async def close(self) -> None:
        """Closes the connection."""
        await asyncio.get_running_loop().run_in_executor(self._thread, self._disconnect)
        self._thread.shutdown()

    def _transact(self, work: Callable[[Connection], T]) -> T:
        with self._connection.begin():
            return work(self._connection)

    def _disconnect(self) -> None:
        self._connection.close()
        self._connection.engine.dispose()


def _connect(path: Path, *, writes: bool) -> Connection:
    engine = create_engine(f"sqlite:///{path}", poolclass=NullPool)

    # why: the driver's own transactions begin late and do not lock; ours begin when we say so
    @event.listens_for(engine, "connect")
    def prepare(connection: Any, _record: Any) -> None:
        connection.isolation_level = None
        for pragma in WRITER if writes else READER:
            connection.execute(f"PRAGMA {pragma}")

    @event.listens_for(engine, "begin")
    def begin(connection: Connection) -> None:
        connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")

    connection = engine.connect()
    if writes:
        with connection.begin():
            METADATA.create_all(connection)
    return connection
