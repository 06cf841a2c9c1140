"""The status of a job is the same, whether it is answered ahead of the routes or by them."""

from types import SimpleNamespace

import httpx2
import pytest
from starlette.responses import Response

from server.access import Access
from server.app import create_app
from server.database import StoreUnavailableError
from server.jobs import JobNotFoundError
from server.roles import Caller
from server.schema import APP, ENDPOINT
from server.settings import Settings
from server.shortcut import Shortcut
from server.statuses import Status, wants_logs

MINE = "6a2f"


class OneJob:
    """Jobs, of which one is the caller's."""

    def __init__(self, trouble: Exception | None = None) -> None:
        self.trouble = trouble
        self.looks = 0

    async def look(self, job_id, key_id, *, logs, base):
        self.looks += 1
        if self.trouble is not None:
            raise self.trouble
        if (job_id, key_id) != (MINE, None):
            raise JobNotFoundError(job_id)
        return Status(None, 202, f"{base} {logs}".encode())


async def routes(_scope, _receive, send):
    """The routes, which say only that they were asked."""
    await Response("by the routes")(_scope, _receive, send)


async def asked(jobs: OneJob, path: str, *, method: str = "GET", query: bytes = b"") -> tuple[int, dict, bytes]:
    """Status, headers and body of the answer."""
    sent = []

    async def send(message):
        sent.append(message)

    scope = {"type": "http", "method": method, "path": path, "query_string": query, "key": None}
    await Shortcut(routes, jobs)(scope | {"caller": Caller("queue", "http://a/queue", "http://a", path)}, None, send)
    start, body = sent
    return start["status"], dict(start["headers"]), body["body"]


@pytest.mark.parametrize("app", [APP, ENDPOINT])
async def test_a_status_that_there_is_is_answered_at_once(app):
    code, headers, body = await asked(OneJob(), f"/queue/{app}/requests/{MINE}/status", query=b"logs=1")
    assert (code, body) == (202, b"http://a/queue True")
    assert headers[b"x-fal-request-id"] == MINE.encode()
    assert headers[b"content-type"] == b"application/json"


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", f"/queue/{APP}/requests/{MINE}/status"),
        ("HEAD", f"/queue/{APP}/requests/{MINE}/status"),
        ("GET", f"/queue/{APP}/requests/{MINE}/status/stream"),
        ("GET", f"/queue/{APP}/requests/{MINE}"),
        ("GET", f"/queue/{APP}/requests/another/status"),
        ("GET", f"/queue/fal-ai/flux/requests/{MINE}/status"),
        ("GET", f"/run/{APP}/requests/{MINE}/status"),
        ("GET", f"/queue/{APP}/requests/a/b/status"),
    ],
)
async def test_all_else_is_left_to_the_routes(method, path):
    assert (await asked(OneJob(), path, method=method))[2] == b"by the routes"


@pytest.mark.parametrize(
    ("trouble", "status", "error_type"),
    [
        (StoreUnavailableError("secret"), 503, "storage_unavailable"),
        (JobNotFoundError("secret"), 404, "not_found"),
        (RuntimeError("secret"), 500, "internal_error"),
    ],
)
async def test_what_goes_wrong_is_told_as_everywhere_after_one_look(trouble, status, error_type, tmp_path):
    jobs = OneJob(trouble)
    settings = Settings(data=tmp_path)

    async def refresh() -> None:
        return None

    keys = SimpleNamespace(any=False, refresh=refresh)
    access = Access(keys, tokens=None, loopback=True)
    parts = dict.fromkeys(("store", "blobs", "agent", "metrics", "orphans", "uploads", "signer"))
    app = create_app(settings, jobs=jobs, access=access, **parts)
    transport = httpx2.ASGITransport(app, raise_app_exceptions=False)
    async with httpx2.AsyncClient(transport=transport, base_url="http://127.0.0.1") as http:
        answer = await http.get(f"/queue/{APP}/requests/{MINE}/status")
    assert (answer.status_code, answer.headers["x-fal-error-type"]) == (status, error_type)
    assert "x-fal-request-id" in answer.headers
    assert "secret" not in answer.text
    assert jobs.looks == 1


@pytest.mark.parametrize(
    ("query", "wanted"),
    [(b"logs=1", True), (b"logs=True", True), (b"logs=0", False), (b"", False), (b"logs=1&logs=", False)],
)
def test_the_log_is_told_to_who_asks_for_it(query, wanted):
    assert wants_logs(query) is wanted
