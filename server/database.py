"""Transactions on the database, off the event loop: SQLite in the data folder, or Postgres.

SQLite: one process owns the folder (a file lock), one connection on one thread writes, a second one only reads, for
SQLite before 3.51.3 can damage a WAL when two connections write or checkpoint at one moment.
Postgres: any number of processes; `shared` is then true, and jobs are held by leases.

StoreError
├── StoreUnavailableError   the database is full, read-only or gone: the same call may succeed later
└── (raised bare)           the database cannot be opened
"""

import asyncio
import fcntl
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import IO, Any, TypeVar

from sqlalchemy import ColumnElement, Connection, Engine, Float, cast, create_engine, event, func, literal_column
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError, DBAPIError, NoSuchModuleError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError

from server.migrations import MigrationError, upgrade

WRITER = ("journal_mode=WAL", "synchronous=FULL", "busy_timeout=30000")
READER = ("query_only=1", "busy_timeout=30000")
POSTGRES_CONNECTIONS = 8
POSTGRES_SECONDS = 5

# SQLite's names of what an operator can heal; all others are bugs of ours
SQLITE_TROUBLE = ("SQLITE_FULL", "SQLITE_READONLY", "SQLITE_IOERR", "SQLITE_CANTOPEN", "SQLITE_BUSY")

T = TypeVar("T")


class StoreError(Exception):
    """The database cannot be used. `str(error)` is a sentence for a person."""


class StoreUnavailableError(StoreError):
    """The database cannot be used now."""


class Database:
    """One database. Each piece of work is one transaction; `on_change` hears of those that `change` it."""

    def __init__(
        self,
        *,
        writer: "Session",
        reader: "Session",
        now: ColumnElement[float],
        lock: IO[str] | None,
        on_change: Callable[[], None],
    ) -> None:
        self.now = now
        """The database's clock, in seconds since 1970: one for all nodes."""
        self.shared = lock is None
        self._writer = writer
        self._reader = reader
        self._lock = lock
        self._on_change = on_change

    async def read(self, work: Callable[[Connection], T]) -> T:
        """What `work` gives, which only looks.

        Raises: StoreUnavailableError.
        """
        return await self._reader.run(work)

    async def write(self, work: Callable[[Connection], T]) -> T:
        """What `work` gives; what it wrote is kept, all or nothing.

        Raises: StoreUnavailableError.
        """
        return await self._writer.run(work)

    async def change(self, work: Callable[[Connection], T]) -> T:
        """As `write`, and tells of the change.

        Raises: StoreUnavailableError.
        """
        result = await self.write(work)
        self.tell()
        return result

    def tell(self) -> None:
        """Tells of a change that `write` made."""
        self._on_change()

    async def close(self) -> None:
        """Closes all connections and gives the folder free."""
        await self._reader.close()
        if self._writer is not self._reader:
            await self._writer.close()
        if self._lock is not None:
            self._lock.close()


class Session:
    """An engine and as many threads as it has connections."""

    def __init__(self, engine: Engine, *, threads: int, name: str) -> None:
        self._engine = engine
        self._threads = ThreadPoolExecutor(threads, name)

    async def run(self, work: Callable[[Connection], T]) -> T:
        """What `work` gives, in a transaction.

        Raises: StoreUnavailableError.
        """
        return await asyncio.get_running_loop().run_in_executor(self._threads, self.transact, work)

    async def close(self) -> None:
        """Closes the connections."""
        await asyncio.get_running_loop().run_in_executor(self._threads, self._engine.dispose)
        self._threads.shutdown()

    def transact(self, work: Callable[[Connection], T]) -> T:
        """As `run`, on the thread of the caller."""
        try:
            with self._engine.begin() as connection:
                return work(connection)
        except PoolTimeoutError as error:
            raise StoreUnavailableError("the database does not answer") from error
        except DBAPIError as error:
            if (trouble := _trouble(error)) is not None:
                raise StoreUnavailableError(trouble) from error
            raise


def open_database(folder: Path, *, url: str = "", on_change: Callable[[], None] = lambda: None) -> Database:
    """The database that `url` names, brought to the newest version; without one, SQLite in `folder`.

    Raises: StoreError.
    """
    try:
        return _postgres(url, on_change) if url else _sqlite(folder, on_change)
    except MigrationError as error:
        raise StoreError(str(error)) from error


def own(folder: Path) -> IO[str]:
    """The lock of the data folder `folder`, which is made if need be: nobody else owns it until that is closed.

    Raises: StoreError.
    """
    # why: prompts and the secrets that all nodes share are in here
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    lock = (folder / "lock").open("w")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        lock.close()
        raise StoreError(f"another ltxd already owns {folder}: stop it, or give this one another --data") from error
    return lock


def _sqlite(folder: Path, on_change: Callable[[], None]) -> Database:
    lock = own(folder)
    path = folder / "ltxd.sqlite3"
    path.touch(mode=0o600)
    writer = Session(_sqlite_engine(path, WRITER, "BEGIN IMMEDIATE"), threads=1, name="store-write")
    try:
        writer.transact(upgrade)
    except BaseException:
        lock.close()
        raise
    reader = Session(_sqlite_engine(path, READER, "BEGIN"), threads=1, name="store-read")
    now: ColumnElement[float] = literal_column("((julianday('now') - 2440587.5) * 86400.0)")
    return Database(writer=writer, reader=reader, now=now, lock=lock, on_change=on_change)


def _sqlite_engine(path: Path, pragmas: tuple[str, ...], begin: str) -> Engine:
    engine = create_engine(f"sqlite:///{path}", pool_size=1, max_overflow=0, hide_parameters=True)

    # why: the driver's own transactions begin late and do not lock; ours begin when we say so
    @event.listens_for(engine, "connect")
    def prepare(connection: Any, _record: Any) -> None:
        connection.isolation_level = None
        for pragma in pragmas:
            connection.execute(f"PRAGMA {pragma}")

    @event.listens_for(engine, "begin")
    def start(connection: Connection) -> None:
        connection.exec_driver_sql(begin)

    return engine


def _postgres(url: str, on_change: Callable[[], None]) -> Database:
    try:
        parsed = make_url(url)
        if parsed.get_backend_name() != "postgresql":
            raise StoreError(f"database_url begins with {parsed.drivername!r}; only postgresql:// is known")
        engine = create_engine(
            parsed.set(drivername="postgresql+psycopg"),
            pool_size=POSTGRES_CONNECTIONS,
            max_overflow=0,
            pool_timeout=POSTGRES_SECONDS,
            pool_pre_ping=True,
            hide_parameters=True,
            connect_args={
                "connect_timeout": POSTGRES_SECONDS,
                # why: a node that lost its network would wait for hours for an answer
                "keepalives_idle": POSTGRES_SECONDS,
                "keepalives_interval": POSTGRES_SECONDS,
                "keepalives_count": 2,
                "tcp_user_timeout": 3_000 * POSTGRES_SECONDS,
            },
        )
    except (ArgumentError, NoSuchModuleError, ImportError) as error:
        raise StoreError(f"database_url cannot be used: {error}") from error
    session = Session(engine, threads=POSTGRES_CONNECTIONS, name="store")
    try:
        session.transact(upgrade)
    except StoreUnavailableError as error:
        raise StoreError(f"{error}; looked for it at {parsed.render_as_string()}") from error
    now: ColumnElement[float] = cast(func.extract("epoch", func.clock_timestamp()), Float)
    return Database(writer=session, reader=session, now=now, lock=None, on_change=on_change)


def _trouble(error: DBAPIError) -> str | None:
    """What ails the database, if it is nothing of ours."""
    cause = error.orig
    name = getattr(cause, "sqlite_errorname", None)
    state = getattr(cause, "sqlstate", None) or ""
    if name is not None:
        if not name.startswith(SQLITE_TROUBLE):
            return None
        return f"the database cannot be used: {cause}"
    # classes of SQLSTATE: 08 connection, 40 rolled back (deadlock), 53 resources, 57 shut down, 58 system; 25006 is a
    # read-only database
    if error.connection_invalidated or state[:2] in ("08", "40", "53", "57", "58") or state == "25006":
        return f"the database cannot be used: {_first_line(cause)}"
    # why: a connection that was never made has no state
    if not state and type(cause).__name__ in ("OperationalError", "InterfaceError"):
        return f"the database cannot be used: {_first_line(cause)}"
    return None


def _first_line(cause: object) -> str:
    return (str(cause).splitlines() or [""])[0]
