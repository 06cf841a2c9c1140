"""What describes the endpoint: the OpenAPI document, the page for people, the page for language models."""

from fastapi import APIRouter, Request, Response

from server.answers import caller, reply
from server.model_page import ModelPage
from server.openapi import document
from server.roles import HOSTS, hostname
from server.schema import ENDPOINT

OPENAPI_PATH = "/api/openapi/queue/openapi.json"
# why: the page is made of a style and text; nothing on it may load or run
PAGE_POLICY = "default-src 'none'; style-src 'unsafe-inline'"


def router() -> APIRouter:
    """The routes."""
    routes = APIRouter()
    page = ModelPage()

    @routes.get(OPENAPI_PATH)
    async def openapi(request: Request) -> Response:
        if request.query_params.get("endpoint_id") != ENDPOINT:
            return reply(None, status=404)
        origin = caller(request).origin
        named = HOSTS.get(hostname(request.headers.get("host", "")))
        queue_url = f"{origin}/queue" if named is None else "https://queue.fal.run"
        return reply(document(queue_url=queue_url, docs_url=f"{origin}/docs"))

    @routes.get("/docs")
    async def docs(request: Request) -> Response:
        text = page.html(origin=caller(request).origin, openapi_url=_openapi_url(request))
        return Response(text, headers={"content-security-policy": PAGE_POLICY}, media_type="text/html")

    @routes.get(f"/models/{ENDPOINT}/llms.txt")
    async def llms(request: Request) -> Response:
        text = page.llms(origin=caller(request).origin, openapi_url=_openapi_url(request))
        return Response(text, media_type="text/plain")

    return routes


def _openapi_url(request: Request) -> str:
    return f"{caller(request).origin}{OPENAPI_PATH}?endpoint_id={ENDPOINT}"
