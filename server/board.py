"""What callers ask for again and again, the status of a job, read and worded once for each change.

fal's clients ask ten times a second for each waiting call. Between two changes the answer is the same.
"""

import asyncio
import time

from server.bell import Bell
from server.database import StoreUnavailableError
from server.statuses import Status, status_of
from server.store import Store

KEEP_SECONDS = 1.0
"""How long an answer is good without a change: what only time changes, such as an expired row, is seen by then."""


class Board:
    """Statuses as they stood when the bell last rang. A database that other nodes change is always read."""

    def __init__(self, store: Store, bell: Bell) -> None:
        self._store = store
        self._bell = bell
        # why: there is no end of names to call the server by, so that only the last one is kept of each job
        self._lookups: dict[tuple[str, bool], tuple[str, asyncio.Task[Status | None]]] = {}
        self._rings = bell.rings
        self._since = time.monotonic()

    async def look(self, job_id: str, *, logs: bool, base: str) -> Status | None:
        """The status of the job, or None; with its log, if wanted, and links that begin with `base`."""
        if self._store.shared:
            return await self._read(job_id, logs=logs, base=base)
        now = time.monotonic()
        if self._bell.rings != self._rings or now - self._since > KEEP_SECONDS:
            # why: a lookup that began before the ring may have seen what was before
            self._lookups, self._rings, self._since = {}, self._bell.rings, now
        lookups, wanted = self._lookups, (job_id, logs)
        known, lookup = lookups.get(wanted, (None, None))
        if lookup is None or known != base:
            lookup = asyncio.create_task(self._read(job_id, logs=logs, base=base))
            lookups[wanted] = base, lookup
        try:
            # why: one caller who goes away must not take the answer from the others
            status = await asyncio.shield(lookup)
        except StoreUnavailableError:
            lookups.pop(wanted, None)
            raise
        if status is None:
            # why: a stranger could fill the board with names of nothing
            lookups.pop(wanted, None)
        return status

    async def _read(self, job_id: str, *, logs: bool, base: str) -> Status | None:
        job, lines = await self._store.look(job_id, logs=logs)
        return None if job is None else status_of(job, base=base, logs=lines)
