"""Uploads by every way that clients know, each as fal's clients send it."""

import asyncio
import hashlib
import io
import json
import time
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from urllib.parse import urlsplit

import pytest
from PIL import Image
from sqlalchemy import select, update

from server.blobs import BlobsUnavailableError, LocalBlobs
from server.errors import FalError
from server.settings import Settings
from server.sweeper import sweep
from server.tables import PARTS
from server.tokens import TICKET_SECONDS, Holder, Slot, Tokens
from server.uploads import Uploads, _part_id, new_slot

DATA = bytes(range(256)) * 40
INITIATE = "/rest/storage/upload/initiate"


def png() -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (64, 48), "teal").save(buffer, "PNG")
    return buffer.getvalue()


def announce(server, path: str = INITIATE, *, name: str = "a.png", kind: str = "image/png", **headers: str):
    given = {"file_name": name, "content_type": kind}
    answer = server.http.post(f"{path}?storage_type=fal-cdn-v3", json=given, headers=headers)
    assert answer.status_code == 200, answer.text
    return answer.json()


def by_token(server, data: bytes, **headers: str) -> str:
    token = server.http.post("/rest/storage/auth/token?storage_type=fal-cdn-v3", json={}).json()
    headers |= {"authorization": f"{token['token_type']} {token['token']}"}
    answer = server.http.post("/cdn/files/upload", content=data, headers=headers)
    assert answer.status_code == 200, answer.text
    return answer.json()["access_url"]


def by_address(server, data: bytes, **headers: str) -> str:
    where = announce(server, "/rest/storage/upload/initiate", kind=headers.get("content-type", "image/png"))
    assert server.http.put(where["upload_url"], content=data).status_code == 200
    return where["file_url"]


def in_parts_as_python(server, data: bytes, **headers: str) -> str:
    token = server.http.post("/rest/storage/auth/token", json={}).json()
    authorization = {"authorization": f"Bearer {token['token']}"}
    headers |= authorization
    made = server.http.post(f"{token['base_url']}/files/upload/multipart", headers=headers).json()
    parts = []
    for n, start in ((1, 0), (3, 8000), (2, 4000)):
        url = f"{made['access_url']}/multipart/{made['uploadId']}/{n}"
        end = None if n == 3 else start + 4000
        answer = server.http.put(url, content=data[start:end], headers=authorization)
        parts.append({"partNumber": n, "etag": answer.headers["etag"]})
    url = f"{made['access_url']}/multipart/{made['uploadId']}/complete"
    assert server.http.post(url, json={"parts": parts}, headers=authorization).status_code == 200
    return made["access_url"]


def in_parts_as_javascript(server, data: bytes, **headers: str) -> str:
    where = announce(server, f"{INITIATE}-multipart", kind=headers.get("content-type", "image/png"))
    url = urlsplit(where["upload_url"])
    parts = []
    for n, start in ((1, 0), (2, 4000), (3, 8000)):
        chunk = data[start:] if n == 3 else data[start : start + 4000]
        parts.append(server.http.put(f"{url.path}/{n}?{url.query}", content=chunk).json())
    wanted = [{"partNumber": part["partNumber"], "etag": part["etag"]} for part in parts]
    assert server.http.post(f"{url.path}/complete?{url.query}", json={"parts": wanted}).status_code == 200
    return where["file_url"]


WAYS = [by_token, by_address, in_parts_as_python, in_parts_as_javascript]


@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__)
def test_what_was_uploaded_is_read_back(server, way):
    url = way(server, DATA, **{"content-type": "image/png", "x-fal-file-name": "a.png"})
    assert url.startswith(f"{server.url}/files/")
    assert url.endswith("/a.png")
    answer = server.http.get(url)
    assert answer.content == DATA
    assert answer.headers["content-type"] == "image/png"
    assert answer.headers["etag"] == f'"{hashlib.sha256(DATA).hexdigest()}"'
    assert server.http.get(url, headers={"range": "bytes=10-19"}).content == DATA[10:20]


@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__)
def test_an_uploaded_file_is_the_start_image_without_http(server, way):
    # that loopback is forbidden to downloads shows that this was none
    url = way(server, png() + bytes(9000), **{"content-type": "image/png"})
    for name in (url, url.replace(server.url, "https://v3.fal.media")):
        assert server.run(prompt="a", image_url=name).status_code == 200
    other = url.replace("/files/", "/other/")
    assert server.run(prompt="a", image_url=other).json()["detail"][0]["type"] == "file_download_error"


def test_a_token_says_until_when_and_where_as_the_python_client_reads_it(server):
    body = server.http.post("/rest/storage/auth/token/?storage_type=fal-cdn-v3", json={}).json()
    assert list(body) == ["token", "token_type", "base_url", "expires_at"]
    left = datetime.fromisoformat(body["expires_at"]) - datetime.now(UTC)
    assert 3000 < left.total_seconds() <= 3600
    assert (body["token_type"], body["base_url"]) == ("Bearer", server.url)


@pytest.mark.parametrize(
    ("path", "headers"),
    [
        ("/files/upload", {"host": "v3.fal.media"}),
        ("/files/upload", {"host": "v3b.fal.media"}),
        ("/files/upload/", {}),
        ("/cdn/files/upload/", {}),
        ("/api/fal/proxy", {"x-fal-target-url": "https://v3.fal.media/files/upload"}),
    ],
)
def test_the_cdn_takes_files_by_every_name(server, path, headers):
    answer = server.http.post(path, content=DATA, headers=headers, follow_redirects=False)
    assert answer.status_code == 200
    url = answer.json()["access_url"]
    host = headers.get("host", urlsplit(server.url).netloc)
    assert url.startswith(f"http://{host}/files/")
    path = urlsplit(url).path
    for name in (path,) if "host" in headers else (path, f"/cdn{path}"):
        assert server.http.get(name, headers={"host": host}).content == DATA


@pytest.mark.parametrize(
    ("path", "headers"),
    [
        ("/storage/upload/initiate?storage_type=gcs", {"host": "rest.fal.ai"}),
        ("/storage/upload/initiate/", {"host": "rest.alpha.fal.ai"}),
        (
            "/api/fal/proxy",
            {"x-fal-target-url": "https://rest.fal.ai/storage/upload/initiate?storage_type=fal-cdn-v3"},
        ),
    ],
)
def test_the_rest_host_says_where_to_upload_by_every_name(server, path, headers):
    answer = server.http.post(path, json={"file_name": "a b.bin", "content_type": "x/y"}, headers=headers)
    assert answer.status_code == 200
    where = answer.json()
    assert set(where) == {"upload_url", "file_url"}
    host = headers.get("host", urlsplit(server.url).netloc)
    assert where["upload_url"].startswith(f"http://{host}/files/")
    put = server.http.put(where["upload_url"].replace(host, urlsplit(server.url).netloc), content=DATA)
    assert put.status_code == 200
    assert put.headers["etag"]


def test_a_browser_may_put_a_file_that_it_announced(launch):
    with launch(cors_origins=("https://my.example",)) as it:
        origin = {"origin": "https://my.example"}
        where = announce(it, **origin)
        asked = {"access-control-request-method": "PUT", "access-control-request-headers": "content-type"}
        assert (
            "PUT"
            in it.http.options(where["upload_url"], headers=origin | asked).headers["access-control-allow-methods"]
        )
        answer = it.http.put(where["upload_url"], content=DATA, headers=origin)
        assert answer.headers["access-control-allow-origin"]
        assert "etag" in answer.headers["access-control-expose-headers"]
        stranger = {"origin": "https://evil.example"}
        assert it.http.put(where["upload_url"], content=DATA, headers=stranger).status_code == 403
        assert it.http.get(where["file_url"], headers=stranger).headers["access-control-allow-origin"] == "*"


def test_a_repeated_upload_is_welcome_and_another_content_is_not(server):
    where = announce(server)
    for _ in range(2):
        assert server.http.put(where["upload_url"], content=DATA).status_code == 200
    answer = server.http.put(where["upload_url"], content=b"other")
    assert answer.status_code == 400
    assert server.http.get(where["file_url"]).content == DATA


def test_a_repeated_part_replaces_the_first_and_a_repeated_completion_is_welcome(server):
    where = announce(server, f"{INITIATE}-multipart")
    url = urlsplit(where["upload_url"])
    for content in (b"first", b"second"):
        part = server.http.put(f"{url.path}/1?{url.query}", content=content).json()
    for _ in range(2):
        answer = server.http.post(f"{url.path}/complete?{url.query}", json={"parts": [part]})
        assert answer.status_code == 200
        assert answer.json()["access_url"] == where["file_url"]
    assert server.http.get(where["file_url"]).content == b"second"


@pytest.mark.parametrize(
    "parts",
    [
        [],
        [{"partNumber": 2, "etag": "x"}],
        [{"partNumber": 1, "etag": "wrong"}],
        [{"partNumber": 1, "etag": hashlib.sha256(b"part").hexdigest()}, {"partNumber": 2, "etag": "x"}],
    ],
)
def test_an_upload_is_not_completed_with_parts_that_are_not_there(server, parts):
    where = announce(server, f"{INITIATE}-multipart")
    url = urlsplit(where["upload_url"])
    server.http.put(f"{url.path}/1?{url.query}", content=b"part")
    answer = server.http.post(f"{url.path}/complete?{url.query}", json={"parts": parts})
    assert answer.status_code == 400
    assert answer.json()["error_type"] == "bad_request"
    assert server.http.get(where["file_url"]).status_code == 404


@pytest.mark.parametrize("number", ["0", "10001", "-1", "x", "%C2%B2", "1e3", "9" * 50])
def test_a_part_has_a_number(server, number):
    where = announce(server, f"{INITIATE}-multipart")
    url = urlsplit(where["upload_url"])
    assert server.http.put(f"{url.path}/{number}?{url.query}", content=b"part").status_code == 400


@pytest.mark.parametrize("ticket", ["", "x", "a.b.c", "%00", "é"])
def test_nobody_uploads_to_an_address_that_was_not_given_to_him(server, ticket):
    where = announce(server)
    path = urlsplit(where["upload_url"]).path
    other = announce(server)["upload_url"].partition("?")[2]
    for query in (f"ticket={ticket}", other):
        answer = server.http.put(f"{path}?{query}", content=DATA)
        assert answer.status_code == 403
        assert answer.json()["error_type"] == "forbidden"
    assert server.http.get(where["file_url"]).status_code == 404


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"\xff",
        b"[]",
        b"null",
        b'{"file_name": 5}',
        b'{"content_type": ["x"]}',
        b'{"file_name": "\\ud800"}',
        b'{"file_name": NaN}',
        b"[" * 100_000,
    ],
)
def test_rubbish_never_is_a_fault_of_the_server(server, body):
    where = announce(server, f"{INITIATE}-multipart")
    url = urlsplit(where["upload_url"])
    for path in (INITIATE, f"{INITIATE}-multipart", f"{url.path}/complete?{url.query}"):
        answer = server.http.post(path, content=body)
        assert answer.status_code in (200, 422), answer.text
        assert answer.headers["x-fal-request-id"]


@pytest.mark.parametrize(
    ("given", "name"),
    [
        ("photo.jpg", "photo.jpg"),
        ("../../etc/passwd", "passwd"),
        ("C:\\pictures\\a b.png", "a_b.png"),
        ("日本.png", "__.png"),
        (".hidden", "hidden"),
        ("", "upload.png"),
        ("..", "upload.png"),
        ("日本", "upload.png"),
        ("x" * 300 + ".png", "x" * 96 + ".png"),
        ('a"\r\nx: 1', "a___x__1"),
    ],
)
def test_a_name_is_made_safe(given, name):
    assert new_slot(given, "image/png", key_id=None, keep_for=None).name == name


@pytest.mark.parametrize(
    ("given", "kind"),
    [
        ("image/png", "image/png"),
        ("Image/PNG; charset=x", "image/png"),
        ("", "application/octet-stream"),
        ("png", "application/octet-stream"),
        ("a/b\r\nx: 1", "application/octet-stream"),
        ("x/" + "y" * 200, "application/octet-stream"),
    ],
)
def test_a_type_is_one_or_none(given, kind):
    assert new_slot("a", given, key_id=None, keep_for=None).content_type == kind


@pytest.mark.parametrize("kind", ["text/html", "image/svg+xml", "application/pdf", "text/javascript"])
def test_what_a_browser_would_run_is_only_handed_out_for_saving(server, kind):
    answer = server.http.get(by_token(server, b"<script>", **{"content-type": kind}))
    assert answer.headers["content-type"] == "application/octet-stream"
    assert answer.headers["content-disposition"].startswith("attachment")
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.headers["content-security-policy"].startswith("sandbox")


def test_an_upload_over_the_limit_is_refused_by_its_length_and_by_its_bytes(launch):
    with launch(max_upload_bytes=5000, max_image_bytes=1024) as it:
        where = announce(it)
        url = urlsplit(where["upload_url"])
        for body in (bytes(6000), iter([bytes(3000), bytes(3000)])):
            answer = it.http.put(where["upload_url"], content=body)
            assert answer.status_code == 413
            assert answer.json()["error_type"] == "body_too_large"
        assert it.http.put(f"{url.path}/1?{url.query}", content=bytes(3000)).status_code == 200
        assert it.http.put(f"{url.path}/2?{url.query}", content=bytes(3000)).status_code == 413
        assert it.http.put(f"{url.path}/1?{url.query}", content=bytes(4000)).status_code == 200
        assert list((it.settings.data / "incoming").iterdir()) == []
        # an upload may be larger than a start image
        large = by_token(it, bytes(4000))
        (entry,) = it.run(prompt="a", image_url=large).json()["detail"]
        assert (entry["type"], entry["ctx"]) == ("file_too_large", {"max_size": 1024})


def test_an_upload_that_breaks_off_leaves_nothing(launch):
    with launch() as it:
        where = announce(it)

        def broken():
            yield bytes(3_000_000)
            raise OSError("the cable was pulled")

        with pytest.raises(OSError, match="cable"):
            it.http.put(where["upload_url"], content=broken())
        incoming = it.settings.data / "incoming"
        deadline = time.monotonic() + 5
        while list(incoming.iterdir()) and time.monotonic() < deadline:
            time.sleep(0.01)
        assert list(incoming.iterdir()) == []
        assert it.http.get(where["file_url"]).status_code == 404
        assert it.http.put(where["upload_url"], content=DATA).status_code == 200


@pytest.mark.parametrize("header", ["x-fal-object-lifecycle", "x-fal-object-lifecycle-preference"])
def test_a_file_lives_as_long_as_its_caller_said(launch, header):
    with launch() as it:
        wish = {header: json.dumps({"expiration_duration_seconds": 1})}
        short = [by_token(it, DATA, **wish), announce(it, **wish)]
        it.http.put(short[1]["upload_url"], content=DATA)
        short[1] = short[1]["file_url"]
        long = by_token(it, DATA)
        assert [it.http.get(url).status_code for url in [*short, long]] == [200] * 3
        assert it.http.get(short[0]).headers["cache-control"] in (f"public, max-age={n}, immutable" for n in (0, 1))
        time.sleep(1)
        assert [it.http.get(url).status_code for url in [*short, long]] == [404, 404, 200]


def test_a_result_lives_as_long_as_its_caller_said(launch, image):
    with launch() as it:
        wish = {"x-fal-object-lifecycle-preference": '{"expiration_duration_seconds": 1}'}
        given = {"prompt": "a", "image_url": image}
        for role in ("run", "queue"):
            answer = it.http.post(f"/{role}/fal-ai/ltx-2.3-quality/image-to-video", json=given, headers=wish).json()
            if role == "queue":
                it.wait(answer)
                answer = it.http.get(answer["response_url"]).json()
            assert it.http.get(answer["video"]["url"]).status_code == 200
            time.sleep(1)
            assert it.http.get(answer["video"]["url"]).status_code == 404


# -- without a server


@pytest.fixture
async def parts(store, tmp_path):
    """On every kind of database."""
    blobs = LocalBlobs(tmp_path / "blobs")
    return store, blobs, Uploads(Settings(data=tmp_path), store, blobs)


async def one(data: bytes):
    yield data


def bytes_in(folder: Path) -> int:
    return sum(1 for path in folder.rglob("*") if path.is_file())


async def test_the_sweeper_removes_expired_files_and_parts_that_were_never_completed(parts, tmp_path):
    store, blobs, uploads = parts
    kept = new_slot("a", "image/png", key_id=None, keep_for=None)
    await uploads.put(kept, one(DATA))
    await uploads.put(new_slot("b", "image/png", key_id=None, keep_for=0.01), one(DATA))
    left = new_slot("c", "image/png", key_id=None, keep_for=None)
    await uploads.put_part(left, 1, one(DATA))
    assert bytes_in(tmp_path / "blobs") == 3
    await asyncio.sleep(0.02)
    await sweep(store, blobs, row_retention=60)
    await uploads.sweep()
    assert bytes_in(tmp_path / "blobs") == 2
    await store.write(lambda c: c.execute(update(PARTS).values(created=time.time() - TICKET_SECONDS - 1)))
    await uploads.sweep()
    assert bytes_in(tmp_path / "blobs") == 1
    assert await store.read(lambda c: c.scalar(select(PARTS.c.number))) is None
    assert (await store.file(kept.file_id)).size == len(DATA)


async def test_a_completed_upload_leaves_no_parts(parts, tmp_path):
    store, _, uploads = parts
    slot = new_slot("a", "image/png", key_id="me", keep_for=9)
    etags = [(n, await uploads.put_part(slot, n, one(bytes([n]) * 10))) for n in (2, 1)]
    await uploads.complete(slot, etags)
    assert bytes_in(tmp_path / "blobs") == 1
    file = await store.file(slot.file_id)
    assert (file.size, file.key_id, file.job_id) == (20, "me", None)
    assert 8 < file.expires - file.created <= 9


class FailingOnce(LocalBlobs):
    """Blobs that fail at one call with one id."""

    fails: tuple[str, str] | None = None

    async def put(self, blob_id: str, source: Path) -> None:
        self.meet("put", blob_id)
        await super().put(blob_id, source)

    async def delete(self, blob_id: str) -> None:
        self.meet("delete", blob_id)
        await super().delete(blob_id)

    def meet(self, call: str, blob_id: str) -> None:
        if self.fails == (call, blob_id):
            self.fails = None
            raise BlobsUnavailableError("503 Slow Down")


@pytest.mark.parametrize(("call", "at"), [("put", "the file"), ("delete", "part 1"), ("delete", "part 2")])
async def test_a_completion_that_failed_is_made_good_by_the_next(store, tmp_path, call, at):
    blobs = FailingOnce(tmp_path / "blobs")
    uploads = Uploads(Settings(data=tmp_path), store, blobs)
    slot = new_slot("a", "image/png", key_id=None, keep_for=None)
    etags = [(n, await uploads.put_part(slot, n, one(bytes([n]) * 10))) for n in (1, 2)]
    blobs.fails = call, slot.file_id if at == "the file" else _part_id(slot.file_id, int(at[-1]))
    with pytest.raises(BlobsUnavailableError):
        await uploads.complete(slot, etags)
    await uploads.complete(slot, etags)
    assert await blobs.read(slot.file_id) == bytes([1]) * 10 + bytes([2]) * 10


async def test_of_two_completions_at_once_both_succeed(store, tmp_path):
    blobs = FailingOnce(tmp_path / "blobs")
    uploads = Uploads(Settings(data=tmp_path), store, blobs)
    slot = new_slot("a", "image/png", key_id=None, keep_for=None)
    etags = [(n, await uploads.put_part(slot, n, one(bytes([n]) * 10))) for n in range(1, 9)]
    await asyncio.gather(*(uploads.complete(slot, etags) for _ in range(4)))
    assert await blobs.read(slot.file_id) == b"".join(bytes([n]) * 10 for n in range(1, 9))


async def test_a_part_whose_bytes_were_lost_with_their_node_has_to_be_sent_again(parts):
    _, blobs, uploads = parts
    slot = new_slot("a", "image/png", key_id=None, keep_for=None)
    etag = await uploads.put_part(slot, 1, one(DATA))
    await blobs.delete(_part_id(slot.file_id, 1))
    with pytest.raises(FalError, match="part 1 has to be sent again"):
        await uploads.complete(slot, [(1, etag)])
    await uploads.put_part(slot, 1, one(DATA))
    await uploads.complete(slot, [(1, etag)])


async def test_parts_that_come_in_at_once_are_not_more_than_an_upload_may_be(store, tmp_path):
    uploads = Uploads(Settings(data=tmp_path, max_upload_bytes=5000), store, LocalBlobs(tmp_path / "blobs"))
    slot = new_slot("a", "image/png", key_id=None, keep_for=None)
    all_began = asyncio.Barrier(8)

    async def late():
        await all_began.wait()
        yield bytes(2000)

    ended = await asyncio.gather(*(uploads.put_part(slot, n, late()) for n in range(1, 9)), return_exceptions=True)
    refused = [end for end in ended if not isinstance(end, str)]
    assert [error.failure.status for error in refused] == [413] * 6
    assert await store.read(lambda c: c.scalars(select(PARTS.c.size)).all()) == [2000, 2000]


async def test_parts_that_are_too_much_together_are_not_completed(store, tmp_path):
    blobs = LocalBlobs(tmp_path / "blobs")
    wide, narrow = (
        Uploads(Settings(data=tmp_path / str(most), max_upload_bytes=most), store, blobs) for most in (5000, 3999)
    )
    slot = new_slot("a", "image/png", key_id=None, keep_for=None)
    etags = [(n, await wide.put_part(slot, n, one(bytes(2000)))) for n in (1, 2)]
    with pytest.raises(FalError) as raised:
        await narrow.complete(slot, etags)
    assert raised.value.failure.status == 413
    assert await store.file(slot.file_id) is None
    await wide.complete(slot, etags)


async def test_an_upload_in_parts_is_completed_by_another_node_in_a_folder_and_in_a_bucket(store, blobs, tmp_path):
    here, there = (Uploads(Settings(data=tmp_path / name), store, blobs) for name in ("here", "there"))
    slot = new_slot("a", "image/png", key_id=None, keep_for=None)
    etags = [(n, await here.put_part(slot, n, one(bytes([n]) * 70_000))) for n in (3, 1, 2)]
    await there.complete(slot, etags)
    assert await blobs.read(slot.file_id) == b"".join(bytes([n]) * 70_000 for n in (1, 2, 3))
    assert (await store.file(slot.file_id)).size == 210_000
    assert await store.read(lambda c: c.scalar(select(PARTS.c.number))) is None
    # what was completed there is found complete here
    await here.complete(slot, etags)


def test_no_upload_is_taken_while_the_disk_is_nearly_full(launch):
    with launch(min_free_bytes=2**60) as it:
        where = announce(it)
        url = urlsplit(where["upload_url"])
        for path in (where["upload_url"], f"{url.path}/1?{url.query}"):
            answer = it.http.put(path, content=DATA)
            assert (answer.status_code, answer.json()["error_type"]) == (503, "storage_full")


def test_what_an_earlier_server_left_of_uploads_is_removed_at_start(tmp_path):
    (tmp_path / "incoming").mkdir()
    (tmp_path / "incoming/half").write_bytes(DATA)
    Uploads(Settings(data=tmp_path), None, None)
    assert list((tmp_path / "incoming").iterdir()) == []


def test_a_token_is_no_ticket_and_neither_is_another_servers():
    ours, other = (
        Tokens(SimpleNamespace(current=lambda _name, it=secret: it, known=lambda _name, it=secret: [it]))
        for secret in (b"a" * 32, b"b" * 32)
    )
    slot = Slot("id", "name", "x/y", "key", 5.0)
    token, ends = ours.upload_token(Holder("key"))
    ticket = ours.ticket(slot, until=None)
    assert ours.slot(ticket) == slot
    assert ours.holder(token) == Holder("key")
    assert ours.holder(ours.upload_token(Holder(None, ends + 9))[0]) == Holder(None, ends + 9)
    assert ours.slot(token) is None
    assert ours.holder(ticket) is None
    assert ours.read(token) is ours.read(ticket) is None
    assert ours.holder(ours.token("key", apps=["a"], seconds=9)) is None
    assert other.slot(ticket) is other.holder(token) is None
    assert ours.holder("") is None
