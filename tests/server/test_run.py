import base64
import contextlib
import io
import json
import socket
import sqlite3
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import av
import pytest
from starlette.requests import Request

from server.answers import read_body
from server.errors import FalError
from server.routes import run as run_module

ENDPOINT = "fal-ai/ltx-2.3-quality/image-to-video"


def test_a_post_waits_and_gives_the_output(server, image):
    answer = server.run(prompt="a", image_url=image, seed=7)
    assert answer.status_code == 200
    body = answer.json()
    assert list(body) == ["video", "seed", "prompt"]
    assert list(body["video"]) == ["url", "content_type", "file_name", "file_size"]
    assert body["seed"] == 7
    assert body["prompt"] == "a, expanded"
    assert body["video"]["url"].startswith(f"{server.url}/files/")
    # what was planned: 121 frames at the size that fits the image
    assert answer.headers["x-fal-billable-units"] == "17"
    assert len(answer.headers["x-fal-request-id"]) == 36
    data = server.http.get(body["video"]["url"]).content
    assert len(data) == body["video"]["file_size"]
    with av.open(io.BytesIO(data)) as clip:
        assert sum(1 for _ in clip.decode(video=0)) == 9


def test_a_seed_is_drawn_that_javascript_keeps_exactly(server, image):
    seeds = {server.run(prompt="a", image_url=image).json()["seed"] for _ in range(3)}
    assert len(seeds) == 3
    assert all(0 <= seed < 2**31 for seed in seeds)


def test_sync_mode_gives_the_clip_in_the_answer(server, image):
    url = server.run(prompt="a", image_url=image, sync_mode=True).json()["video"]["url"]
    head, _, body = url.partition(",")
    assert head == "data:video/mp4;base64"
    assert base64.b64decode(body)[4:8] == b"ftyp"


@pytest.mark.parametrize("kind", ["application/x-www-form-urlencoded", "text/plain", None])
def test_the_body_is_json_whatever_its_content_type(server, image, kind):
    headers = {} if kind is None else {"content-type": kind}
    body = json.dumps({"prompt": "a", "image_url": image})
    assert server.http.post(f"/{ENDPOINT}", content=body.encode(), headers=headers).status_code == 200


@pytest.mark.parametrize("path", [f"/{ENDPOINT}", f"/{ENDPOINT}/", f"/run/{ENDPOINT}", f"/run/{ENDPOINT}/"])
def test_every_form_of_the_path_runs(server, image, path):
    answer = server.http.post(path, json={"prompt": "a", "image_url": image})
    assert answer.status_code == 200
    assert not answer.history


def test_unknown_keys_and_lax_types_are_accepted_as_fal_does(server, image):
    answer = server.run(prompt="a", image_url=image, num_frames="121", generate_audio="false", new_key=1)
    assert answer.status_code == 200


@pytest.mark.parametrize("prompt", ["", "x" * 20_000, "日本語 😀"])
def test_unusual_prompts_behave(server, image, prompt):
    answer = server.run(prompt=prompt, image_url=image)
    assert answer.status_code == 200
    assert answer.json()["prompt"] == f"{prompt}, expanded"
    assert answer.content.isascii()


def test_an_unknown_application_is_404(server):
    answer = server.http.post("/fal-ai/h3-max/x", json={})
    assert answer.status_code == 404
    assert answer.json() == {"detail": 'Application "h3-max" not found'}


def test_an_unknown_path_of_the_application_is_404(server):
    answer = server.http.post(f"/{ENDPOINT}/stream", json={})
    assert answer.status_code == 404
    assert answer.json() == {"detail": "Path /image-to-video/stream not found"}


async def test_a_caller_who_goes_away_within_his_body_is_client_disconnected():
    async def gone() -> dict[str, str]:
        return {"type": "http.disconnect"}

    with pytest.raises(FalError) as caught:
        await read_body(Request({"type": "http", "headers": []}, gone))
    failure = caught.value.failure
    assert (failure.status, failure.error_type, failure.retryable) == (499, "client_disconnected", False)


def test_a_body_over_the_limit_is_413(launch, image):
    with launch(max_body_bytes=2000) as it:
        answer = it.run(prompt="x" * 3000, image_url=image)
        assert answer.status_code == 413
        assert answer.json()["error_type"] == "body_too_large"


LEFT = "orphaned < unixepoch() + 1"


def leave(server, body: bytes) -> None:
    """Posts `body` and closes the connection without waiting."""
    before = len(jobs_in(server.settings.data, LEFT))
    with socket.create_connection(("127.0.0.1", server.ports.http)) as connection:
        head = f"POST /{ENDPOINT} HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-length: {len(body)}\r\n\r\n"
        connection.sendall(head.encode() + body)
        while not jobs_in(server.settings.data, "orphaned > unixepoch() + 1 AND finished IS NULL"):
            time.sleep(0.01)
    while len(jobs_in(server.settings.data, LEFT)) == before:
        time.sleep(0.01)


def jobs_in(data: Path, which: str, *, what: str = "id, http_status") -> list[tuple]:
    """Id and HTTP status, or `what`, of the jobs for which the condition `which` holds."""
    with contextlib.closing(sqlite3.connect(data / "ltxd.sqlite3")) as database:
        return database.execute(f"SELECT {what} FROM jobs WHERE {which}").fetchall()  # noqa: S608 our own words


def asking(prompt: str, image: str) -> bytes:
    return json.dumps({"prompt": prompt, "image_url": image}).encode()


def test_a_job_whose_client_went_away_is_cancelled_in_the_end(launch, image):
    with launch(orphan_seconds=0.3) as it:
        leave(it, asking("slow", image))
        time.sleep(1)
    ((_, status),) = jobs_in(it.settings.data, "1")
    assert status == 499


def test_a_waiting_job_whose_client_went_away_is_cancelled_in_the_end(launch, image):
    with launch(orphan_seconds=0.1) as it:
        running = it.submit(prompt="slow", image_url=image)
        it.wait(running, "IN_PROGRESS")
        leave(it, asking("a", image))
        time.sleep(0.5)
        assert jobs_in(it.settings.data, "http_status = 499")
        assert it.http.get(running["status_url"]).json()["status"] == "IN_PROGRESS"


def test_an_equal_body_joins_the_job_that_its_client_had_left(launch, image):
    with launch(orphan_seconds=30) as it:
        leave(it, asking("brisk", image))
        assert it.http.post(f"/{ENDPOINT}", content=asking("brisk", image)).status_code == 200
    ((_, status),) = jobs_in(it.settings.data, "1")
    assert status == 200


def test_an_equal_body_gets_the_result_of_a_left_job_that_has_ended(launch, image):
    with launch(orphan_seconds=30) as it:
        leave(it, asking("brisk", image))
        while not jobs_in(it.settings.data, "http_status = 200"):
            time.sleep(0.05)
        answer = it.http.post(f"/{ENDPOINT}", content=asking("brisk", image))
        ((job_id, _),) = jobs_in(it.settings.data, "1")
        assert answer.headers["x-fal-request-id"] == job_id
        assert answer.json()["prompt"] == "brisk, expanded"
        # it was claimed: the next equal call is a job of its own
        assert it.http.post(f"/{ENDPOINT}", content=asking("brisk", image)).headers["x-fal-request-id"] != job_id


def test_a_call_is_attended_to_as_long_as_it_waits(launch, image, monkeypatch):
    monkeypatch.setattr(run_module, "ATTEND_SECONDS", 0.05)
    with launch() as it, ThreadPoolExecutor(1) as threads:
        call = threads.submit(it.http.post, f"/{ENDPOINT}", content=asking("slow", image))
        seen = set()
        while not call.done():
            seen |= {row[0] for row in jobs_in(it.settings.data, "1", what="orphaned")}
            time.sleep(0.02)
        assert call.result().status_code == 200
    assert len(seen) > 3
    assert all(time.time() < at < time.time() + 60 for at in seen)


def test_two_equal_calls_at_once_are_two_jobs(server, image):
    body = asking("brisk", image)
    with ThreadPoolExecutor(2) as threads:
        calls = [threads.submit(server.http.post, f"/{ENDPOINT}", content=body) for _ in range(2)]
        answers = [call.result() for call in calls]
    assert [answer.status_code for answer in answers] == [200, 200]
    assert len({answer.headers["x-fal-request-id"] for answer in answers}) == 2


def raw_answer(server, body: bytes) -> tuple[bytes, list[bytes]]:
    """The head of the answer to a post of `body`, and its parts as they came."""
    with socket.create_connection(("127.0.0.1", server.ports.http)) as connection:
        head = f"POST /{ENDPOINT} HTTP/1.1\r\nhost: 127.0.0.1\r\nconnection: close\r\ncontent-length: {len(body)}"
        connection.sendall(head.encode() + b"\r\n\r\n" + body)
        whole = b"".join(iter(lambda: connection.recv(65536), b""))
    head, _, body = whole.partition(b"\r\n\r\n")
    return head, body.split(b"\r\n")[1::2]


def test_a_call_that_waits_long_gets_blanks_only_where_they_are_turned_on(launch, image):
    with launch(heartbeat=True, heartbeat_after=0.2) as it:
        head, parts = raw_answer(it, asking("brisk", image))
        assert b"200 OK" in head
        assert b"x-fal-request-id: " in head
        assert parts[0] == b" "
        assert json.loads(b"".join(parts))["prompt"] == "brisk, expanded"
        # what it costs: a failure comes with 200 as well
        answer = it.http.post(f"/{ENDPOINT}", content=asking("brisk fail-late", image))
        assert answer.status_code == 200
        assert answer.json()["detail"][0]["type"] == "internal_server_error"
        # an outcome that is known in time has its own status
        assert it.run(prompt="a", image_url=image, num_frames=8).status_code == 422
    with launch(heartbeat_after=0.2) as it:
        head, parts = raw_answer(it, asking("brisk", image))
        assert b"transfer-encoding" not in head.lower()


def test_a_call_that_is_left_among_its_blanks_is_orphaned(launch, image):
    with launch(heartbeat=True, heartbeat_after=0.05, orphan_seconds=30) as it:
        leave(it, asking("brisk", image))
        assert it.http.post(f"/{ENDPOINT}", content=asking("brisk", image)).json()["prompt"] == "brisk, expanded"
        assert len(jobs_in(it.settings.data, "1")) == 1
