"""The run host: a POST waits for its output."""

import asyncio
import contextlib
import hashlib
import math

from fastapi import APIRouter, Request, Response
from starlette.types import Receive, Scope, Send

from server.answers import caller, deliver, fail, key_id_of, key_of, read_body
from server.database import StoreUnavailableError
from server.errors import FalError, plain
from server.jobs import Jobs
from server.keys import sender_of
from server.orphans import Orphans
from server.schema import ENDPOINT
from server.settings import Settings
from server.terms import ATTENDED_SECONDS, terms_of

BEAT_SECONDS = 30.0
ATTEND_SECONDS = ATTENDED_SECONDS / 3


def router(settings: Settings, jobs: Jobs, orphans: Orphans) -> APIRouter:
    """The routes."""
    routes = APIRouter()

    @routes.post(f"/run/{ENDPOINT}")
    async def run(request: Request) -> Response:
        body = await read_body(request)
        given, terms = await jobs.parse(body), terms_of(request.headers)
        asked = await asyncio.to_thread(_digest, f"{key_id_of(request)}\n".encode(), body)
        job_id = await orphans.adopt(asked)
        if job_id is None:
            job_id = await jobs.submit(
                given,
                terms=terms,
                asked=asked,
                max_waiting=settings.max_queue_length,
                sender=sender_of(key_of(request)),
            )
        call = Call(jobs, orphans, job_id, asked=asked, origin=caller(request).origin)
        patience = settings.heartbeat_after if settings.heartbeat else None
        answer = await call.answer(request.receive, within=patience)
        return answer if answer is not None else Heartbeat(call)

    return routes


def _digest(owner: bytes, body: bytes) -> str:
    digest = hashlib.sha256(owner)
    digest.update(body)
    return digest.hexdigest()


class Call:
    """A caller who waits for the end of a job. `told` is set once he knows the job's id."""

    def __init__(self, jobs: Jobs, orphans: Orphans, job_id: str, *, asked: str, origin: str) -> None:
        self.job_id = job_id
        self.told = False
        self._asked = asked
        self._jobs = jobs
        self._orphans = orphans
        self._origin = origin

    async def answer(self, receive: Receive, *, within: float | None) -> Response | None:
        """The answer; None if the job has not ended in time. The job is orphaned if the connection is lost."""
        ended = asyncio.create_task(self._ended())
        gone = asyncio.create_task(_gone(receive))
        clock = asyncio.get_running_loop().time
        until = math.inf if within is None else clock() + within
        try:
            while (left := until - clock()) > 0:
                await asyncio.wait(
                    {ended, gone}, timeout=min(left, ATTEND_SECONDS), return_when=asyncio.FIRST_COMPLETED
                )
                if gone.done():
                    await self._orphans.leave(self.job_id)
                    return fail(plain("client_disconnected", "The client went away"), request_id=self.job_id)
                if ended.done():
                    return await ended
                # why: a database that is down for a moment costs no call
                with contextlib.suppress(StoreUnavailableError):
                    await self._orphans.attend(self.job_id)
                    if await self._rejoin():
                        ended.cancel()
                        ended = asyncio.create_task(self._ended())
            return None
        finally:
            ended.cancel()
            gone.cancel()

    async def _rejoin(self) -> bool:
        """Whether the job is now an older one of an equal call, whose node died before it could be said to be lost."""
        older = None if self.told else await self._orphans.adopt(self._asked, instead_of=self.job_id)
        if older is None:
            return False
        self.job_id = older
        return True

    async def _ended(self) -> Response:
        job = await self._jobs.ended(self.job_id)
        try:
            output = await self._jobs.output(job, origin=self._origin)
        except FalError as error:
            return fail(error.failure, request_id=self.job_id)
        return await deliver(output, job)


class Heartbeat(Response):
    """An answer whose status is told before its outcome is known: blanks until then, which JSON ignores."""

    def __init__(self, call: Call) -> None:
        super().__init__(headers={"x-fal-request-id": call.job_id}, media_type="application/json")
        self._call = call
        call.told = True
        del self.headers["content-length"]

    async def __call__(self, _scope: Scope, receive: Receive, send: Send) -> None:
        """Sends it."""
        await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
        answer = None
        while answer is None:
            await send({"type": "http.response.body", "body": b" ", "more_body": True})
            answer = await self._call.answer(receive, within=BEAT_SECONDS)
        await send({"type": "http.response.body", "body": answer.body})


async def _gone(receive: Receive) -> None:
    """Returns once the client has closed the connection."""
    while (await receive())["type"] != "http.disconnect":
        pass
