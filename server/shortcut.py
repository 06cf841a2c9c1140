"""The status of a job, answered ahead of the routes: callers ask for it more often than for all else together.

Finding a route and calling it costs more than all the rest of such an answer. Who may ask was settled before. What
goes wrong is worded by the app, as for all else: it is handed on as `FAULT` of the scope, and the route raises it.
"""

import re
from typing import Final

from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from server.jobs import Jobs
from server.keys import Key
from server.roles import Caller
from server.schema import APP, ENDPOINT
from server.statuses import wants_logs

STATUS_PATH: Final = re.compile(rf"/queue/(?:{re.escape(APP)}|{re.escape(ENDPOINT)})/requests/([^/]+)/status")

FAULT: Final = "ltxd.fault"


class Shortcut:
    """Answers those who ask for the status of a job that there is, and hands all others on to `app`."""

    def __init__(self, app: ASGIApp, jobs: Jobs) -> None:
        self._app = app
        self._jobs = jobs

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers one request, or hands it on."""
        job_id = _asked_for(scope)
        if job_id is not None:
            try:
                answer = await answer_status(self._jobs, scope, job_id)
            except Exception as error:  # noqa: BLE001 -- the route raises it again
                # why: nothing was sent yet, and to look again would take as long again to fail
                scope = {**scope, FAULT: error}
            else:
                await answer(scope, receive, send)
                return
        await self._app(scope, receive, send)


async def answer_status(jobs: Jobs, scope: Scope, job_id: str) -> Response:
    """The status of the job, for a caller whom the edge let pass.

    Raises: JobNotFoundError, StoreUnavailableError; what the shortcut met, if it did.
    """
    if FAULT in scope:
        raise scope[FAULT]
    caller: Caller = scope["caller"]
    key: Key | None = scope["key"]
    key_id = None if key is None else key.id
    status = await jobs.look(job_id, key_id, logs=wants_logs(scope["query_string"]), base=caller.base)
    headers = {"x-fal-request-id": job_id}
    return Response(status.body, status.code, headers=headers, media_type="application/json")


def _asked_for(scope: Scope) -> str | None:
    """The id of the job whose status is asked for; None if something else is."""
    if scope["type"] != "http" or scope["method"] != "GET":
        return None
    found = STATUS_PATH.fullmatch(scope["path"])
    return None if found is None else found[1]
