"""Health: `live` while the process works, `ready` once jobs can be done here, and the whole state in words.

It is public, so that what a database or a file store says of itself goes to the log alone.
"""

import logging
from dataclasses import asdict
from typing import Any

from fastapi import APIRouter, Response

from server.agent import Agent
from server.answers import reply
from server.blobs import Blobs, BlobsUnavailableError
from server.database import StoreUnavailableError
from server.disk import free_bytes
from server.settings import Settings
from server.store import Store

log = logging.getLogger("ltxd.health")


def router(settings: Settings, store: Store, blobs: Blobs, agent: Agent) -> APIRouter:
    """The routes."""
    routes = APIRouter()

    async def trouble() -> str | None:
        """What keeps jobs from being kept, if anything does."""
        try:
            await store.check()
            await blobs.check()
        except StoreUnavailableError as error:
            log.warning("%s", error)
            return "the database cannot be used at the moment; the log says more"
        except BlobsUnavailableError as error:
            log.warning("files cannot be kept: %s", error)
            return "the file store cannot be used at the moment; the log says more"
        except OSError as error:
            log.warning("files cannot be kept: %s", error)
            return f"files cannot be kept: {error.strerror or 'the log says more'}"
        free = free_bytes(settings.data)
        if free < settings.min_free_bytes:
            return f"the disk has {free} bytes left; at least {settings.min_free_bytes} are kept"
        return None

    async def state() -> dict[str, Any]:
        ailing = await trouble()
        model = agent.state.model
        status: str = agent.state.status
        if agent.draining:
            status = "draining"
        elif ailing is not None:
            status = "storage_unavailable"
        elif status == "none":
            status = "ready"
        try:
            waiting = await store.waiting()
        except StoreUnavailableError:
            waiting = None
        return {
            "status": status,
            "role": settings.role,
            "weights": model and model.weights,
            "demo": model and model.demo,
            "model": model and asdict(model),
            "error": agent.state.error or ailing,
            "queue_length": waiting,
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
