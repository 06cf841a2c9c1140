"""The run host: a POST waits for its output."""

import asyncio
import hashlib

from fastapi import APIRouter, Request, Response

from server.answers import caller, fail, key_id_of, key_of, read_body, reply
from server.errors import FalError, plain
from server.jobs import Jobs, parse
from server.keys import sender_of
from server.orphans import Orphans
from server.schema import ENDPOINT
from server.settings import Settings


def router(settings: Settings, jobs: Jobs, orphans: Orphans) -> APIRouter:
    """The routes."""
    routes = APIRouter()

    @routes.post(f"/run/{ENDPOINT}")
    async def run(request: Request) -> Response:
        body = await read_body(request, limit=settings.max_body_bytes)
        given = parse(body, jobs.recipe)
        key = hashlib.sha256(f"{key_id_of(request)}\n".encode() + body).hexdigest()
        job_id = orphans.adopt(key) or await jobs.submit(
            given, max_waiting=settings.max_queue_length, sender=sender_of(key_of(request))
        )
        ended = asyncio.create_task(jobs.ended(job_id))
        gone = asyncio.create_task(_gone(request))
        try:
            await asyncio.wait({ended, gone}, return_when=asyncio.FIRST_COMPLETED)
            if not ended.done():
                orphans.leave(key, job_id)
                return fail(plain("client_disconnected", "The client went away"), request_id=job_id)
            job = ended.result()
            try:
                output = await jobs.output(job, origin=caller(request).origin)
            except FalError as error:
                return fail(error.failure, request_id=job_id)
            headers = {"x-fal-request-id": job_id, "x-fal-billable-units": str(job.units)}
            return reply(output, headers=headers)
        finally:
            ended.cancel()
            gone.cancel()

    return routes


async def _gone(request: Request) -> None:
    """Returns once the client has closed the connection."""
    while (await request.receive())["type"] != "http.disconnect":
        pass
