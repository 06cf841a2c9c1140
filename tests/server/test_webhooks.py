"""Webhooks: what is sent, when, and how it is signed."""

import base64
import contextlib
import hashlib
import http.server
import json
import shutil
import sqlite3
import subprocess
import threading
import time
from dataclasses import dataclass, field
from ipaddress import ip_network
from pathlib import Path
from types import SimpleNamespace

import httpcore2
import httpx2
import nacl.exceptions
import nacl.signing
import pytest
from sqlalchemy import select, update

from server.__main__ import main
from server.bell import Bell
from server.errors import FalError, plain
from server.keys import Key
from server.metrics import Metrics
from server.records import Sender, WebhookTarget
from server.signing import Signer, make_signing_key
from server.store import Store
from server.tables import WEBHOOKS
from server.webhooks import MAX_RETRIES, Webhooks, target

ENDPOINT = "fal-ai/ltx-2.3-quality/image-to-video"
LOOPBACK = ("127.0.0.0/8",)
PATIENCE = 20


@dataclass
class Receiver:
    """A receiver that answers with the next of `statuses`, or 200, and remembers what it got."""

    statuses: list[int] = field(default_factory=list)
    got: list[tuple[dict[str, str], bytes]] = field(default_factory=list)
    url: str = ""
    release: threading.Event = field(default_factory=threading.Event)
    hang: bool = False

    def wait(self, count: int = 1) -> list[tuple[dict[str, str], bytes]]:
        deadline = time.monotonic() + PATIENCE
        while len(self.got) < count:
            assert time.monotonic() < deadline, f"{len(self.got)} came, not {count}"
            time.sleep(0.01)
        return self.got


@contextlib.contextmanager
def receiving(port: int = 0):
    it = Receiver()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            it.got.append(({name.lower(): value for name, value in self.headers.items()}, body))
            if it.hang:
                it.release.wait(PATIENCE)
            status = it.statuses.pop(0) if it.statuses else 200
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                self.send_response(status)
                self.send_header("location", it.url)
                self.end_headers()

        def log_message(self, *_args: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", port), Handler) as host:
        it.url = f"http://127.0.0.1:{host.server_port}/hook?a=1"
        thread = threading.Thread(target=host.serve_forever)
        thread.start()
        try:
            yield it
        finally:
            it.release.set()
            host.shutdown()
            thread.join()


@pytest.fixture
def receiver():
    with receiving() as it:
        yield it


def submit(it, image: str, url: str, prompt: str = "a", **more: object) -> httpx2.Response:
    given = {"prompt": prompt, "image_url": image}
    return it.http.post(f"/queue/{ENDPOINT}", params={"fal_webhook": url}, json=given, **more)


def verified(headers: dict[str, str], body: bytes, keys: list[dict[str, str]]) -> bool:
    """As fal's documentation tells receivers to: with its library, and its reading of a key, which wants padding."""
    timestamp = headers["x-fal-webhook-timestamp"]
    if abs(time.time() - int(timestamp)) > 300:
        return False
    names = ("x-fal-webhook-request-id", "x-fal-webhook-user-id", "x-fal-webhook-timestamp")
    message = "\n".join([*(headers[name] for name in names), hashlib.sha256(body).hexdigest()]).encode()
    for key in keys:
        public = nacl.signing.VerifyKey(base64.urlsafe_b64decode(key["x"]))
        with contextlib.suppress(nacl.exceptions.BadSignatureError):
            public.verify(message, bytes.fromhex(headers["x-fal-webhook-signature"]))
            return True
    return False


def test_the_public_key_is_read_without_a_key_under_each_of_its_addresses(server):
    sets = [
        server.http.get("/.well-known/jwks.json"),
        server.http.get("/rest/.well-known/jwks.json"),
        server.http.get("/.well-known/jwks.json", headers={"host": "rest.fal.ai"}),
    ]
    (key,) = sets[0].json()["keys"]
    assert (key["kty"], key["crv"], len(key["x"])) == ("OKP", "Ed25519", 44)
    assert all(found.json() == sets[0].json() for found in sets)


def test_the_end_of_a_job_is_told_signed_as_fal_signs(launch, image, receiver):
    with launch(allow_private_networks=LOOPBACK) as it:
        job = submit(it, image, receiver.url).json()
        ((headers, body),) = receiver.wait()
        result = it.http.get(job["response_url"]).json()
        keys = it.http.get("/.well-known/jwks.json").json()["keys"]
    told = json.loads(body)
    assert told == {
        "request_id": job["request_id"],
        "gateway_request_id": job["request_id"],
        "status": "OK",
        "payload": result,
    }
    assert result["video"]["url"].startswith(it.url)
    assert headers["content-type"] == "application/json"
    assert headers["x-fal-webhook-request-id"] == job["request_id"]
    assert headers["x-fal-webhook-user-id"]
    assert verified(headers, body, keys)
    assert not verified(headers, body + b" ", keys)
    for name in ("request-id", "user-id", "timestamp"):
        name = f"x-fal-webhook-{name}"
        assert not verified(headers | {name: headers[name][:-1] + "x" if "time" not in name else "1"}, body, keys)
    assert not verified(headers, body, Signer(fixed(make_signing_key())).jwks()["keys"])


def fixed(value: bytes) -> SimpleNamespace:
    """Secrets that are never turned over."""
    return SimpleNamespace(current=lambda _name: value, known=lambda _name: [value])


IN_NODE = """
import { createHash, createPublicKey, verify, webcrypto } from "node:crypto";
const { headers, body, keys } = JSON.parse(process.argv[1]);
const hash = createHash("sha256").update(body).digest("hex");
const names = ["request-id", "user-id", "timestamp"];
const message = Buffer.from([...names.map((name) => headers[`X-Fal-Webhook-${name}`]), hash].join("\\n"));
const signature = Buffer.from(headers["X-Fal-Webhook-signature"], "hex");
const found = [];
for (const key of keys) {
  const raw = Buffer.from(key.x, "base64url");
  const der = Buffer.concat([Buffer.from("302a300506032b6570032100", "hex"), raw]);
  found.push(verify(null, message, createPublicKey({ key: der, format: "der", type: "spki" }), signature));
  found.push(verify(null, message, createPublicKey({ key, format: "jwk" }), signature));
  const imported = await webcrypto.subtle.importKey("jwk", key, "Ed25519", false, ["verify"]);
  found.push(await webcrypto.subtle.verify("Ed25519", imported, signature, message));
}
console.log(JSON.stringify(found));
"""


@pytest.mark.full
def test_node_reads_the_key_and_the_signature_in_each_of_its_ways():
    assert shutil.which("node"), "Node.js is missing: install the package nodejs (18 or newer)"
    signer, body = Signer(fixed(make_signing_key())), '{"a": "日本語"}'
    headers = signer.headers(body.encode(), request_id="r", user_id="u")
    headers = {f"X-Fal-Webhook-{name.lower().removeprefix('x-fal-webhook-')}": text for name, text in headers.items()}
    for told, good in ((body, True), (body + " ", False)):
        given = json.dumps({"headers": headers, "body": told, "keys": signer.jwks()["keys"]})
        made = subprocess.run(
            ["node", "--input-type=module", "--eval", IN_NODE, given], capture_output=True, text=True, check=True
        )
        assert json.loads(made.stdout) == [good] * 3


def test_every_way_a_job_can_fail_is_told(launch, image, receiver):
    with launch(allow_private_networks=LOOPBACK) as it:
        slow = submit(it, image, receiver.url, "slow").json()
        wrong = it.http.post(f"/queue/{ENDPOINT}", params={"fal_webhook": receiver.url}, json={}).json()
        ids = {422: wrong["request_id"], 499: slow["request_id"]}
        it.wait(slow, "IN_PROGRESS")
        it.http.put(slow["cancel_url"])
        ids[500] = submit(it, image, receiver.url, "fail").json()["request_id"]
        told = {json.loads(body)["request_id"]: json.loads(body) for _, body in receiver.wait(3)}
        for status, request_id in ids.items():
            result = it.http.get(f"/queue/{ENDPOINT}/requests/{request_id}")
            assert result.status_code == status
            assert told[request_id]["status"] == "ERROR"
            assert told[request_id]["error"] == f"Invalid status code: {status}"
            assert told[request_id]["payload"] == result.json()


def test_the_signing_key_is_the_same_after_a_restart(launch):
    with launch() as it:
        before = it.http.get("/.well-known/jwks.json").json()
    with launch() as it:
        assert it.http.get("/.well-known/jwks.json").json() == before


def test_a_receiver_that_hangs_holds_up_no_job_and_no_other_webhook(launch, image, receiver):
    receiver.hang = True
    with launch(allow_private_networks=LOOPBACK) as it, receiving() as other:
        submit(it, image, receiver.url)
        receiver.wait()
        it.wait(it.submit(prompt="a", image_url=image))
        submit(it, image, other.url)
        other.wait()
        assert len(receiver.got) == 1


def rows(data) -> list[tuple[object, ...]]:
    with contextlib.closing(sqlite3.connect(data / "ltxd.sqlite3")) as database:
        return database.execute("SELECT url, tries, next_try FROM webhooks").fetchall()


def test_a_webhook_that_could_not_be_delivered_outlives_the_server(launch, image):
    with receiving() as gone:
        url, port = gone.url, int(gone.url.rpartition(":")[2].partition("/")[0])
    with launch(allow_private_networks=LOOPBACK) as it:
        job = submit(it, image, url).json()
        it.wait(job)
        deadline = time.monotonic() + PATIENCE
        while not (found := rows(it.settings.data))[0][1]:
            assert time.monotonic() < deadline
            time.sleep(0.02)
    assert found[0][2] > time.time() - PATIENCE
    with contextlib.closing(sqlite3.connect(it.settings.data / "ltxd.sqlite3")) as database:
        database.execute("UPDATE webhooks SET next_try = 0")
        database.commit()
    with receiving(port) as back, launch(allow_private_networks=LOOPBACK) as it:
        ((_, body),) = back.wait()
        assert json.loads(body)["request_id"] == job["request_id"]
        while rows(it.settings.data)[0][2] is not None:
            assert time.monotonic() < deadline + PATIENCE
            time.sleep(0.02)


@pytest.mark.parametrize(
    "url",
    [
        "http://127.0.0.1:9/x",
        "http://localhost/x",
        "http://a.localhost/x",
        "http://[::1]/",
        "http://169.254.169.254/",
        "http://10.0.0.1/",
        "http://[::ffff:127.0.0.1]/",
        "ftp://x.example/",
        "file:///etc/passwd",
        "x",
        "",
        "http://",
        "http://[",
        "http://x.example/" + "a" * 2048,
    ],
)
def test_what_cannot_be_a_webhook_is_400_at_once(server, image, url):
    answer = submit(server, image, url)
    assert answer.status_code == 400
    assert answer.json()["detail"].startswith("fal_webhook ")


def test_webhooks_go_to_loopback_for_a_key_that_may_alone(launch, tmp_path, capsys, image, receiver):
    data, keys = tmp_path / "data", []
    for flags in (["--private-webhooks"], []):
        assert main(["keys", "create", f"--data={data}", "--name=test", *flags]) == 0
        keys.append({"authorization": "Key " + capsys.readouterr().out.strip().removeprefix("FAL_KEY=")})
    with launch() as it:
        refused = submit(it, image, receiver.url, headers=keys[1])
        assert refused.status_code == 400
        assert "--private-webhooks" in refused.json()["detail"]
        assert submit(it, image, receiver.url, headers=keys[0]).status_code == 200
        ((headers, _),) = receiver.wait()
        assert headers["x-fal-webhook-user-id"] == keys[0]["authorization"].removeprefix("Key ").partition(":")[0]
        assert submit(it, image, "http://169.254.169.254/", headers=keys[0]).status_code == 400


def test_who_may_be_told_is_decided_by_the_key_and_the_setting():
    key = Key("a", "a", None, True, 0.0, None)
    for url in ("http://localhost:1/", "http://127.0.0.1/", "http://192.168.1.2/", "http://[fd12::1]/"):
        assert target(url, origin="", key=key, allowed=()).private
        with pytest.raises(FalError):
            target(url, origin="", key=None, allowed=())
    assert not target("http://localhost/", origin="", key=None, allowed=[ip_network("127.0.0.0/8")]).private
    with pytest.raises(FalError):
        target("http://[fd00:ec2::254]/", origin="", key=key, allowed=())


class Network(httpcore2.AsyncNetworkBackend):
    """A network that answers every connection with the next of `statuses`, and remembers where it was asked to go."""

    def __init__(self, *statuses: int) -> None:
        self.statuses = list(statuses)
        self.connected: list[str] = []

    async def connect_tcp(self, host, *_rest):
        self.connected.append(host)
        status = self.statuses.pop(0)
        head = f"HTTP/1.1 {status} X\r\nlocation: http://elsewhere.example/\r\ncontent-length: 0\r\n\r\n"
        return httpcore2.AsyncMockStream([head.encode()])


class Result:
    """As `server.jobs.Jobs`, for jobs that all have the same output."""

    def __init__(self, store: Store) -> None:
        self.store = store

    async def get(self, job_id: str):
        return await self.store.get(job_id)

    async def output(self, _job, *, origin: str):
        return {"video": {"url": f"{origin}/x"}}


def outbox(database, network: Network, names: dict[str, list[str]]) -> Webhooks:
    async def resolve(host: str, _port: int) -> list[str]:
        return names[host]

    signer, jobs = Signer(fixed(make_signing_key())), Result(Store(database))
    return Webhooks(database, jobs, signer, Bell(), Metrics(Path()), allowed=(), resolve=resolve, connector=network)


async def ended(database, job_id: str, url: str = "http://hook.example/") -> None:
    sender = Sender(webhook=WebhookTarget(url, "http://me", private=False))
    await Store(database).submit_failed(job_id, plain("bad_request", "no"), max_waiting=9, sender=sender)


async def state(database, job_id: str) -> tuple[int, float | None]:
    """How often it was tried, and seconds until the next try."""

    def work(connection):
        row = connection.execute(select(WEBHOOKS).where(WEBHOOKS.c.job_id == job_id)).one()
        return row.tries, None if row.next_try is None else row.next_try - time.time()

    return await database.read(work)


async def make_due(database) -> None:
    waiting = update(WEBHOOKS).where(WEBHOOKS.c.next_try.is_not(None))
    await database.write(lambda connection: connection.execute(waiting.values(next_try=0)))


PUBLIC = {"hook.example": ["93.184.215.14"]}


async def test_a_webhook_is_not_due_before_its_job_has_ended(database):
    sender = Sender(webhook=WebhookTarget("http://hook.example/", "", private=False))
    await Store(database).submit("a", b"{}", max_waiting=9, max_bytes=99, sender=sender)
    box = outbox(database, Network(), PUBLIC)
    assert await box.claim() is None
    await Store(database).cancel("a")
    assert (await box.claim()).job_id == "a"


async def test_a_receiver_that_fails_is_asked_again_ever_later_and_not_for_ever(database):
    await ended(database, "a")
    network = Network(*[500, 404, 429, 503] * 8)
    box, waits = outbox(database, network, PUBLIC), []
    for tries in range(1, MAX_RETRIES + 2):
        due = await box.claim()
        assert due.tries == tries
        assert await box.claim() is None
        await box.deliver(due)
        _, wait = await state(database, "a")
        waits.append(wait)
        await make_due(database)
    assert waits.pop() is None
    assert waits[:4] == pytest.approx([5, 10, 20, 40], abs=4)
    assert waits == sorted(waits) or max(waits) == pytest.approx(3600, abs=4)
    assert sum(waits) < 86_400
    assert await box.claim() is None
    assert len(network.connected) == MAX_RETRIES + 1
    assert "given up" in (await Store(database).logs("a"))[-1].message


async def test_a_receiver_that_takes_it_is_asked_no_more(database):
    await ended(database, "a")
    box = outbox(database, Network(500, 204), PUBLIC)
    await box.deliver(await box.claim())
    await make_due(database)
    await box.deliver(await box.claim())
    assert await state(database, "a") == (2, None)


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
async def test_a_redirect_is_not_followed_and_ends_it(database, status):
    await ended(database, "a")
    network = Network(status)
    box = outbox(database, network, PUBLIC)
    await box.deliver(await box.claim())
    assert network.connected == ["93.184.215.14"]
    assert await state(database, "a") == (1, None)


@pytest.mark.parametrize("addresses", [["127.0.0.1"], ["1.1.1.1", "10.0.0.1"], ["169.254.169.254"], ["::1"]])
async def test_a_name_that_leads_inside_gets_no_connection_and_no_second_try(database, addresses):
    await ended(database, "a")
    network = Network()
    box = outbox(database, network, {"hook.example": addresses})
    await box.deliver(await box.claim())
    assert network.connected == []
    assert await state(database, "a") == (1, None)
    assert "private network" in (await Store(database).logs("a"))[-1].message


async def test_two_nodes_never_hold_the_same_webhook_and_a_lost_delivery_comes_back(database):
    for name in "abc":
        await ended(database, name)
    one, two = (outbox(database, Network(), PUBLIC) for _ in range(2))
    held = [await box.claim() for box in (one, two, one)]
    assert sorted(due.job_id for due in held) == ["a", "b", "c"]
    assert await two.claim() is None
    assert (await state(database, "a"))[1] == pytest.approx(45, abs=4)
    await make_due(database)
    assert (await two.claim()).tries == 2


async def test_a_delivery_that_outlasted_its_lease_does_not_end_the_next_one(database):
    await ended(database, "a")
    box = outbox(database, Network(200), PUBLIC)
    late = await box.claim()
    await make_due(database)
    await box.claim()
    await box.deliver(late)
    tries, wait = await state(database, "a")
    assert tries == 2
    assert wait > 0
