"""Health: `live` while the process works, `ready` once the model can generate, and the whole state in words."""

from dataclasses import asdict
from typing import Any

from fastapi import APIRouter, Response

from server.agent import Agent
from server.answers import reply
from server.store import Store


def router(store: Store, agent: Agent) -> APIRouter:
    """The routes."""
    routes = APIRouter()

    async def state() -> dict[str, Any]:
        model = agent.state.model
        return {
            "status": "draining" if agent.draining else agent.state.status,
            "weights": model and model.weights,
            "demo": model and model.demo,
            "model": model and asdict(model),
            "error": agent.state.error,
            "queue_length": await store.waiting(),
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
