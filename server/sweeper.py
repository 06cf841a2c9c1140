"""Forgets what is past its time: expired files with their bytes, old jobs with their logs, and lost leases."""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable

from sqlalchemy import Connection, delete, select

from server.blobs import Blobs
from server.database import StoreUnavailableError
from server.records import Claim
from server.settings import Settings
from server.store import Store
from server.tables import FILES, JOBS, LOGS, WEBHOOKS
from server.uploads import Uploads

WATCH_SECONDS = 1.0
SWEEP_SECONDS = 60.0
BATCH = 500

log = logging.getLogger("ltxd.sweeper")


async def sweep(store: Store, blobs: Blobs, *, row_retention: float) -> None:
    """Forgets expired files and old finished jobs, oldest first, at most some hundreds at once.

    The bytes go first: a row whose bytes are gone is found by the next sweep, bytes without a row would stay for ever.
    Raises: StoreUnavailableError.
    """
    now = time.time()
    expired = select(FILES.c.id).where(FILES.c.expires <= now).order_by(FILES.c.expires).limit(BATCH)
    for file_id in await store.read(lambda connection: connection.scalars(expired).all()):
        await blobs.delete(file_id)
        await _drop(store, file_id)

    def forget(connection: Connection) -> None:
        finished = JOBS.c.finished <= now - row_retention
        old = connection.scalars(select(JOBS.c.id).where(finished).order_by(JOBS.c.finished).limit(BATCH)).all()
        connection.execute(delete(LOGS).where(LOGS.c.job_id.in_(old)))
        connection.execute(delete(WEBHOOKS).where(WEBHOOKS.c.job_id.in_(old)))
        connection.execute(delete(JOBS).where(JOBS.c.id.in_(old)))

    await store.write(forget)


async def _drop(store: Store, file_id: str) -> None:
    await store.write(lambda connection: connection.execute(delete(FILES).where(FILES.c.id == file_id)))


async def watch(settings: Settings, store: Store, *, held: Callable[[], Claim | None]) -> None:
    """Puts back the jobs that nobody does any more, for ever; `held` gives the one that this node does.

    They are those of lost nodes, and those of this one whose claim or end met a failure that it could not tell apart.
    """

    async def once() -> None:
        if back := await store.reclaim(max_attempts=settings.max_attempts, but=held()):
            log.warning("%d jobs that nobody did any more wait again or were tried too often", back)

    await _forever(once, every=WATCH_SECONDS)


async def keep_clean(settings: Settings, store: Store, blobs: Blobs, uploads: Uploads) -> None:
    """Sweeps for ever."""

    async def once() -> None:
        await sweep(store, blobs, row_retention=settings.row_retention)
        await uploads.sweep()

    await _forever(once, every=SWEEP_SECONDS)


async def _forever(work: Callable[[], Awaitable[None]], *, every: float) -> None:
    down = False
    while True:
        try:
            await work()
            down = False
        except StoreUnavailableError as error:
            # why: a database that is down for an hour is one line, not thousands
            if not down:
                log.error("waiting for the database: %s", error)
            down = True
        except Exception:
            log.exception("sweeping failed")
        await asyncio.sleep(every)
