"""Jobs whose waiting caller went away, kept for a while for it to come back.

Node gives up a request after 300 s and sends it again: the same body then joins the job that it had started. Two
callers that wait at the same time keep their own jobs, also when one is lost. All of it stands in the store, so that a
caller finds its job again after the server was started anew: a row says from when on its call counts as lost, and
that time is put off as long as somebody waits.
"""

import time

from sqlalchemy import ColumnElement, Connection, and_, func, or_, select, update

from server.endings import CANCELLED, ended
from server.records import End
from server.store import Store
from server.tables import JOBS
from server.terms import ATTENDED_SECONDS

REMEMBER_SECONDS = 600.0
CANCELLED_STATUS = 499


class Orphans:
    """The orphaned jobs, by the digest of what was asked."""

    def __init__(self, store: Store) -> None:
        self._store = store

    async def attend(self, job_id: str) -> None:
        """Says that the job's caller still waits. To be said again within `ATTENDED_SECONDS`."""
        now = time.time()
        await self._set(job_id, orphaned=now + ATTENDED_SECONDS, seen=now)

    async def leave(self, job_id: str) -> None:
        """Orphans the job: its caller's connection is lost, and was before the job ended if it has."""
        now = time.time()
        await self._set(job_id, orphaned=func.coalesce(JOBS.c.finished, now), seen=now)

    async def _set(self, job_id: str, *, orphaned: object, seen: float) -> None:
        called = update(JOBS).where(JOBS.c.id == job_id, JOBS.c.asked.is_not(None))
        called = called.values(orphaned=orphaned, seen=seen)
        await self._store.change(lambda connection: connection.execute(called))

    async def adopt(self, asked: str, *, instead_of: str | None = None) -> str | None:
        """The oldest orphan of an equal call that still runs or has ended lately, no orphan any more; or None.

        It takes the place of the job `instead_of`, which ends; if that has begun, nothing happens. Its caller was then
        last seen before that job was submitted: two who waited at the same time each keep their own.
        """
        which = _adoptable(asked)
        if instead_of is not None:
            which = and_(which, JOBS.c.seen < select(_OWN.c.created).where(_OWN.c.id == instead_of).scalar_subquery())
        oldest = select(JOBS.c.seq).where(which).order_by(JOBS.c.seq).limit(1)

        def work(connection: Connection) -> tuple[str | None, list[End]]:
            seq = connection.scalar(oldest.with_for_update(skip_locked=True))
            if seq is None:
                return None, []
            ends = []
            if instead_of is not None:
                waits = and_(JOBS.c.id == instead_of, JOBS.c.status == "IN_QUEUE")
                end = update(JOBS).where(waits).values(ended(failure=CANCELLED)).returning(JOBS.c.created)
                created = connection.scalar(end)
                if created is None:
                    return None, []
                ends.append(End(CANCELLED.error_type, created))
            now = time.time()
            one = (
                update(JOBS)
                .where(JOBS.c.seq == seq)
                .values(orphaned=now + ATTENDED_SECONDS, seen=now)
                .returning(JOBS.c.id)
            )
            return str(connection.execute(one).scalar_one()), ends

        # why: almost no call has an orphan, and looking is cheaper than a turn at the writer
        if await self._store.read(lambda connection: connection.scalar(oldest)) is None:
            return None
        adopted, ends = await self._store.change(work)
        self._store.count(ends)
        return adopted


_OWN = JOBS.alias()


def _adoptable(asked: str) -> ColumnElement[bool]:
    now = time.time()
    return and_(
        JOBS.c.asked == asked,
        JOBS.c.orphaned <= now,
        JOBS.c.cancel_requested == 0,
        # why: a job whose answer was sent is nobody's orphan, however long ago its caller was last seen to
        or_(
            JOBS.c.finished.is_(None),
            and_(JOBS.c.orphaned <= JOBS.c.finished, JOBS.c.finished > now - REMEMBER_SECONDS),
        ),
        or_(JOBS.c.http_status.is_(None), JOBS.c.http_status != CANCELLED_STATUS),
    )
