"""Health: `live` while the process works, `ready` once jobs can be done here, and the whole state in words.

It is public, so that what a database or a file store says of itself goes to the log alone, and that the storage is
tried at most once a second however many ask.
"""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from dataclasses import asdict, dataclass
from typing import Any

from fastapi import APIRouter, Response

from server.agent import Agent
from server.answers import reply
from server.blobs import Blobs, BlobsUnavailableError
from server.database import StoreUnavailableError
from server.disk import free_bytes
from server.settings import Settings
from server.store import Store

KEEP_SECONDS = 1.0
PATIENCE_SECONDS = 4.0
"""Shorter than a probe waits. A bucket or a database that is silent for so long cannot be used."""

SILENT = f"the database or the file store has not answered for {PATIENCE_SECONDS:g} s"

log = logging.getLogger("ltxd.health")


@dataclass(frozen=True, slots=True)
class Storage:
    """How the database and the file store are."""

    ailing: str | None
    """What keeps jobs from being kept, if anything does."""

    waiting: int | None
    """The number of waiting jobs, if the database tells it."""


class Glance:
    """What `look` sees, tried by one caller for all who ask at the same time or within `KEEP_SECONDS` after."""

    def __init__(self, look: Callable[[], Awaitable[Storage]]) -> None:
        self._look = look
        self._last: asyncio.Task[Storage] | None = None
        self._good_until = 0.0

    async def storage(self) -> Storage:
        """How it is now, or was `KEEP_SECONDS` ago."""
        if self._last is None or (self._last.done() and time.monotonic() >= self._good_until):
            self._last = asyncio.create_task(self._try())
        try:
            # why: one caller who goes away must not take the answer from the others
            return await asyncio.wait_for(asyncio.shield(self._last), PATIENCE_SECONDS)
        except TimeoutError:
            return Storage(SILENT, None)

    async def _try(self) -> Storage:
        began = time.monotonic()
        try:
            return await self._look()
        finally:
            self._good_until = began + KEEP_SECONDS


def router(settings: Settings, store: Store, blobs: Blobs, agent: Agent) -> APIRouter:
    """The routes."""
    routes = APIRouter()

    async def look() -> Storage:
        waiting = None
        try:
            # why: a database that only reads can still tell it
            waiting = await store.waiting()
            await store.check()
            await blobs.check()
            free = free_bytes(settings.data)
        except StoreUnavailableError as error:
            log.warning("%s", error)
            return Storage("the database cannot be used at the moment; the log says more", waiting)
        except BlobsUnavailableError as error:
            log.warning("files cannot be kept: %s", error)
            return Storage("the file store cannot be used at the moment; the log says more", waiting)
        except OSError as error:
            log.warning("files cannot be kept: %s", error)
            return Storage(f"files cannot be kept: {error.strerror or 'the log says more'}", waiting)
        if free < settings.min_free_bytes:
            least = settings.min_free_bytes
            return Storage(f"the disk has {free} bytes left; at least {least} are kept", waiting)
        return Storage(None, waiting)

    glance = Glance(look)

    async def state() -> dict[str, Any]:
        storage = await glance.storage()
        model = agent.state.model
        status: str = agent.state.status
        if agent.draining:
            status = "draining"
        elif storage.ailing is not None:
            status = "storage_unavailable"
        elif status == "none":
            status = "ready"
        return {
            "status": status,
            "role": settings.role,
            "weights": model and model.weights,
            "demo": model and model.demo,
            "model": model and asdict(model),
            "error": agent.state.error or storage.ailing,
            "queue_length": storage.waiting,
            "running": agent.running,
        }

    @routes.get("/health")
    async def health() -> Response:
        return reply(await state())

    @routes.get("/health/live")
    async def live() -> Response:
        return reply({"status": "live"})

    @routes.get("/health/ready")
    async def ready() -> Response:
        now = await state()
        return reply(now, status=200 if now["status"] == "ready" else 503)

    return routes
