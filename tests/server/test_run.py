import base64
import contextlib
import io
import json
import socket
import sqlite3
import time
from pathlib import Path

import av
import pytest

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


def test_a_body_over_the_limit_is_413(launch, image):
    with launch(max_body_bytes=2000) as it:
        answer = it.run(prompt="x" * 3000, image_url=image)
        assert answer.status_code == 413
        assert answer.json()["error_type"] == "body_too_large"


def leave(server, body: bytes) -> None:
    """Posts `body` and closes the connection without waiting."""
    with socket.create_connection(("127.0.0.1", server.ports.http)) as connection:
        head = f"POST /{ENDPOINT} HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-length: {len(body)}\r\n\r\n"
        connection.sendall(head.encode() + body)
        time.sleep(0.2)


def one(data: Path, column: str) -> object:
    """What the only job of a server that has ended holds in `column`."""
    with contextlib.closing(sqlite3.connect(data / "ltxd.sqlite3")) as database:
        (row,) = database.execute(f"SELECT {column} FROM jobs").fetchall()  # noqa: S608 our own word
        return row[0]


def test_a_job_whose_client_went_away_is_cancelled_in_the_end(launch, image):
    with launch(orphan_seconds=0.3) as it:
        leave(it, json.dumps({"prompt": "slow", "image_url": image}).encode())
        time.sleep(1)
    assert one(it.settings.data, "http_status") == 499


def test_an_equal_body_joins_the_job_that_its_client_had_left(launch, image):
    with launch(orphan_seconds=30) as it:
        body = json.dumps({"prompt": "slow", "image_url": image}).encode()
        leave(it, body)
        assert it.http.post(f"/{ENDPOINT}", content=body).status_code == 200
    assert one(it.settings.data, "http_status") == 200


def test_two_equal_calls_at_once_are_two_jobs(server, image):
    first = server.submit(prompt="slow", image_url=image)
    second = server.submit(prompt="slow", image_url=image)
    assert first["request_id"] != second["request_id"]
    for job in (first, second):
        server.http.put(job["cancel_url"])
