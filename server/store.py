"""Jobs, their logs and the rows of files, kept so that nothing is lost once a submit is answered.

SQLite in WAL mode with full sync. One process owns the folder (a file lock), one connection on one thread writes, a
second one only reads: SQLite before 3.51.3 can damage a WAL when two connections write or checkpoint at one moment.
"""

import fcntl
import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

from sqlalchemy import ColumnElement, Connection, Row, and_, delete, func, insert, or_, select, update

from server.database import Session
from server.errors import Failure, model_failure, plain
from server.tables import FILES, JOBS, LOGS, WEBHOOKS
from server.terms import FREE, Terms

Status = Literal["IN_QUEUE", "IN_PROGRESS", "COMPLETED"]
CancelOutcome = Literal["CANCELLATION_REQUESTED", "ALREADY_COMPLETED", "NOT_FOUND"]
SubmitOutcome = Literal["accepted", "queue full", "too many in flight"]

MAX_LOG_LINES = 500
MAX_LOG_CHARACTERS = 2_000

CANCELLED = plain("client_cancelled", "Request was cancelled by the client")
WORN_OUT = model_failure(
    "internal_server_error", "Internal server error: the generating process died on every attempt"
)

T = TypeVar("T")


class StoreError(Exception):
    """The store cannot be opened: another process owns it."""


@dataclass(frozen=True, slots=True)
class Job:
    """What is known of a job. Times are seconds since 1970.

    `position` counts the jobs ahead while it waits.
    """

    id: str
    key_id: str | None
    status: Status
    position: int
    attempts: int
    cancel_requested: bool
    result: dict[str, Any] | None
    failure: Failure | None
    units: int
    inference_seconds: float | None
    created: float
    started: float | None
    finished: float | None


@dataclass(frozen=True, slots=True)
class Claim:
    """A job that is ours to do, until it is finished or released with this owner and attempt."""

    id: str
    owner: str
    attempt: int
    payload: bytes
    keep_for: float | None = None


@dataclass(frozen=True, slots=True)
class Sender:
    """On whose behalf a job is submitted, and whom to tell of its end."""

    key_id: str | None = None
    max_in_flight: int | None = None
    webhook: "WebhookTarget | None" = None


@dataclass(frozen=True, slots=True)
class WebhookTarget:
    """Where to tell of a job's end, see `server.webhooks`."""

    url: str
    origin: str
    private: bool


@dataclass(frozen=True, slots=True)
class LogLine:
    """One line of a job's log."""

    at: float
    level: str
    message: str


@dataclass(frozen=True, slots=True)
class StoredFile:
    """The row of a file; its bytes are the blob of the same id."""

    id: str
    job_id: str | None
    name: str
    content_type: str
    size: int
    sha256: str
    created: float
    expires: float
    key_id: str | None = None


NOBODY = Sender()
"""Who submits while there are no keys."""


class Store:
    """The store in one folder. Every method runs off the event loop; changes are told to `on_change`."""

    def __init__(self, folder: Path, *, on_change: Callable[[], None] = lambda: None) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._lock = (folder / "lock").open("w")
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            self._lock.close()
            raise StoreError(
                f"another ltxd already owns {folder}: stop it, or give this one another --data"
            ) from error
        self._on_change = on_change
        path = folder / "ltxd.sqlite3"
        self._writer = Session(path, writes=True)
        self._reader = Session(path, writes=False)

    async def close(self) -> None:
        """Closes the store and gives the folder free."""
        await self._reader.close()
        await self._writer.close()
        self._lock.close()

    # -- a job's life

    async def submit(
        self,
        job_id: str,
        payload: bytes,
        *,
        terms: Terms = FREE,
        asked: str | None = None,
        max_waiting: int,
        sender: Sender = NOBODY,
    ) -> SubmitOutcome:
        """Writes a waiting job; writes nothing if `max_waiting` jobs wait already, or too many of the sender's.

        `asked` is the digest of what a call asks that waits for the answer.
        """

        def work(connection: Connection) -> SubmitOutcome:
            if (connection.scalar(_WAITING) or 0) >= max_waiting:
                return "queue full"
            if sender.max_in_flight is not None:
                mine = and_(JOBS.c.key_id == sender.key_id, JOBS.c.status != "COMPLETED")
                if (connection.scalar(select(func.count()).where(mine)) or 0) >= sender.max_in_flight:
                    return "too many in flight"
            now = time.time()
            row = {
                "payload": payload,
                "priority": terms.priority,
                "start_by": None if terms.start_within is None else now + terms.start_within,
                "keep_for": terms.keep_for,
                "asked": asked,
                "status": "IN_QUEUE",
                "created": now,
            }
            _insert_job(connection, job_id, row, sender)
            return "accepted"

        return await self.change(work)

    async def submit_failed(self, job_id: str, failure: Failure, *, sender: Sender = NOBODY) -> None:
        """Writes a job that ended before it began."""
        now = time.time()
        row = {"priority": 0, "created": now, "started": now} | ended(now, failure=failure)
        await self.change(lambda connection: _insert_job(connection, job_id, row, sender))

    async def claim(self, owner: str) -> Claim | None:
        """The next waiting job, from now on `owner`'s; None if none waits."""

        def work(connection: Connection) -> Claim | None:
            seq = connection.scalar(
                select(JOBS.c.seq)
                .where(JOBS.c.status == "IN_QUEUE", or_(~_UNBEGUN, JOBS.c.start_by > time.time()))
                .order_by(JOBS.c.priority, JOBS.c.seq)
                .limit(1)
            )
            if seq is None:
                return None
            row = connection.execute(
                update(JOBS)
                .where(JOBS.c.seq == seq)
                .values(
                    status="IN_PROGRESS",
                    owner=owner,
                    attempts=JOBS.c.attempts + 1,
                    started=func.coalesce(JOBS.c.started, time.time()),
                )
                .returning(JOBS.c.id, JOBS.c.attempts, JOBS.c.payload, JOBS.c.keep_for)
            ).one()
            return Claim(row.id, owner, row.attempts, row.payload, row.keep_for)

        claim = await self.write(work)
        if claim is not None:
            self._on_change()
        return claim

    async def finish(
        self,
        claim: Claim,
        *,
        result: dict[str, Any] | None = None,
        failure: Failure | None = None,
        file: StoredFile | None = None,
        seconds: float | None = None,
        units: int = 0,
    ) -> bool:
        """Ends the job with a result or a failure; False, changing nothing, if it is no longer `claim`'s."""
        values = ended(time.time(), result=result, failure=failure, seconds=seconds, units=units)

        def work(connection: Connection) -> bool:
            if connection.execute(update(JOBS).where(_held(claim)).values(values)).rowcount == 0:
                return False
            if file is not None:
                connection.execute(insert(FILES), asdict(file))
            return True

        return await self.change(work)

    async def release(self, claim: Claim, *, max_attempts: int, counted: bool = True) -> bool:
        """Puts the job back at its old place, or ends it if it was tried `max_attempts` times.

        An attempt that is not `counted` was given up through no fault of the job. A job that is to be cancelled ends
        so. False if it is no longer `claim`'s.
        """

        def work(connection: Connection) -> bool:
            row = connection.execute(select(JOBS.c.cancel_requested).where(_held(claim))).one_or_none()
            if row is None:
                return False
            if row.cancel_requested:
                values = ended(time.time(), failure=CANCELLED)
            elif counted and claim.attempt >= max_attempts:
                values = ended(time.time(), failure=WORN_OUT)
            else:
                values = {"status": "IN_QUEUE", "owner": None, "attempts": claim.attempt - (not counted)}
            connection.execute(update(JOBS).where(_held(claim)).values(values))
            return True

        return await self.change(work)

    async def recover(self, *, max_attempts: int) -> int:
        """Puts every job that a dead process left running back at its old place; gives their number.

        Ends those that were tried `max_attempts` times; orphans those whose callers waited. To be called once, before
        the first claim.
        """

        def work(connection: Connection) -> int:
            running = JOBS.c.status == "IN_PROGRESS"
            now = time.time()
            lost = (JOBS.c.status != "COMPLETED", JOBS.c.asked.is_not(None), JOBS.c.orphaned.is_(None))
            connection.execute(update(JOBS).where(*lost).values(orphaned=now))
            connection.execute(
                update(JOBS).where(running, JOBS.c.cancel_requested == 1).values(ended(now, failure=CANCELLED))
            )
            connection.execute(
                update(JOBS).where(running, JOBS.c.attempts >= max_attempts).values(ended(now, failure=WORN_OUT))
            )
            return connection.execute(update(JOBS).where(running).values(status="IN_QUEUE", owner=None)).rowcount

        return await self.write(work)

    async def cancel(self, job_id: str) -> CancelOutcome:
        """Ends a waiting job at once, and asks for a running one to end."""

        def work(connection: Connection) -> CancelOutcome:
            status = connection.scalar(select(JOBS.c.status).where(JOBS.c.id == job_id))
            if status is None:
                return "NOT_FOUND"
            if status == "COMPLETED":
                return "ALREADY_COMPLETED"
            values = ended(time.time(), failure=CANCELLED) if status == "IN_QUEUE" else {"cancel_requested": 1}
            connection.execute(update(JOBS).where(JOBS.c.id == job_id).values(values))
            return "CANCELLATION_REQUESTED"

        return await self.change(work)

    # -- looking

    async def get(self, job_id: str) -> Job | None:
        """The job, or None."""

        def work(connection: Connection) -> Job | None:
            row = connection.execute(select(*_SEEN).where(JOBS.c.id == job_id)).one_or_none()
            if row is None:
                return None
            ahead = 0
            if row.status == "IN_QUEUE":
                before = or_(
                    JOBS.c.priority < row.priority, and_(JOBS.c.priority == row.priority, JOBS.c.seq < row.seq)
                )
                ahead = connection.scalar(_WAITING.where(before)) or 0
            return _job(row, ahead)

        return await self.read(work)

    async def waiting(self) -> int:
        """The number of waiting jobs."""
        return await self.read(lambda connection: connection.scalar(_WAITING) or 0)

    async def logs(self, job_id: str, *, after: int = 0) -> list[LogLine]:
        """The lines of the job's log, without the first `after`."""
        query = (
            select(LOGS.c.at, LOGS.c.level, LOGS.c.message)
            .where(LOGS.c.job_id == job_id, LOGS.c.n >= after)
            .order_by(LOGS.c.n)
        )
        return await self.read(lambda connection: [LogLine(*row) for row in connection.execute(query)])

    async def log(self, job_id: str, message: str, *, level: str = "INFO") -> None:
        """Adds a line to the job's log, unless it is full."""

        def work(connection: Connection) -> None:
            n = connection.scalar(select(func.count()).where(LOGS.c.job_id == job_id)) or 0
            if n < MAX_LOG_LINES:
                text = message[:MAX_LOG_CHARACTERS]
                row = {"job_id": job_id, "n": n, "at": time.time(), "level": level, "message": text}
                connection.execute(insert(LOGS), row)

        await self.change(work)

    async def file(self, file_id: str) -> StoredFile | None:
        """The row of the file, or None if there is none or it has expired."""
        query = select(FILES).where(FILES.c.id == file_id, FILES.c.expires > time.time())

        def work(connection: Connection) -> StoredFile | None:
            row = connection.execute(query).one_or_none()
            return None if row is None else StoredFile(*row)

        return await self.read(work)

    async def sweep(self, *, row_retention: float) -> list[str]:
        """Forgets expired files and old finished jobs; gives the ids of the blobs to delete."""

        def work(connection: Connection) -> list[str]:
            now = time.time()
            expired = connection.scalars(delete(FILES).where(FILES.c.expires <= now).returning(FILES.c.id)).all()
            old = select(JOBS.c.id).where(JOBS.c.finished <= now - row_retention)
            connection.execute(delete(LOGS).where(LOGS.c.job_id.in_(old)))
            connection.execute(delete(WEBHOOKS).where(WEBHOOKS.c.job_id.in_(old)))
            connection.execute(delete(JOBS).where(JOBS.c.finished <= now - row_retention))
            return list(expired)

        return await self.write(work)

    # -- for the statements of other modules

    async def write(self, work: Callable[[Connection], T]) -> T:
        """What `work` gives; what it wrote is kept, all or nothing."""
        return await self._writer.run(work)

    async def change(self, work: Callable[[Connection], T]) -> T:
        """As `write`, and tells of the change."""
        result = await self.write(work)
        self._on_change()
        return result

    async def read(self, work: Callable[[Connection], T]) -> T:
        """What `work` gives, which only looks."""
        return await self._reader.run(work)


_WAITING = select(func.count()).select_from(JOBS).where(JOBS.c.status == "IN_QUEUE")
_UNBEGUN = and_(JOBS.c.start_by.is_not(None), JOBS.c.started.is_(None))
_SEEN = [column for column in JOBS.c if column.name != "payload"]


def _insert_job(connection: Connection, job_id: str, row: dict[str, Any], sender: Sender) -> None:
    connection.execute(insert(JOBS), row | {"id": job_id, "key_id": sender.key_id})
    if sender.webhook is not None:
        connection.execute(insert(WEBHOOKS), asdict(sender.webhook) | {"job_id": job_id, "next_try": 0.0})


def _held(claim: Claim) -> Any:
    return and_(
        JOBS.c.id == claim.id,
        JOBS.c.status == "IN_PROGRESS",
        JOBS.c.owner == claim.owner,
        JOBS.c.attempts == claim.attempt,
    )


def late(now: float) -> ColumnElement[bool]:
    """Which jobs should have begun by `now` and have not. One that was begun and put back is in time."""
    return and_(JOBS.c.status == "IN_QUEUE", _UNBEGUN, JOBS.c.start_by <= now)


def ended(
    now: float,
    *,
    result: dict[str, Any] | None = None,
    failure: Failure | None = None,
    seconds: float | None = None,
    units: int = 0,
) -> dict[str, Any]:
    """The columns of a job that ends."""
    return {
        "status": "COMPLETED",
        "owner": None,
        "payload": None,
        "result": None if result is None else json.dumps(result),
        "failure": None if failure is None else json.dumps(failure.to_dict()),
        "http_status": 200 if failure is None else failure.status,
        "units": units,
        "inference_seconds": seconds,
        "finished": now,
    }


def _job(row: Row[Any], position: int) -> Job:
    return Job(
        id=row.id,
        key_id=row.key_id,
        status=row.status,
        position=position,
        attempts=row.attempts,
        cancel_requested=bool(row.cancel_requested),
        result=None if row.result is None else json.loads(row.result),
        failure=None if row.failure is None else Failure(**json.loads(row.failure)),
        units=row.units,
        inference_seconds=row.inference_seconds,
        created=row.created,
        started=row.started,
        finished=row.finished,
    )
