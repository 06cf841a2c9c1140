"""Ends jobs whose time is over: those that did not begin when their caller wished, and orphans nobody claimed."""

import asyncio
import logging
import time

from sqlalchemy import Connection, and_, func, select, update

from server.bell import Bell
from server.database import StoreUnavailableError
from server.endings import CANCELLED, ended
from server.errors import plain
from server.records import End
from server.store import Store, late
from server.tables import JOBS

RECHECK_SECONDS = 1.0
NOT_STARTED = plain("request_timeout", "The request did not start within the time that X-Fal-Request-Timeout allows")

log = logging.getLogger("ltxd.deadlines")


async def keep_deadlines(store: Store, bell: Bell, *, orphan_seconds: float) -> None:
    """Ends what is due, for ever."""
    while True:
        seen = bell.rings
        try:
            due = await store.read(lambda connection: _next_due(connection, orphan_seconds))
            if due is not None and due <= time.time():
                store.count(await store.change(lambda connection: _end_due(connection, orphan_seconds)))
                continue
        except StoreUnavailableError:
            # why: others tell of it, once
            due = None
            await asyncio.sleep(RECHECK_SECONDS)
        except Exception:
            log.exception("deadlines cannot be kept at the moment")
            due = None
            await asyncio.sleep(RECHECK_SECONDS)
        left = RECHECK_SECONDS if due is None else max(0.0, due - time.time())
        await bell.wait(seen, at_most=min(left, RECHECK_SECONDS))


# built once: they are asked at every change
_FIRST_START = select(func.min(JOBS.c.start_by)).where(JOBS.c.status == "IN_QUEUE", JOBS.c.started.is_(None))
_FIRST_ORPHAN = select(func.min(JOBS.c.orphaned)).where(JOBS.c.finished.is_(None), JOBS.c.cancel_requested == 0)


def _next_due(connection: Connection, orphan_seconds: float) -> float | None:
    start, orphaned = connection.scalar(_FIRST_START), connection.scalar(_FIRST_ORPHAN)
    dues = [start, None if orphaned is None else orphaned + orphan_seconds]
    return min((due for due in dues if due is not None), default=None)


def _end_due(connection: Connection, orphan_seconds: float) -> list[End]:
    """Ends the waiting jobs that are due, and gives their ends; asks for the end of running ones."""
    now = time.time()
    unclaimed = JOBS.c.orphaned <= now - orphan_seconds
    waiting, running = JOBS.c.status == "IN_QUEUE", JOBS.c.status == "IN_PROGRESS"
    ends = [
        End(failure.error_type, created)
        for which, failure in ((late(now), NOT_STARTED), (and_(unclaimed, waiting), CANCELLED))
        for created in connection.scalars(
            update(JOBS).where(which).values(ended(failure=failure)).returning(JOBS.c.created)
        ).all()
    ]
    connection.execute(update(JOBS).where(unclaimed, running).values(cancel_requested=1))
    return ends
