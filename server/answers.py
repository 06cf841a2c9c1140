"""Answers and bodies of requests, as bytes."""

import asyncio
import json
from collections.abc import Mapping
from typing import Any

from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from server.errors import Failure, FalError, plain
from server.keys import Key
from server.records import Job
from server.roles import Caller
from server.tokens import Holder


def reply(content: Any, *, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """A JSON answer, escaped to ASCII: so no text fails, and no client garbles a character that was cut in two."""
    return Response(json.dumps(content), status, headers=dict(headers or {}), media_type="application/json")


async def deliver(output: dict[str, Any], job: Job) -> Response:
    """The answer with the job's result; written on another thread, for the whole clip may be within (`sync_mode`)."""
    headers = {"x-fal-request-id": job.id, "x-fal-billable-units": str(job.units)}
    return await asyncio.to_thread(reply, output, headers=headers)


def fail(failure: Failure, *, request_id: str | None = None) -> Response:
    """The answer that tells of `failure`."""
    headers = failure.headers()
    if request_id is not None:
        headers["x-fal-request-id"] = request_id
    return reply(failure.body(), status=failure.status, headers=headers)


def caller(request: Request) -> Caller:
    """How the server was called."""
    found: Caller = request.scope["caller"]
    return found


def key_of(request: Request) -> Key | None:
    """Whose key the request carries; None while there are no keys."""
    found: Key | None = request.scope["key"]
    return found


def key_id_of(request: Request) -> str | None:
    """The id of the request's key; None while there are no keys."""
    key = key_of(request)
    return None if key is None else key.id


def holder_of(request: Request) -> Holder:
    """Who uploads by the request. Its token was read before its body, and may have ended meanwhile."""
    return Holder(key_id_of(request), request.scope["until"])


async def read_body(request: Request) -> bytes:
    """The whole body, which the edge has bounded.

    Raises: FalError.
    """
    try:
        return await request.body()
    except ClientDisconnect as error:
        raise FalError(plain("client_disconnected", "The client went away")) from error
