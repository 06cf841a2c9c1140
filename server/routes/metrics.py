"""The page that Prometheus reads."""

from fastapi import APIRouter, Response

from server.agent import Agent
from server.metrics import CONTENT_TYPE, Metrics
from server.store import Store


def router(metrics: Metrics, store: Store, agent: Agent) -> APIRouter:
    """The route. Needs no key: it counts, and names neither caller nor job."""
    routes = APIRouter()

    @routes.get("/metrics")
    async def exposition() -> Response:
        waiting = await store.queue()
        text = metrics.exposition(waiting=waiting, running=agent.running, ready=agent.state.status == "ready")
        return Response(text, media_type=CONTENT_TYPE)

    return routes
