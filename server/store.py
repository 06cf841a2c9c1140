"""A job's life, kept so that nothing is lost once a submit is answered.

A job waits, is claimed with a lease, and ends; a job whose holder was lost goes back to its old place. What a holder
writes is fenced by owner and attempt, so that of two who both think a job is theirs only one can end it.
"""

import time
from collections.abc import Callable, Iterable
from dataclasses import asdict
from typing import Any, TypeVar

from sqlalchemy import ColumnElement, Connection, and_, delete, func, insert, not_, or_, select, update

from server.database import Database
from server.endings import CANCELLED, ended, given_up, released
from server.errors import Failure
from server.looking import Looking
from server.metrics import Metrics
from server.records import (
    NOBODY,
    CancelOutcome,
    Claim,
    End,
    ReleaseOutcome,
    Sender,
    Standing,
    StoredFile,
    SubmitOutcome,
)
from server.tables import FILES, JOBS, KEYS, LOGS, WEBHOOKS
from server.terms import ATTENDED_SECONDS, FREE, Terms

MAX_LOG_LINES = 500
MAX_LOG_CHARACTERS = 64_000
MAX_LINE_CHARACTERS = 2_000
LEASE_SECONDS = 30.0

T = TypeVar("T")


class Store(Looking):
    """The jobs, their logs and the rows of files in one database. Every end of a job that it writes is counted."""

    def __init__(self, database: Database, metrics: Metrics | None = None) -> None:
        super().__init__(database)
        self._metrics = metrics

    async def submit(
        self,
        job_id: str,
        payload: bytes,
        *,
        terms: Terms = FREE,
        asked: str | None = None,
        max_waiting: int,
        max_bytes: int | None = None,
        sender: Sender = NOBODY,
    ) -> SubmitOutcome:
        """Writes a waiting job; or nothing, if too many jobs or bytes wait already, or too many of the sender's.

        `asked` is the digest of what a call asks that waits for the answer. One job is kept whatever its size.
        """

        def work(connection: Connection) -> SubmitOutcome:
            full = _full(connection, len(payload), max_waiting=max_waiting, max_bytes=max_bytes, sender=sender)
            if full is not None:
                return full
            now = time.time()
            row = {
                "payload": payload,
                "payload_size": len(payload),
                "priority": terms.priority,
                "start_by": None if terms.start_within is None else now + terms.start_within,
                "keep_for": terms.keep_for,
                "max_attempts": terms.max_attempts,
                "asked": asked,
                "orphaned": None if asked is None else now + ATTENDED_SECONDS,
                "seen": now,
                "status": "IN_QUEUE",
                "created": now,
            }
            _insert_job(connection, job_id, row, sender)
            return "accepted"

        return await self.change(work)

    async def submit_failed(
        self,
        job_id: str,
        failure: Failure,
        *,
        max_waiting: int,
        max_bytes: int | None = None,
        sender: Sender = NOBODY,
    ) -> SubmitOutcome:
        """Writes a job that ended before it began; or nothing, where `submit` would write nothing."""

        def work(connection: Connection) -> SubmitOutcome:
            full = _full(connection, 0, max_waiting=max_waiting, max_bytes=max_bytes, sender=sender)
            if full is not None:
                return full
            now = time.time()
            _insert_job(
                connection, job_id, {"priority": 0, "created": now, "started": now} | ended(failure=failure), sender
            )
            return "accepted"

        outcome = await self.change(work)
        if outcome == "accepted":
            self.count([End(failure.error_type, created=None)])
        return outcome

    async def claim(self, owner: str, *, lease: float = LEASE_SECONDS) -> Claim | None:
        """The next waiting job, from now on `owner`'s for `lease` seconds; None if none waits."""
        can_start = or_(~_UNBEGUN, JOBS.c.start_by > time.time())
        first = (
            select(JOBS.c.seq)
            .where(JOBS.c.status == "IN_QUEUE", can_start)
            .order_by(JOBS.c.priority, JOBS.c.seq)
            .limit(1)
            .with_for_update(skip_locked=True)
        )

        def work(connection: Connection) -> Claim | None:
            seq = connection.scalar(first)
            if seq is None:
                return None
            row = connection.execute(
                update(JOBS)
                .where(JOBS.c.seq == seq)
                .values(
                    status="IN_PROGRESS",
                    owner=owner,
                    lease_until=self._database.now + lease,
                    attempts=JOBS.c.attempts + 1,
                    started=func.coalesce(JOBS.c.started, time.time()),
                )
                .returning(JOBS.c.id, JOBS.c.attempts, JOBS.c.payload, JOBS.c.created, JOBS.c.started, JOBS.c.keep_for)
            ).one()
            return Claim(row.id, owner, row.attempts, row.payload, row.created, row.started, row.keep_for)

        claim = await self.write(work)
        if claim is not None:
            self._database.tell()
        return claim

    async def renew(self, claim: Claim, *, lease: float) -> Standing:
        """Holds the job for `lease` seconds more; tells whether it could."""
        query = (
            update(JOBS)
            .where(_held(claim))
            .values(lease_until=self._database.now + lease)
            .returning(JOBS.c.cancel_requested)
        )
        return _standing(await self.write(lambda connection: connection.scalar(query)))

    async def standing(self, claim: Claim) -> Standing:
        """Whether the job is still ours, and still wanted."""
        query = select(JOBS.c.cancel_requested).where(_held(claim))
        return _standing(await self.read(lambda connection: connection.scalar(query)))

    async def finish(
        self,
        claim: Claim,
        *,
        result: dict[str, Any] | None = None,
        failure: Failure | None = None,
        seconds: float | None = None,
        units: int = 0,
    ) -> bool:
        """Ends the job with a result or a failure; False, changing nothing, if it is no longer `claim`'s."""
        values = ended(result=result, failure=failure, seconds=seconds, units=units)
        query = update(JOBS).where(_held(claim)).values(values)
        done = await self.change(lambda connection: connection.execute(query).rowcount > 0)
        if done:
            self.count([End(None if failure is None else failure.error_type, claim.created)])
        return done

    async def release(
        self,
        claim: Claim,
        *,
        max_attempts: int,
        counted: bool = True,
        silent: bool = False,
        how: str = "its process was lost",
    ) -> ReleaseOutcome:
        """Puts the job back at its old place, or ends it if it was tried `max_attempts` times, saying `how` it failed.

        `silent`: its process said nothing for too long. An attempt that is not `counted` was given up through no fault
        of the job. A job that is to be cancelled ends so. Changes nothing if it is no longer `claim`'s.
        """

        def work(connection: Connection) -> ReleaseOutcome:
            row = connection.execute(select(*_TRIED).where(_held(claim)).with_for_update()).one_or_none()
            if row is None:
                return "lost"
            failure = given_up(row, max_attempts=max_attempts if counted else None, how=how, silent=silent)
            values = released(failure) | {"attempts": claim.attempt if counted or failure else claim.attempt - 1}
            connection.execute(update(JOBS).where(JOBS.c.seq == row.seq).values(values))
            return failure or "waits"

        became = await self.change(work)
        if isinstance(became, Failure):
            self.count([End(became.error_type, claim.created)])
        elif became == "waits" and counted:
            self._count_retries("silent" if silent else "died")
        return became

    async def recover(self, *, max_attempts: int) -> int:
        """Puts every running job back at its old place, or ends it; orphans those whose callers waited.

        For the start of a process that alone owns the database: whoever did those jobs is dead. Gives their number.
        """
        now = time.time()
        orphan = update(JOBS).where(JOBS.c.status != "COMPLETED", JOBS.c.orphaned > now).values(orphaned=now)

        def work(connection: Connection) -> list[End | None]:
            connection.execute(orphan)
            return _put_back(connection, _RUNNING, max_attempts=max_attempts)

        return self._count_put_back(await self.write(work))

    async def reclaim(self, *, max_attempts: int, but: Claim | None = None) -> int:
        """Puts the jobs whose lease has run out back, except `but`, or ends them; gives their number."""
        lapsed = and_(_RUNNING, JOBS.c.lease_until <= self._database.now)
        if but is not None:
            lapsed = and_(lapsed, not_(_held(but)))
        # why: hardly ever is there one, and looking is cheaper than a turn at the writer
        if not await self.read(lambda connection: connection.scalar(select(func.count()).where(lapsed))):
            return 0
        return self._count_put_back(
            await self.change(lambda connection: _put_back(connection, lapsed, max_attempts=max_attempts))
        )

    async def cancel(self, job_id: str) -> CancelOutcome:
        """Ends a waiting job at once, and asks for a running one to end."""

        def work(connection: Connection) -> tuple[CancelOutcome, list[End]]:
            query = select(JOBS.c.status, JOBS.c.created).where(JOBS.c.id == job_id).with_for_update()
            row = connection.execute(query).one_or_none()
            if row is None:
                return "NOT_FOUND", []
            if row.status == "COMPLETED":
                return "ALREADY_COMPLETED", []
            waits = row.status == "IN_QUEUE"
            values = ended(failure=CANCELLED) if waits else {"cancel_requested": 1}
            connection.execute(update(JOBS).where(JOBS.c.id == job_id).values(values))
            return "CANCELLATION_REQUESTED", [End(CANCELLED.error_type, row.created)] if waits else []

        outcome, ends = await self.change(work)
        self.count(ends)
        return outcome

    async def refuse(self, job_id: str, failure: Failure) -> bool:
        """Ends a waiting job with `failure`; False, changing nothing, if it does not wait."""
        waiting = and_(JOBS.c.id == job_id, JOBS.c.status == "IN_QUEUE")
        values = ended(failure=failure) | {"started": func.coalesce(JOBS.c.started, time.time())}
        query = update(JOBS).where(waiting).values(values).returning(JOBS.c.created)
        created = await self.change(lambda connection: connection.scalar(query))
        if created is None:
            return False
        self.count([End(failure.error_type, created)])
        return True

    async def log(self, job_id: str, message: str, *, level: str = "INFO") -> None:
        """Adds a line to the job's log, unless it is full."""
        line = message[:MAX_LINE_CHARACTERS]
        room = (
            update(JOBS)
            .where(
                JOBS.c.id == job_id,
                JOBS.c.log_lines < MAX_LOG_LINES,
                JOBS.c.log_characters + len(line) <= MAX_LOG_CHARACTERS,
            )
            .values(log_lines=JOBS.c.log_lines + 1, log_characters=JOBS.c.log_characters + len(line))
            .returning(JOBS.c.log_lines)
        )

        def work(connection: Connection) -> None:
            lines = connection.scalar(room)
            if lines is not None:
                row = {"job_id": job_id, "n": lines - 1, "at": time.time(), "level": level, "message": line}
                connection.execute(insert(LOGS), row)

        await self.change(work)

    async def add_file(self, file: StoredFile) -> None:
        """Writes the row of a file, before its bytes are put: so the sweeper finds whatever was left behind."""

        def work(connection: Connection) -> None:
            if connection.dialect.name == "postgresql":
                # why: of two that complete an upload at once, neither would see the other's row to take its place
                connection.execute(select(func.pg_advisory_xact_lock(func.hashtext(file.id))))
            connection.execute(delete(FILES).where(FILES.c.id == file.id))
            connection.execute(insert(FILES), asdict(file))

        await self.write(work)

    async def check(self) -> None:
        """Returns if the database can be written; writes nothing.

        Raises: StoreUnavailableError.
        """
        await self.write(lambda connection: connection.execute(update(JOBS).where(JOBS.c.seq < 0).values(units=0)))

    def count(self, ends: Iterable[End]) -> None:
        """Counts jobs that ended, once that is written."""
        if self._metrics is not None:
            for end in ends:
                self._metrics.ended(end.error_type, created=end.created)

    def _count_retries(self, reason: str, number: int = 1) -> None:
        if self._metrics is not None:
            self._metrics.retried(reason, number)

    def _count_put_back(self, became: list[End | None]) -> int:
        ends = [end for end in became if end is not None]
        self.count(ends)
        self._count_retries("node lost", len(became) - len(ends))
        return len(became)

    # -- for the statements of other modules

    async def write(self, work: Callable[[Connection], T]) -> T:
        """What `work` gives; what it wrote is kept, all or nothing."""
        return await self._database.write(work)

    async def change(self, work: Callable[[Connection], T]) -> T:
        """As `write`, and tells of the change."""
        return await self._database.change(work)

    async def close(self) -> None:
        """Closes the database."""
        await self._database.close()


_RUNNING = JOBS.c.status == "IN_PROGRESS"
_UNBEGUN = and_(JOBS.c.start_by.is_not(None), JOBS.c.started.is_(None))
_BACKLOG = select(func.count(), func.coalesce(func.sum(JOBS.c.payload_size), 0)).where(JOBS.c.status == "IN_QUEUE")
_TRIED = (JOBS.c.seq, JOBS.c.attempts, JOBS.c.max_attempts, JOBS.c.cancel_requested, JOBS.c.created)


def late(now: float) -> ColumnElement[bool]:
    """Which jobs should have begun by `now` and have not. One that was begun and put back is in time."""
    return and_(JOBS.c.status == "IN_QUEUE", _UNBEGUN, JOBS.c.start_by <= now)


def _full(
    connection: Connection, more: int, *, max_waiting: int, max_bytes: int | None, sender: Sender
) -> SubmitOutcome | None:
    """Why no job of `more` bytes is taken now, if it is not."""
    waiting, size = connection.execute(_BACKLOG).one()
    if waiting >= max_waiting:
        return "queue full"
    if max_bytes is not None and waiting and size + more > max_bytes:
        return "queue too large"
    if sender.max_in_flight is not None:
        # why: two nodes that count at once must take turns, or each would find room for the last job
        connection.execute(select(KEYS.c.id).where(KEYS.c.id == sender.key_id).with_for_update())
        mine = and_(JOBS.c.key_id == sender.key_id, JOBS.c.status != "COMPLETED")
        if (connection.scalar(select(func.count()).where(mine)) or 0) >= sender.max_in_flight:
            return "too many in flight"
    return None


def _insert_job(connection: Connection, job_id: str, row: dict[str, Any], sender: Sender) -> None:
    connection.execute(insert(JOBS), row | {"id": job_id, "key_id": sender.key_id})
    if sender.webhook is not None:
        connection.execute(insert(WEBHOOKS), asdict(sender.webhook) | {"job_id": job_id, "next_try": 0.0})


def _put_back(connection: Connection, which: ColumnElement[bool], *, max_attempts: int) -> list[End | None]:
    """Puts jobs back or ends them; gives their ends, None for one that waits again."""
    # why: two nodes that look at the same time would each lock what the other waits for
    lost = select(*_TRIED).where(which).order_by(JOBS.c.seq).with_for_update(skip_locked=True)
    rows = connection.execute(lost).all()
    became: list[End | None] = []
    for row in rows:
        failure = given_up(row, max_attempts=max_attempts, how="the server that did it died or lost it")
        connection.execute(update(JOBS).where(JOBS.c.seq == row.seq).values(released(failure)))
        became.append(None if failure is None else End(failure.error_type, row.created))
    return became


def _held(claim: Claim) -> Any:
    return and_(
        JOBS.c.id == claim.id,
        JOBS.c.status == "IN_PROGRESS",
        JOBS.c.owner == claim.owner,
        JOBS.c.attempts == claim.attempt,
    )


def _standing(cancel_requested: int | None) -> Standing:
    if cancel_requested is None:
        return "lost"
    return "cancelled" if cancel_requested else "held"
