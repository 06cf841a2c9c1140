"""No route takes in more than its limit, whether it reads the body or not."""

import pytest

from server.errors import FalError
from server.limits import bounded

ENDPOINT = "fal-ai/ltx-2.3-quality/image-to-video"


def chunks(count: int):
    for _ in range(count):
        yield b"x" * 1000


def test_every_route_refuses_a_body_over_its_limit_by_its_length(launch):
    with launch(max_body_bytes=2000, max_upload_bytes=4000) as it:
        asked = [
            ("POST", f"/{ENDPOINT}"),
            ("POST", f"/queue/{ENDPOINT}"),
            ("PUT", f"/queue/{ENDPOINT}/requests/x/cancel"),
            ("GET", f"/queue/{ENDPOINT}/requests/x"),
            ("GET", "/health"),
            ("POST", "/rest/tokens"),
            ("POST", "/rest/storage/upload/initiate"),
            ("POST", "/rest/storage/auth/token"),
            ("POST", "/nothing"),
            ("DELETE", "/x"),
        ]
        for method, path in asked:
            answer = it.http.request(method, path, content=b"x" * 2001)
            assert (answer.status_code, path) == (413, path)
            assert answer.json()["error_type"] == "body_too_large"
            assert answer.headers["x-fal-request-id"]
        for method, path in (("POST", "/cdn/files/upload"), ("PUT", "/files/x/y"), ("GET", "/files/x/y")):
            assert it.http.request(method, path, content=b"x" * 3000).status_code != 413
            assert it.http.request(method, path, content=b"x" * 4001).status_code == 413


def test_a_body_of_unknown_length_is_cut_off_at_the_limit(launch):
    with launch(max_body_bytes=2000, max_upload_bytes=4000) as it:
        for path in (f"/{ENDPOINT}", f"/queue/{ENDPOINT}", "/rest/tokens", "/rest/storage/upload/initiate"):
            assert it.http.post(path, content=chunks(3)).status_code == 413, path
        assert it.http.post("/cdn/files/upload", content=chunks(3)).status_code == 200
        assert it.http.post("/cdn/files/upload", content=chunks(5)).status_code == 413


async def test_what_is_counted_is_the_whole_body_and_the_last_allowed_byte_passes():
    parts = [b"x" * 600, b"x" * 400, b"x"]

    async def receive():
        return {"type": "http.request", "body": parts.pop(0), "more_body": True}

    counted = bounded(receive, limit=1000)
    assert len((await counted())["body"] + (await counted())["body"]) == 1000
    with pytest.raises(FalError, match="more than the 1000 bytes"):
        await counted()
