"""Keys: how they are kept, made and revoked, and what they open."""

import asyncio
import contextlib
import json
import os
import socket
import sqlite3
import stat
import time
from datetime import datetime
from types import SimpleNamespace
from typing import cast, get_args

import fal_client
import httpx2
import jwt
import pytest
from fastapi import FastAPI

from server import keys as keys_module
from server.__main__ import main
from server.access import Access, UnauthorizedError
from server.app import Edge
from server.database import open_database
from server.keys import Keys, sender_of
from server.roles import Caller, Role, Target
from server.routes.uploads import router
from server.settings import Settings
from server.shared import Secrets
from server.store import Store
from server.tokens import Tokens
from server.uploads import Uploads

ENDPOINT = "fal-ai/ltx-2.3-quality/image-to-video"
APP = "fal-ai/ltx-2.3-quality"


@pytest.fixture
async def keys(database):
    it = Keys(database)
    await it.load()
    return it


async def test_a_key_is_known_by_its_credentials_and_by_nothing_near_them(keys):
    key, credentials = await keys.create("a")
    other, _ = await keys.create("b")
    key_id, _, secret = credentials.partition(":")
    assert keys.match(credentials) == key
    assert len(secret) == 64
    wrong = [
        "",
        ":",
        key_id,
        f"{key_id}:",
        secret,
        f":{secret}",
        f"{other.id}:{secret}",
        f"{credentials}0",
        credentials[:-1],
        credentials.upper(),
        f"{key_id}:{secret}\n",
        "\udc80:é",
    ]
    assert [text for text in wrong if keys.match(text) is not None] == []


async def test_a_revoked_key_opens_nothing_and_there_still_was_one(keys):
    key, credentials = await keys.create("a")
    assert await keys.revoke(key.id)
    assert not await keys.revoke(key.id)
    assert not await keys.revoke("nobody")
    assert keys.match(credentials) is None
    assert keys.get(key.id) is None
    assert keys.any


async def test_a_secret_is_compared_in_constant_time_also_for_an_id_that_is_not_there(keys, monkeypatch):
    compared = []
    honest = keys_module.hmac.compare_digest

    def spy(a, b):
        compared.append((len(a), len(b)))
        return honest(a, b)

    monkeypatch.setattr(keys_module.hmac, "compare_digest", spy)
    _, credentials = await keys.create("a")
    for text in (credentials, "nobody:x", credentials[:-1], ""):
        keys.match(text)
    assert compared == [(64, 64)] * 4


async def test_the_store_holds_no_secret_of_a_key(tmp_path):
    database = open_database(tmp_path)
    _, credentials = await Keys(database).create("a")
    await database.close()
    written = b"".join(path.read_bytes() for path in tmp_path.iterdir() if path.is_file())
    assert credentials.partition(":")[0].encode() in written
    assert credentials.partition(":")[2].encode() not in written


async def test_a_key_that_another_node_makes_or_revokes_is_seen_within_a_second(keys):
    elsewhere = Keys(keys._database)
    key, credentials = await elsewhere.create("a")
    await keys.refresh()
    assert keys.match(credentials) is None
    keys._read_at -= keys_module.REFRESH_SECONDS
    await keys.refresh()
    assert keys.match(credentials) == key
    await elsewhere.revoke(key.id)
    keys._read_at -= keys_module.REFRESH_SECONDS
    await keys.refresh()
    assert keys.match(credentials) is None


def create(data, capsys, *flags: str) -> str:
    assert main(["keys", "create", f"--data={data}", "--name=test", *flags]) == 0
    return capsys.readouterr().out.strip().removeprefix("FAL_KEY=")


def as_key(credentials: str, scheme: str = "Key") -> dict[str, str]:
    return {"authorization": f"{scheme} {credentials}"}


@pytest.fixture
def two(launch, tmp_path, capsys):
    """A server with two keys, and their credentials."""
    mine, other = (create(tmp_path / "data", capsys) for _ in range(2))
    with launch() as it:
        yield it, mine, other


def test_with_a_key_every_call_needs_one(two, image):
    it, mine, _ = two
    given = {"prompt": "a", "image_url": image}
    for path in (
        f"/{ENDPOINT}",
        f"/queue/{ENDPOINT}",
        f"/queue/{APP}/requests/x",
        "/rest/tokens/",
        "/rest/x",
        "/nothing",
    ):
        answer = it.http.post(path, json=given)
        assert answer.status_code == 401, path
        assert answer.json()["detail"].startswith(f'Cannot access application "{APP}".')
        assert answer.headers["x-fal-request-id"]
        assert answer.headers["x-fal-retryable"] == "false"
        assert it.http.post(path, json=given, headers=as_key(mine + "0")).json() == {
            "detail": "invalid key credentials"
        }
    for scheme in ("Key", "Bearer", "key", "BEARER"):
        assert it.http.post(f"/{ENDPOINT}", json=given, headers=as_key(mine, scheme)).status_code == 200
    for headers in (as_key(mine, "Basic"), {"authorization": mine}, {"authorization": ""}, {"x-fal-key": mine}):
        assert it.http.post(f"/{ENDPOINT}", json=given, headers=headers).status_code == 401
    assert it.http.post(f"/{ENDPOINT}?fal_jwt_token={mine}", json=given).status_code == 401


@pytest.mark.parametrize(
    "path", [f"/queue/{ENDPOINT}", f"/run/{ENDPOINT}", "/rest/storage/auth/token", "/rest/tokens"]
)
def test_the_name_of_the_site_opens_no_route_that_needs_a_key(two, image, path):
    it, mine, _ = two
    given = {"prompt": "a", "image_url": image, "allowed_apps": [ENDPOINT]}
    for address, headers in (
        (path, {"host": "fal.ai"}),
        ("/api/fal/proxy", {"x-fal-target-url": f"https://fal.ai{path}"}),
    ):
        for authorization in ({}, as_key(mine)):
            assert it.http.post(address, json=given, headers=headers | authorization).status_code == 404


@pytest.mark.parametrize("role", get_args(Role))
def test_a_route_that_needs_a_key_needs_it_whatever_role_the_caller_named(role):
    access = Access(cast("Keys", SimpleNamespace(any=True)), cast("Tokens", None), loopback=True)
    caller = Caller(role, "http://x", "http://x", "/")
    for path in (f"/queue/{ENDPOINT}", f"/run/{ENDPOINT}", "/rest/storage/auth/token"):
        with pytest.raises(UnauthorizedError):
            access.key(Target(caller, path), {}, "")
    for path in ("/health", "health", "", "*", "/files/queue/x"):
        assert access.key(Target(caller, path), {}, "") == (None, None)


def test_health_and_files_need_no_key(two, image):
    it, mine, _ = two
    answer = it.http.post(f"/{ENDPOINT}", json={"prompt": "a", "image_url": image}, headers=as_key(mine))
    assert it.http.get(answer.json()["video"]["url"]).status_code == 200
    assert it.http.get("/health/live").status_code == 200


def test_a_job_of_another_key_is_404(two, image):
    it, mine, other = two
    job = it.http.post(f"/queue/{ENDPOINT}", json={"prompt": "a", "image_url": image}, headers=as_key(mine)).json()
    for method, tail in (
        ("GET", ""),
        ("GET", "/response"),
        ("GET", "/status"),
        ("GET", "/status/stream"),
        ("PUT", "/cancel"),
    ):
        url = f"/queue/{APP}/requests/{job['request_id']}{tail}"
        answer = it.http.request(method, url, headers=as_key(other))
        assert (answer.status_code, answer.json()) == (404, {"status": "NOT_FOUND"})
    while it.http.get(job["status_url"], headers=as_key(mine)).status_code == 202:
        pass
    assert it.http.get(job["response_url"], headers=as_key(mine)).status_code == 200


def test_an_orphan_is_joined_by_the_same_key_alone(two, image):
    it, mine, other = two
    body = json.dumps({"prompt": "slow", "image_url": image}).encode()
    lines = ["host: 127.0.0.1", f"authorization: Key {mine}", f"content-length: {len(body)}"]
    head = "\r\n".join([f"POST /{ENDPOINT} HTTP/1.1", *lines, "", ""])
    with socket.create_connection(("127.0.0.1", it.ports.http)) as connection:
        connection.sendall(head.encode() + body)
        while not it.http.get("/health").json()["running"]:
            pass
    theirs = it.http.post(f"/{ENDPOINT}", content=body, headers=as_key(other))
    mine_again = it.http.post(f"/{ENDPOINT}", content=body, headers=as_key(mine, "Bearer"))
    assert theirs.status_code == mine_again.status_code == 200
    with contextlib.closing(sqlite3.connect(it.settings.data / "ltxd.sqlite3")) as database:
        owners = [row[0] for row in database.execute("SELECT key_id FROM jobs ORDER BY seq")]
    assert owners == [mine.partition(":")[0], other.partition(":")[0]]


def test_a_key_over_its_limit_in_flight_is_429(launch, tmp_path, capsys, image):
    data = tmp_path / "data"
    mine, other = create(data, capsys, "--max-in-flight=1"), create(data, capsys)
    given = {"prompt": "slow", "image_url": image}
    with launch() as it:
        job = it.http.post(f"/queue/{ENDPOINT}", json=given, headers=as_key(mine)).json()
        for path in (f"/queue/{ENDPOINT}", f"/{ENDPOINT}"):
            answer = it.http.post(path, json=given, headers=as_key(mine))
            assert answer.status_code == 429
            assert answer.json()["error_type"] == "concurrent_requests_limit"
            assert answer.headers["x-fal-needs-retry"] == "1"
        assert it.http.post(f"/queue/{ENDPOINT}", json=given, headers=as_key(other)).status_code == 200
        assert it.http.put(job["cancel_url"], headers=as_key(mine)).status_code == 202
        while it.http.get(job["status_url"], headers=as_key(mine)).status_code == 202:
            pass
        assert it.http.post(f"/queue/{ENDPOINT}", json=given, headers=as_key(mine)).status_code == 200


def test_any_page_may_call_with_a_key_and_no_cookie_is_allowed(two):
    it, mine, _ = two
    headers = {"origin": "https://any.example", "sec-fetch-site": "cross-site"}
    answer = it.http.get(f"/queue/{APP}/requests/x/status", headers=headers | as_key(mine))
    assert answer.status_code == 404
    assert answer.headers["access-control-allow-origin"] == "*"
    assert "access-control-allow-credentials" not in answer.headers
    refused = it.http.get(f"/queue/{APP}/requests/x/status", headers=headers)
    assert refused.status_code == 401
    assert refused.headers["access-control-allow-origin"] == "*"
    asked = it.http.options(f"/{ENDPOINT}", headers=headers | {"access-control-request-method": "POST"})
    assert asked.status_code == 204
    assert "authorization" in asked.headers["access-control-allow-headers"]
    assert it.http.get("/health", headers={"host": "evil.example"}).status_code == 403


def token(it, key: str, **given: object) -> httpx2.Response:
    return it.http.post("/rest/tokens/", json={"allowed_apps": ["ltx-2.3-quality"], **given}, headers=as_key(key))


def test_a_token_stands_for_its_key_for_a_short_time_and_gets_no_other(two, image):
    it, mine, other = two
    answer = token(it, mine, token_expiration=120)
    assert answer.status_code == 200
    text = answer.json()
    assert isinstance(text, str)
    given = {"prompt": "a", "image_url": image}
    job = it.http.post(f"/queue/{ENDPOINT}", json=given, headers=as_key(text)).json()
    assert it.http.get(job["status_url"], headers=as_key(mine)).status_code in (200, 202)
    assert it.http.get(job["status_url"], headers=as_key(other)).status_code == 404
    assert it.http.get(job["status_url"], params={"fal_jwt_token": text}).status_code in (200, 202)
    assert it.http.get(job["status_url"], headers=as_key(text, "Bearer")).status_code in (200, 202)
    assert token(it, text).status_code == 401
    # a route is also found with a line feed behind its path
    wish = {"allowed_apps": ["ltx-2.3-quality"]}
    assert it.http.post("/rest/tokens%0A", json=wish, headers=as_key(text)).status_code == 401


def test_a_token_that_is_old_changed_for_another_application_or_of_a_revoked_key_opens_nothing(two):
    it, mine, _ = two
    url = f"/queue/{APP}/requests/x/status"
    text = token(it, mine).json()
    claims = jwt.decode(text, options={"verify_signature": False})
    old = jwt.encode(claims | {"exp": 1}, b"x" * 32, algorithm="HS256")
    forged = jwt.encode(claims, b"x" * 32, algorithm="HS256")
    unsigned = jwt.encode(claims, None, algorithm="none")
    elsewhere = token(it, mine, allowed_apps=["flux"]).json()
    for wrong in (old, forged, unsigned, elsewhere, text[:-2], f"{text}.", "a.b.c"):
        assert it.http.get(url, headers=as_key(wrong)).status_code == 401, wrong
    assert it.http.get(url, headers=as_key(text)).status_code == 404
    assert main(["keys", "revoke", mine, f"--data={it.settings.data}"]) == 0
    assert it.http.get(url, headers=as_key(text)).status_code == 401


def test_what_a_token_gets_for_uploads_ends_with_it(two):
    it, mine, _ = two
    text = token(it, mine, token_expiration=90).json()
    ends = claims_of(text)["exp"]
    for headers, params in ((as_key(text), {}), (as_key(text, "Bearer"), {}), ({}, {"fal_jwt_token": text})):
        given = it.http.post("/rest/storage/auth/token", json={}, headers=headers, params=params).json()
        assert datetime.fromisoformat(given["expires_at"]).timestamp() == ends
        assert claims_of(given["token"])["exp"] == ends
        bearer = as_key(given["token"], "Bearer")
        begun = it.http.post("/cdn/files/upload/multipart", headers=bearer).json()
        assert claims_of(begun["uploadId"])["exp"] == ends
        for route in ("initiate", "initiate-multipart"):
            slot = it.http.post(f"/rest/storage/upload/{route}", json={}, headers=headers, params=params).json()
            assert claims_of(slot["upload_url"].partition("?ticket=")[2])["exp"] == ends
            assert it.http.put(slot["upload_url"], content=b"x").status_code == 200


@pytest.mark.parametrize("route", ["initiate", "initiate-multipart"])
async def test_what_a_token_gets_for_uploads_ends_with_it_also_if_that_is_while_the_body_comes_in(route):
    secret, known = b"a" * 32, [b"a" * 32]
    tokens = Tokens(cast("Secrets", SimpleNamespace(current=lambda _: secret, known=lambda _: known)))
    key = SimpleNamespace(id="key")
    keys = SimpleNamespace(any=True, refresh=lambda: asyncio.sleep(0), match=lambda _: None, get=lambda _: key)
    access = Access(cast("Keys", keys), tokens, loopback=True)
    inner = FastAPI()
    inner.include_router(router(cast("Uploads", None), access))
    edge = httpx2.ASGITransport(Edge(inner, Settings(), access))
    text = tokens.token("key", apps=[APP], seconds=5)

    async def body():
        yield b"{"
        known.clear()
        yield b"}"

    async with httpx2.AsyncClient(transport=edge, base_url="http://localhost", headers=as_key(text)) as http:
        slot = (await http.post(f"/rest/storage/upload/{route}", content=body())).json()
    assert claims_of(slot["upload_url"].partition("?ticket=")[2])["exp"] == claims_of(text)["exp"]


def test_what_a_key_gets_for_uploads_lasts_for_an_hour_and_a_day(two):
    it, mine, _ = two
    given = it.http.post("/rest/storage/auth/token", json={}, headers=as_key(mine)).json()
    assert claims_of(given["token"])["exp"] == pytest.approx(time.time() + 3600, abs=60)
    begun = it.http.post("/cdn/files/upload/multipart", headers=as_key(given["token"], "Bearer")).json()
    assert claims_of(begun["uploadId"])["exp"] == pytest.approx(time.time() + 86_400, abs=60)


def claims_of(text: str) -> dict:
    return jwt.decode(text, options={"verify_signature": False})


@pytest.mark.parametrize(
    "body",
    [b"", b"{", b"[]", b'{"allowed_apps": []}', b'{"allowed_apps": ["a"], "token_expiration": 0}', b'"\xff"', b"NaN"],
)
def test_a_request_for_a_token_that_is_not_understood_is_422(server, body):
    assert server.http.post("/rest/tokens/", content=body).status_code == 422


def test_a_token_of_a_time_without_keys_opens_nothing_once_there_is_one(launch, capsys):
    with launch() as it:
        text = it.http.post("/rest/tokens/", json={"allowed_apps": ["ltx-2.3-quality"]}).json()
        url = f"/queue/{APP}/requests/x/status"
        assert it.http.get(url, headers=as_key(text)).status_code == 404
        create(it.settings.data, capsys)
        assert it.http.get(url, headers=as_key(text)).status_code == 401


def test_the_command_works_through_a_running_server_at_once(launch, capsys):
    with launch() as it:
        assert stat.S_IMODE((it.settings.data / "control.sock").stat().st_mode) == 0o600
        mine = create(it.settings.data, capsys, "--max-in-flight=3")
        url = f"/queue/{APP}/requests/x/status"
        assert it.http.get(url).status_code == 401
        assert it.http.get(url, headers=as_key(mine)).status_code == 404
        assert main(["keys", "list", f"--data={it.settings.data}"]) == 0
        listed = capsys.readouterr().out
        assert mine.partition(":")[0] in listed
        assert mine.partition(":")[2] not in listed
        assert "in flight: 3" in listed
        assert main(["keys", "revoke", mine.partition(":")[0], f"--data={it.settings.data}"]) == 0
        assert it.http.get(url, headers=as_key(mine)).status_code == 401
        assert it.http.get(url).status_code == 401
        assert main(["keys", "revoke", "nobody", f"--data={it.settings.data}"]) == 1
    assert not (it.settings.data / "control.sock").exists()
    assert main(["keys", "list", f"--data={it.settings.data}"]) == 0
    assert "revoked 2" in capsys.readouterr().out


def test_the_command_is_refused_where_another_program_owns_the_folder_and_does_not_answer(tmp_path, capsys):
    with contextlib.closing(socket.socket(socket.AF_UNIX)) as stale:
        stale.bind(os.fspath(tmp_path / "control.sock"))
    database = open_database(tmp_path)
    assert main(["keys", "list", f"--data={tmp_path}"]) == 1
    assert "another ltxd already owns" in capsys.readouterr().err
    asyncio.run(database.close())


def test_with_a_key_the_server_may_be_reached_from_elsewhere_and_without_it_says_how(launch, tmp_path, capsys):
    data = tmp_path / "data"
    assert main(["serve", f"--data={data}", "--host=0.0.0.0", "--port=0", "--tls-port=0"]) == 1
    assert "ltxd keys create" in capsys.readouterr().err
    mine = create(data, capsys)
    with launch(host="0.0.0.0") as it:  # noqa: S104 the point of the test
        url = f"/queue/{APP}/requests/x/status"
        assert it.http.get(url).status_code == 401
        assert it.http.get(url, headers=as_key(mine)).status_code == 404


def test_a_key_revoked_last_leaves_the_server_closed(launch, tmp_path, capsys):
    data = tmp_path / "data"
    main(["keys", "revoke", create(data, capsys), f"--data={data}"])
    with launch() as it:
        assert it.http.get(f"/queue/{APP}/requests/x/status").status_code == 401


def test_an_unmodified_python_client_calls_with_its_key(two, image, monkeypatch):
    it, mine, other = two
    monkeypatch.setattr(fal_client.client, "RUN_URL_FORMAT", f"{it.url}/run/")
    monkeypatch.setattr(fal_client.client, "QUEUE_URL_FORMAT", f"{it.url}/queue/")
    given = {"prompt": "a", "image_url": image}
    client, stranger, nobody = (fal_client.SyncClient(key=key) for key in (mine, other, "wrong"))
    try:
        assert client.subscribe(ENDPOINT, arguments=given)["prompt"] == "a, expanded"
        handle = client.submit(ENDPOINT, arguments=given)
        with pytest.raises(fal_client.client.FalClientHTTPError) as caught:
            stranger.result(ENDPOINT, handle.request_id)
        assert caught.value.status_code == 404
        with pytest.raises(fal_client.client.FalClientHTTPError) as caught:
            nobody.run(ENDPOINT, arguments=given)
        assert (caught.value.status_code, caught.value.message) == (401, "invalid key credentials")
        handle.get()
    finally:
        for one in (client, stranger, nobody):
            one._client.close()


def test_uploads_need_a_key_and_a_revoked_one_uploads_no_more(two):
    it, mine, other = two
    initiate = "/rest/storage/upload/initiate?storage_type=fal-cdn-v3"
    assert it.http.post(initiate, json={}).status_code == 401
    assert it.http.post("/rest/storage/auth/token", json={}).status_code == 401
    assert it.http.post("/cdn/files/upload", content=b"x").status_code == 401
    slot = it.http.post(initiate, json={"file_name": "a.txt"}, headers=as_key(mine)).json()
    bearer = as_key(it.http.post("/rest/storage/auth/token", json={}, headers=as_key(mine)).json()["token"], "Bearer")
    assert it.http.post("/cdn/files/upload", content=b"x", headers=bearer).status_code == 200
    assert it.http.put(slot["upload_url"], content=b"x").status_code == 200
    assert main(["keys", "revoke", mine, f"--data={it.settings.data}"]) == 0
    assert it.http.post("/cdn/files/upload", content=b"x", headers=bearer).status_code == 401
    assert it.http.put(slot["upload_url"], content=b"x").status_code == 403
    assert it.http.post(initiate, json={}, headers=as_key(other)).status_code == 200


def test_an_upload_of_another_key_is_404(two):
    it, mine, other = two
    tokens = [
        as_key(it.http.post("/rest/storage/auth/token", json={}, headers=as_key(key)).json()["token"], "Bearer")
        for key in (mine, other)
    ]
    begun = it.http.post("/cdn/files/upload/multipart", headers=tokens[0]).json()
    url = f"{begun['access_url']}/multipart/{begun['uploadId']}"
    assert it.http.put(f"{url}/1", content=b"x", headers=tokens[1]).status_code == 404
    etag = it.http.put(f"{url}/1", content=b"x", headers=tokens[0]).headers["etag"]
    parts = {"parts": [{"partNumber": 1, "etag": etag}]}
    assert it.http.post(f"{url}/complete", json=parts, headers=tokens[1]).status_code == 404
    assert it.http.post(f"{url}/complete", json=parts, headers=tokens[0]).status_code == 200


async def test_of_many_submits_at_once_no_more_are_accepted_than_the_keys_limit(database, keys):
    key, _ = await keys.create("a", max_in_flight=2)
    sender, store = sender_of(key), Store(database)
    found = await asyncio.gather(
        *(store.submit(str(n), b"{}", max_waiting=99, max_bytes=9999, sender=sender) for n in range(12))
    )
    assert sorted(found) == ["accepted"] * 2 + ["too many in flight"] * 10
