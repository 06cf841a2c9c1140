"""The queue host: submit, status, result, cancel. Every answer about a job is found by its id alone."""

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

from fastapi import APIRouter, Request, Response
from starlette.responses import StreamingResponse

from server.agent import Agent
from server.answers import caller, deliver, fail, key_id_of, key_of, read_body, reply
from server.database import StoreUnavailableError
from server.errors import FalError, plain
from server.jobs import JobNotFoundError, Jobs
from server.keys import sender_of
from server.schema import APP, ENDPOINT
from server.settings import Settings
from server.shortcut import answer_status
from server.statuses import links, status_body, wants_logs
from server.terms import terms_of
from server.webhooks import target

PING_SECONDS = 15.0


def router(settings: Settings, jobs: Jobs, agent: Agent) -> APIRouter:
    """The routes."""
    routes = APIRouter()

    @routes.post(f"/queue/{ENDPOINT}")
    async def submit(request: Request) -> Response:
        body = await read_body(request)
        limit = _max_waiting(request, settings)
        key, url = key_of(request), request.query_params.get("fal_webhook")
        origin, allowed = caller(request).origin, settings.allow_private_networks
        sender = sender_of(key, None if url is None else target(url, origin=origin, key=key, allowed=allowed))
        terms = terms_of(request.headers)
        try:
            given = await jobs.parse(body)
        except FalError as error:
            # why: fal accepts any body, and the model's refusal is the job's result
            job_id = await jobs.submit_failed(error.failure, max_waiting=limit, sender=sender)
        else:
            job_id = await jobs.submit(given, terms=terms, max_waiting=limit, sender=sender)
        job = await jobs.get(job_id)
        answer = links(job_id, caller(request).base) | {
            "status": "IN_QUEUE",
            "queue_position": job.position,
            "logs": None,
            "metrics": {},
        }
        return reply(answer, headers={"x-fal-request-id": job_id})

    async def status(request: Request, job_id: str) -> Response:
        return await answer_status(jobs, request.scope, job_id)

    async def status_stream(request: Request, job_id: str) -> Response:
        await jobs.own(job_id, key_id_of(request))
        wanted = wants_logs(request.scope["query_string"])
        events = _events(jobs, agent, job_id, base=caller(request).base, logs=wanted)
        headers = {"x-fal-request-id": job_id, "cache-control": "no-cache"}
        return StreamingResponse(events, headers=headers, media_type="text/event-stream")

    async def result(request: Request, job_id: str) -> Response:
        job = await jobs.own(job_id, key_id_of(request))
        if job.status != "COMPLETED":
            return fail(plain("bad_request", "Request is still in progress"), request_id=job_id)
        try:
            output = await jobs.output(job, origin=caller(request).origin)
        except FalError as error:
            return fail(error.failure, request_id=job_id)
        return await deliver(output, job)

    async def cancel(request: Request, job_id: str) -> Response:
        await jobs.own(job_id, key_id_of(request))
        outcome = await jobs.store.cancel(job_id)
        if outcome == "NOT_FOUND":
            raise JobNotFoundError(job_id)
        code = 202 if outcome == "CANCELLATION_REQUESTED" else 400
        return reply({"status": outcome}, status=code, headers={"x-fal-request-id": job_id})

    for app in (APP, ENDPOINT):
        path = f"/queue/{app}/requests/{{job_id}}"
        routes.get(f"{path}/status")(status)
        routes.get(f"{path}/status/stream")(status_stream)
        routes.get(path)(result)
        routes.get(f"{path}/response")(result)
        routes.put(f"{path}/cancel")(cancel)
    return routes


async def _events(jobs: Jobs, agent: Agent, job_id: str, *, base: str, logs: bool) -> AsyncIterator[str]:
    """The status at every change, each with only the log lines that are new, until the job has ended."""
    told: dict[str, Any] = {}
    lines = 0
    quiet_since = asyncio.get_running_loop().time()
    while not agent.draining:
        seen = jobs.rings
        try:
            job, new = await jobs.store.look(job_id, logs=logs, after=lines)
        except StoreUnavailableError:
            await jobs.change(jobs.rings)
            continue
        if job is None:
            return
        body = status_body(job, base=base, logs=new)
        if new or body | {"logs": None} != told:
            lines += len(new or [])
            told = body | {"logs": None}
            quiet_since = asyncio.get_running_loop().time()
            yield f"data: {json.dumps(body)}\n\n"
        elif asyncio.get_running_loop().time() - quiet_since > PING_SECONDS:
            quiet_since = asyncio.get_running_loop().time()
            yield ": ping\n\n"
        if job.status == "COMPLETED":
            return
        await jobs.change(seen)


def _max_waiting(request: Request, settings: Settings) -> int:
    """The most jobs that may wait before this one is refused.

    Raises: FalError.
    """
    text = request.query_params.get("fal_max_queue_length")
    if text is None:
        return settings.max_queue_length
    if not text.isascii() or not text.isdigit() or not 0 < len(text) < 10:
        raise FalError(plain("bad_request", f"fal_max_queue_length is {text!r}, not a whole number"))
    # why: "more are waiting" than that refuses, so as many may wait and one more
    return min(int(text) + 1, settings.max_queue_length)
