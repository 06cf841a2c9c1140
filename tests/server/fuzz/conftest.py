"""Servers that mutated requests are sent to, with something in them to be found, and what they log meanwhile."""

import asyncio
import gc
import http.client
import json
import logging
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from server.control import ask
from server.errors import STATUSES
from server.schema import APP, ENDPOINT

LIMITS = {
    "max_body_bytes": 100_000,
    "max_upload_bytes": 50_000,
    "max_image_bytes": 50_000,
    "orphan_seconds": 1.0,
    "max_queue_length": 20,
}
SECONDS = 60
NOT_HTTP = b"Invalid HTTP request received."
DOCUMENTED_5XX = {(status, kind) for kind, (status, _) in STATUSES.items() if status in (503, 504)}


@dataclass(frozen=True)
class Answer:
    """What came back: header names in small letters."""

    status: int
    headers: dict[str, str]
    body: bytes


@dataclass(frozen=True)
class Besieged:
    """A server, and what it knows: credentials of a key and of a token, or none; jobs; files as (id, name, ticket)."""

    name: str
    port: int
    tls_port: int
    proxy_port: int
    document: dict[str, Any]
    key: str
    token: str
    upload_token: str
    jobs: list[str]
    files: list[tuple[str, str, str]]

    def send(self, raw: bytes, *, method: str = "GET") -> Answer | None:
        """The answer to the bytes of one request; None if the connection was closed without one."""
        with socket.create_connection(("127.0.0.1", self.port), timeout=SECONDS) as connection:
            connection.sendall(raw)
            response = http.client.HTTPResponse(connection, method=method)
            try:
                response.begin()
                body = response.read()
            except (http.client.RemoteDisconnected, ConnectionResetError):
                return None
            headers = {name.lower(): value for name, value in response.getheaders()}
            return Answer(response.status, headers, body)


@pytest.fixture(scope="module", params=["keyless", "keyed", pytest.param("postgres", marks=pytest.mark.full)])
def besieged(request, shared_launch, image, ports) -> Iterator[Besieged]:
    """A server without keys, one with two, and one on Postgres."""
    database = {"database_url": request.getfixturevalue("postgres")()} if request.param == "postgres" else {}
    with shared_launch(name=request.param, **ports(), **LIMITS, **database) as it:
        key, other = (make_key(it.settings.data) if request.param == "keyed" else "x" for _ in range(2))
        it.http.headers["authorization"] = f"Key {key}"
        given = {"prompt": "a", "image_url": image}
        done, failed = it.submit(**given), it.submit(prompt="a")
        video = it.wait(done) and it.http.get(done["response_url"]).json()["video"]
        it.wait(failed)
        foreign = it.http.post(f"/queue/{ENDPOINT}", json=given, headers={"authorization": f"Key {other}"})
        cancelled = it.submit(**given)
        it.http.put(cancelled["cancel_url"])
        uploaded = it.http.post("/rest/storage/upload/initiate", json={"file_name": "a.png"}).json()
        assert it.http.put(uploaded["upload_url"], content=b"picture").status_code == 200
        begun = it.http.post("/rest/storage/upload/initiate-multipart", json={"file_name": "b.png"}).json()
        document = it.http.get("/api/openapi/queue/openapi.json", params={"endpoint_id": ENDPOINT}).json()
        yield Besieged(
            name=request.param,
            port=it.ports.http,
            tls_port=it.ports.tls,
            proxy_port=it.ports.proxy,
            document=document,
            key=key,
            token=it.http.post("/rest/tokens/", json={"allowed_apps": [ENDPOINT]}).json(),
            upload_token=it.http.post("/rest/storage/auth/token", json={}).json()["token"],
            jobs=[job["request_id"] for job in (done, failed, cancelled, foreign.json())],
            files=[slot(video["url"]), slot(uploaded["upload_url"]), slot(begun["upload_url"])],
        )


def make_key(data: Path) -> str:
    """The credentials of a new key of the server that runs on the folder `data`."""
    asked = {"do": "create", "name": "a", "max_in_flight": None, "private_webhooks": False}
    return str(asyncio.run(ask(data, asked))["credentials"])


def slot(url: str) -> tuple[str, str, str]:
    """Id, name and ticket of the file at `url`; no ticket: a made one, or one that was uploaded whole."""
    path, _, query = url.partition("?")
    *_, file_id, name = path.split("/")
    return file_id, name, query.removeprefix("ticket=")


class Verdicts:
    """What a server's OpenAPI document says of answers."""

    def __init__(self, document: dict[str, Any]) -> None:
        self._paths = document["paths"]
        components = {"components": document["components"]}
        self._schemas = {
            name: Draft202012Validator({"$ref": f"#/components/schemas/{name}", **components})
            for name in document["components"]["schemas"]
        }

    def check(self, sent: Any, answer: Any) -> None:
        """Fails if the answer is none that may be given."""
        if "x-fal-request-id" not in answer.headers:
            # why: what is no HTTP never comes to the application
            assert (answer.status, answer.body) in ((400, b""), (400, NOT_HTTP))
            return
        said = None
        if answer.headers.get("content-type") == "application/json" and sent.method != "HEAD":
            said = json.loads(answer.body, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
        kind = answer.headers.get("x-fal-error-type")
        ready = sent.route == "GET /health/ready" and answer.status == 503
        assert answer.status < 500 or (answer.status, kind) in DOCUMENTED_5XX or ready
        assert answer.status not in (301, 302, 303, 307, 308, 408, 409)
        assert answer.headers["x-content-type-options"] == "nosniff"
        if answer.status >= 400:
            assert {answer.headers["x-fal-retryable"], answer.headers["x-fal-needs-retry"]} in (
                {"true", "1"},
                {"false", "0"},
            )
            if isinstance(said, dict) and not ready:
                self._schemas["Error"].validate(said)
                assert said.keys() & {"detail", "status"}
        if sent.intact:
            self._check_document(sent, answer, said)

    def _check_document(self, sent: Any, answer: Any, said: Any) -> None:
        method, path = sent.route.split()
        if not path.startswith(("/queue/", "/run/")) or answer.status == 405:
            return
        run = path.startswith("/run/")
        path = "/" + path.removeprefix("/run/").removeprefix("/queue/").replace("job_id", "request_id")
        path = (
            path.replace(f"/{APP}/requests", f"/{ENDPOINT}/requests").removesuffix("/response").removesuffix("/stream")
        )
        if run:
            method, path = "GET", f"/{ENDPOINT}/requests/{{request_id}}"
        told = self._paths[path][method.lower()]["responses"]
        assert str(answer.status) in told
        if sent.route.endswith("/stream") and answer.status == 200:
            events = [
                line.removeprefix("data: ")
                for line in answer.body.decode("ascii").split("\n")
                if line.startswith("data: ")
            ]
            assert json.loads(events[-1])["status"] == "COMPLETED"
            for event in events:
                self._schemas["QueueStatus"].validate(json.loads(event))
            return
        schema = told[str(answer.status)]["content"]["application/json"]["schema"]
        self._schemas[schema["$ref"].rpartition("/")[2]].validate(said)


@pytest.fixture
def verdicts(besieged) -> Verdicts:
    """What its document says of the answers of the server."""
    return Verdicts(besieged.document)


@pytest.fixture
def blots() -> Iterator[list[str]]:
    """What the server logs that it should not: errors and tracebacks. Grows meanwhile, and is empty in the end."""
    found: list[str] = []
    form = logging.Formatter("%(name)s %(levelname)s %(message)s")

    class Watch(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            text = form.format(record)
            if record.exc_info or record.levelno >= logging.ERROR or "Traceback" in text:
                found.append(text)

    watch = Watch()
    logging.getLogger().addHandler(watch)
    yield found
    # why: a task that failed unseen is only told of when it is thrown away
    gc.collect()
    logging.getLogger().removeHandler(watch)
    assert not found, "\n".join(found)
