"""The HTTP application: the edge that every request passes, and the routes behind it."""

import uuid

from fastapi import FastAPI, Request, Response
from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from server.access import Access, UnauthorizedError
from server.agent import Agent
from server.answers import caller, fail, reply
from server.blobs import Blobs
from server.errors import FalError, plain
from server.gate import cors, preflight, refusal
from server.jobs import JobNotFoundError, Jobs
from server.limits import bounded, limit_of, too_long
from server.metrics import Metrics
from server.orphans import Orphans
from server.roles import PROXY_PATH, NotFalError, resolve
from server.routes import files, health, queue, run, site, tokens
from server.routes import metrics as counting
from server.routes import uploads as uploading
from server.schema import APP
from server.settings import Settings
from server.shortcut import Shortcut
from server.signing import Signer
from server.store import Store
from server.troubles import answer_troubles
from server.uploads import Uploads

REQUEST_ID = "x-fal-request-id"
NOT_AGAIN = {"x-fal-retryable": "false", "x-fal-needs-retry": "0"}
"""What an error says unless it knows better."""


def create_app(
    settings: Settings,
    *,
    store: Store,
    blobs: Blobs,
    jobs: Jobs,
    agent: Agent,
    metrics: Metrics,
    orphans: Orphans,
    uploads: Uploads,
    access: Access,
    signer: Signer,
) -> ASGIApp:
    """The application."""
    app = FastAPI(openapi_url=None, redirect_slashes=False)
    app.include_router(health.router(settings, store, blobs, agent))
    app.include_router(counting.router(metrics, store, agent))
    if settings.role != "worker":
        app.include_router(run.router(settings, jobs, orphans))
        app.include_router(queue.router(settings, jobs, agent))
        app.include_router(files.router(store, blobs))
        app.include_router(uploading.router(uploads, access))
        app.include_router(site.router())
        app.include_router(tokens.router(access, signer))
    answer_troubles(app)

    @app.exception_handler(FalError)
    async def answer_failure(_request: Request, error: FalError) -> Response:
        if error.failure.status in (422, 429, 503):
            metrics.ended(error.failure.error_type, created=None)
        return fail(error.failure)

    @app.exception_handler(JobNotFoundError)
    async def answer_unknown_job(_request: Request, _error: JobNotFoundError) -> Response:
        return reply({"status": "NOT_FOUND"}, status=404, headers={"x-fal-error-type": "not_found"})

    @app.exception_handler(HTTPException)
    async def answer_unknown_path(request: Request, error: HTTPException) -> Response:
        called = caller(request)
        if error.status_code == 405:
            answer = fail(plain("method_not_allowed", f"{request.method} is not allowed on {called.path}"))
            answer.headers.update(error.headers or {})
            return answer
        if called.role in ("run", "queue") and called.path.startswith("/fal-ai/"):
            if not f"{called.path}/".startswith(f"/{APP}/"):
                name = "/".join(called.path.split("/")[2:3])
                return _unknown(f'Application "{name}" not found')
            return _unknown(f"Path /{called.path.removeprefix(f'/{APP}').strip('/')} not found")
        return _unknown(f"Path {called.path} not found")

    @app.exception_handler(Exception)
    async def answer_fault(_request: Request, _error: Exception) -> Response:
        return fail(plain("internal_error", "Internal error"))

    inner = app if settings.role == "worker" else Shortcut(app, jobs)
    return Edge(inner, settings, access)


def _unknown(detail: str) -> Response:
    # why: fal tells the type of this one in no body
    return reply(
        {"detail": detail}, status=404, headers={"x-fal-error-type": "not_found", "x-fal-billable-units": "0"}
    )


class Edge:
    """Refuses strangers, finds the role of each request, and puts on every answer what all have in common."""

    def __init__(self, app: ASGIApp, settings: Settings, access: Access) -> None:
        self._app = app
        self._settings = settings
        self._access = access

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Passes one request on."""
        if scope["type"] != "http":
            await self._app({**scope, "caller": None}, receive, send)
            return
        await self._access.keys.refresh()
        headers = Headers(scope=scope)
        origin = headers.get("origin")
        asked_for_file = scope["path"].startswith("/files/") and scope["method"] in ("GET", "HEAD", "OPTIONS")
        # why: with a target URL the path says nothing of where the request goes
        file = asked_for_file and "x-fal-target-url" not in headers
        any_page = file or not self._access.keyless
        common = {"x-content-type-options": "nosniff"}
        why = refusal(headers, self._settings, any_page=any_page)
        if any_page:
            common |= cors(None)
        elif origin is not None and why is None:
            common |= cors(origin)

        async def send_with_common(message: Message) -> None:
            if message["type"] == "http.response.start":
                answer = MutableHeaders(scope=message)
                for name, value in (common | NOT_AGAIN if message["status"] >= 400 else common).items():
                    answer.setdefault(name, value)
                if REQUEST_ID not in answer:
                    answer[REQUEST_ID] = str(uuid.uuid4())
            await send(message)

        early = self._early(scope, headers, why)
        if early is not None:
            await early(scope, receive, send_with_common)
            return
        try:
            target = resolve(
                scheme=scope["scheme"],
                host=headers.get("host", ""),
                path=scope["path"],
                target_url=headers.get("x-fal-target-url"),
            )
        except NotFalError:
            await reply("Invalid request", status=412)(scope, receive, send_with_common)
            return
        query = scope["query_string"] if target.query is None else target.query.encode()
        try:
            key, until = self._access.key(target, headers, query.decode("latin-1"))
        except UnauthorizedError as error:
            answer = reply({"detail": str(error)}, status=401, headers={"www-authenticate": "Key"})
            await answer(scope, receive, send_with_common)
            return
        limit = limit_of(target.path, self._settings)
        if (failure := too_long(headers, limit=limit)) is not None:
            await fail(failure)(scope, receive, send_with_common)
            return
        inner = {**scope, "path": target.path, "raw_path": target.path.encode(), "query_string": query}
        inner |= {"caller": target.caller, "key": key, "until": until}
        await self._app(inner, bounded(receive, limit=limit), send_with_common)

    @staticmethod
    def _early(scope: Scope, headers: Headers, why: str | None) -> Response | None:
        """The answer to a request that goes no further, because of `why` or for another reason."""
        if why is not None:
            return fail(plain("forbidden", why))
        if scope["method"] == "OPTIONS" and "access-control-request-method" in headers:
            return Response(status_code=204, headers=preflight())
        if scope["path"].rstrip("/") == PROXY_PATH and "x-fal-target-url" not in headers:
            return reply("Invalid request", status=400)
        return None
