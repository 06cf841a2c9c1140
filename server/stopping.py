"""Why an attempt stops before its clip is made: watched for as long as it goes on, while its lease is kept."""

import asyncio
import contextlib
import time
from collections.abc import Awaitable
from typing import Literal, TypeVar

from server.bell import Bell
from server.database import StoreUnavailableError
from server.records import Claim
from server.settings import Settings
from server.store import Store

RECHECK_SECONDS = 1.0

Reason = Literal["cancelled", "lost", "late", "handed back"]
"""Its caller's wish, another node has the job, the job's time is over, the node drains."""

T = TypeVar("T")


class StoppedError(Exception):
    """The attempt is to end without a clip."""

    def __init__(self, reason: Reason) -> None:
        super().__init__(reason)
        self.reason = reason


async def reason_to_stop(
    claim: Claim, store: Store, *, settings: Settings, bell: Bell, handing_back: asyncio.Event
) -> Reason:
    """Keeps the lease; returns once the attempt is to stop. A database that is away is none."""
    renewed = time.monotonic()
    while True:
        seen = bell.rings
        if handing_back.is_set():
            return "handed back"
        if time.time() - claim.started > settings.job_timeout:
            return "late"
        with contextlib.suppress(StoreUnavailableError):
            if time.monotonic() - renewed < settings.lease_seconds / 6:
                standing = await store.standing(claim)
            else:
                standing = await store.renew(claim, lease=settings.lease_seconds)
                renewed = time.monotonic()
            if standing != "held":
                return standing
        await bell.wait(seen, at_most=RECHECK_SECONDS)


async def unless(stop: asyncio.Task[Reason], work: Awaitable[T]) -> T:
    """What `work` gives.

    Raises: StoppedError if there is a reason to stop before it is done.
    """
    task = asyncio.ensure_future(work)
    await asyncio.wait({task, stop}, return_when=asyncio.FIRST_COMPLETED)
    if not task.done():
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        raise StoppedError(stop.result())
    return task.result()
