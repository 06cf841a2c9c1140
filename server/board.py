"""What callers ask for again and again, the status of a job, read from the database once for each change.

fal's clients ask ten times a second for each waiting call. Between two changes the answer is the same.
"""

import asyncio
import time

from server.bell import Bell
from server.database import StoreUnavailableError
from server.records import Job, LogLine
from server.store import Store

KEEP_SECONDS = 1.0
"""How long an answer is good without a change: what only time changes, such as an expired row, is seen by then."""

Seen = tuple[Job | None, list[LogLine] | None]


class Board:
    """Jobs and their logs as they stood when the bell last rang. A database that other nodes change is always read."""

    def __init__(self, store: Store, bell: Bell) -> None:
        self._store = store
        self._bell = bell
        self._lookups: dict[tuple[str, bool], asyncio.Task[Seen]] = {}
        self._rings = bell.rings
        self._since = time.monotonic()

    async def look(self, job_id: str, *, logs: bool) -> Seen:
        """The job, or None; and its log, if wanted."""
        if self._store.shared:
            return await self._store.look(job_id, logs=logs)
        now = time.monotonic()
        if self._bell.rings != self._rings or now - self._since > KEEP_SECONDS:
            # why: a lookup that began before the ring may have seen what was before
            self._lookups, self._rings, self._since = {}, self._bell.rings, now
        lookups, wanted = self._lookups, (job_id, logs)
        lookup = lookups.get(wanted)
        if lookup is None:
            lookup = lookups[wanted] = asyncio.create_task(self._store.look(job_id, logs=logs))
        try:
            # why: one caller who goes away must not take the answer from the others
            seen = await asyncio.shield(lookup)
        except StoreUnavailableError:
            lookups.pop(wanted, None)
            raise
        if seen[0] is None:
            # why: a stranger could fill the board with names of nothing
            lookups.pop(wanted, None)
        return seen
