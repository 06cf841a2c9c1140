"""Jobs whose waiting caller went away, kept for a while for it to come back.

Node gives up a request after 300 s and sends it again: the same body then joins the job it had started. Two callers
that wait at the same time keep their own jobs.
"""

import asyncio

from server.store import Store

KEEP_SECONDS = 600.0


class Orphans:
    """The orphaned jobs, by what was asked."""

    def __init__(self, store: Store, *, seconds: float) -> None:
        self._store = store
        self._seconds = seconds
        self._jobs: dict[str, list[str]] = {}
        self._timers: dict[str, asyncio.Task[None]] = {}

    def leave(self, key: str, job_id: str) -> None:
        """Takes in a job; it is cancelled after a while, unless adopted."""
        self._jobs.setdefault(key, []).append(job_id)
        self._timers[job_id] = asyncio.create_task(self._give_up(key, job_id))

    def adopt(self, key: str) -> str | None:
        """A job that was left under `key`, or None."""
        waiting = self._jobs.get(key)
        if not waiting:
            return None
        job_id = waiting[0]
        self._timers[job_id].cancel()
        self._forget(key, job_id)
        return job_id

    async def close(self) -> None:
        """Stops waiting for anyone."""
        timers = list(self._timers.values())
        for timer in timers:
            timer.cancel()
        await asyncio.gather(*timers, return_exceptions=True)

    async def _give_up(self, key: str, job_id: str) -> None:
        await asyncio.sleep(self._seconds)
        if await self._store.cancel(job_id) == "ALREADY_COMPLETED":
            await asyncio.sleep(KEEP_SECONDS - self._seconds)
        self._forget(key, job_id)

    def _forget(self, key: str, job_id: str) -> None:
        del self._timers[job_id]
        self._jobs[key].remove(job_id)
        if not self._jobs[key]:
            del self._jobs[key]
