"""Jobs whose waiting caller went away, kept for a while for it to come back.

Node gives up a request after 300 s and sends it again: the same body then joins the job that it had started. Two
callers that wait at the same time keep their own jobs. All of it stands in the store, so that a caller finds its job
again after the server was started anew: a job's row says from when on its call counts as lost, and that time is put
off as long as somebody waits.
"""

import time

from sqlalchemy import ColumnElement, Connection, and_, func, or_, select, update

from server.endings import CANCELLED, ended
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
        await self._set(job_id, time.time() + ATTENDED_SECONDS)

    async def leave(self, job_id: str) -> None:
        """Orphans the job: its caller's connection is lost, and was before the job ended if it has."""
        await self._set(job_id, func.coalesce(JOBS.c.finished, time.time()))

    async def _set(self, job_id: str, orphaned: object) -> None:
        called = update(JOBS).where(JOBS.c.id == job_id, JOBS.c.asked.is_not(None)).values(orphaned=orphaned)
        await self._store.change(lambda connection: connection.execute(called))

    async def adopt(self, asked: str, *, instead_of: str | None = None) -> str | None:
        """The oldest orphan of an equal call that still runs or has ended lately, no orphan any more; or None.

        It takes the place of the job `instead_of`, which ends; if that is older or has begun, nothing happens.
        """
        oldest = select(JOBS.c.seq).where(_adoptable(asked)).order_by(JOBS.c.seq).limit(1)

        def work(connection: Connection) -> str | None:
            seq = connection.scalar(oldest.with_for_update(skip_locked=True))
            if seq is None:
                return None
            if instead_of is not None:
                behind = and_(JOBS.c.id == instead_of, JOBS.c.status == "IN_QUEUE", JOBS.c.seq > seq)
                if not connection.execute(update(JOBS).where(behind).values(ended(failure=CANCELLED))).rowcount:
                    return None
            one = (
                update(JOBS)
                .where(JOBS.c.seq == seq)
                .values(orphaned=time.time() + ATTENDED_SECONDS)
                .returning(JOBS.c.id)
            )
            return str(connection.execute(one).scalar_one())

        # why: almost no call has an orphan, and looking is cheaper than a turn at the writer
        if await self._store.read(lambda connection: connection.scalar(oldest)) is None:
            return None
        return await self._store.change(work)


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
