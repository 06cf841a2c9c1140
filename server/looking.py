"""What can be seen in the store: jobs, the queue, logs and the rows of files. Nothing here writes."""

import time
from collections.abc import Callable
from typing import TypeVar

from sqlalchemy import Connection, and_, bindparam, func, or_, select

from server.database import Database
from server.records import Job, LogLine, StoredFile, job_of
from server.tables import FILES, JOBS, LOGS

T = TypeVar("T")


class Looking:
    """The store, as one may look at it."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def get(self, job_id: str) -> Job | None:
        """The job, or None."""
        return await self.read(lambda connection: _job(connection, job_id))

    async def look(self, job_id: str, *, logs: bool, after: int = 0) -> tuple[Job | None, list[LogLine] | None]:
        """The job, or None; and its log, if wanted, without the first `after` lines."""

        def work(connection: Connection) -> tuple[Job | None, list[LogLine] | None]:
            job = _job(connection, job_id)
            return job, _log(connection, job_id, after=after) if job is not None and logs else None

        return await self.read(work)

    @property
    def shared(self) -> bool:
        """Whether other nodes change the database too."""
        return self._database.shared

    async def waiting(self) -> int:
        """The number of waiting jobs."""
        return await self.read(lambda connection: connection.scalar(_WAITING) or 0)

    async def queue(self) -> list[tuple[int, int, float]]:
        """Of each priority that waits: the priority, how many, and when the first was submitted."""
        query = (
            select(JOBS.c.priority, func.count(), func.min(JOBS.c.created))
            .where(JOBS.c.status == "IN_QUEUE")
            .group_by(JOBS.c.priority)
        )
        return await self.read(lambda connection: [(p, n, at) for p, n, at in connection.execute(query)])

    async def next_waiting(self, count: int) -> list[str]:
        """The ids of the first `count` waiting jobs."""
        query = select(JOBS.c.id).where(JOBS.c.status == "IN_QUEUE").order_by(JOBS.c.priority, JOBS.c.seq).limit(count)
        return await self.read(lambda connection: list(connection.scalars(query)))

    async def payload(self, job_id: str) -> bytes | None:
        """The payload of the job, or None if it has ended."""
        query = select(JOBS.c.payload).where(JOBS.c.id == job_id)
        return await self.read(lambda connection: connection.scalar(query))

    async def logs(self, job_id: str, *, after: int = 0) -> list[LogLine]:
        """The lines of the job's log, without the first `after`."""
        return await self.read(lambda connection: _log(connection, job_id, after=after))

    async def file(self, file_id: str) -> StoredFile | None:
        """The row of the file, or None if there is none or it has expired."""
        query = select(FILES).where(FILES.c.id == file_id, FILES.c.expires > time.time())

        def work(connection: Connection) -> StoredFile | None:
            row = connection.execute(query).one_or_none()
            return None if row is None else StoredFile(*row)

        return await self.read(work)

    async def read(self, work: Callable[[Connection], T]) -> T:
        """What `work` gives, which only looks."""
        return await self._database.read(work)


# built once: a status is asked for at every change, and to build its statements takes longer than to run them
_WAITING = select(func.count()).select_from(JOBS).where(JOBS.c.status == "IN_QUEUE")
_SEEN = select(*(column for column in JOBS.c if column.name != "payload")).where(JOBS.c.id == bindparam("job_id"))
_BEFORE = _WAITING.where(
    or_(
        JOBS.c.priority < bindparam("priority"),
        and_(JOBS.c.priority == bindparam("priority"), JOBS.c.seq < bindparam("seq")),
    )
)
_LINES = (
    select(LOGS.c.at, LOGS.c.level, LOGS.c.message)
    .where(LOGS.c.job_id == bindparam("job_id"), LOGS.c.n >= bindparam("after"))
    .order_by(LOGS.c.n)
)


def _job(connection: Connection, job_id: str) -> Job | None:
    row = connection.execute(_SEEN, {"job_id": job_id}).one_or_none()
    if row is None:
        return None
    ahead = 0
    if row.status == "IN_QUEUE":
        ahead = connection.scalar(_BEFORE, {"priority": row.priority, "seq": row.seq}) or 0
    return job_of(row, position=ahead)


def _log(connection: Connection, job_id: str, *, after: int = 0) -> list[LogLine]:
    return [LogLine(*row) for row in connection.execute(_LINES, {"job_id": job_id, "after": after})]
