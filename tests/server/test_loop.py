"""The event loop goes on turning: watched during whole jobs, from submit to the clip that is read."""

import asyncio
import base64
import io
import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx2
import pytest
from PIL import Image

from tests.server.watched import Watch

ROOT = Path(__file__).parents[2]
PHOTO = ROOT / "examples/photos/astronaut.jpg"
SUBMIT = "/queue/fal-ai/ltx-2.3-quality/image-to-video"
MIB = 1 << 20
MOST = 0.050
"""Units: seconds that one turn of the loop may take."""

TRIES = 3


@pytest.fixture
def watched(launch):
    """A server, and the watch over its loop from the start on."""
    watch = Watch()
    with launch(selector=watch) as server:
        yield server, watch


@pytest.fixture
def noise() -> bytes:
    """A submit with a photo of about ten megabytes, the most that fal takes in a data URI."""
    buffer = io.BytesIO()
    Image.effect_noise((3200, 2400), 100).save(buffer, "PNG")
    uri = "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
    assert 9e6 < len(uri) < 14e6
    return f'{{"prompt": "slow log:hello", "image_url": "{uri}"}}'.encode()


def test_no_turn_of_the_loop_takes_long_during_whole_jobs(watched, noise, image):
    server, watch = watched
    # why: a thread that loses the processor while it holds the interpreter holds the loop too; that is the machine's
    # doing and does not come back, while what the server does wrong comes back every time
    longest = [watch_jobs(server, watch, noise, image)]
    while min(longest) >= MOST and len(longest) < TRIES:
        longest.append(watch_jobs(server, watch, noise, image))
    assert min(longest) < MOST, longest


def watch_jobs(server, watch, noise: bytes, image: str) -> float:
    """The longest turn during two jobs, from submit to the clip that is read."""
    watch.turns.clear()
    large = server.http.post(SUBMIT, content=noise).json()
    small = server.submit(prompt="slow", image_url=image)
    for submitted in (large, small):
        assert "error" not in server.wait(submitted)
        output = server.http.get(submitted["response_url"]).json()
        assert server.http.get(output["video"]["url"]).status_code == 200
    assert len(watch.turns) > 200
    return max(watch.turns)


def test_a_turn_that_takes_long_is_seen_and_waiting_for_the_processor_is_not():
    watch = Watch()
    loop = asyncio.SelectorEventLoop(watch)
    loop.run_until_complete(_hold(0.08))
    assert max(watch.turns) >= MOST
    loop.close()


async def _hold(seconds: float) -> None:
    await asyncio.sleep(0)
    # why: a lock, a disk or a long call of C holds the loop like this
    time.sleep(seconds)  # noqa: ASYNC251 -- what the test is about
    await asyncio.sleep(0)


@pytest.fixture
def real(tmp_path) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """`ltxd serve` with the demo weights under a watch that counts all of the time, and its address."""
    weights = ["weights", "build-demo", "--out", str(tmp_path / "models/demo")]
    subprocess.run([sys.executable, "-m", "server", *weights], cwd=ROOT, check=True)
    command = [sys.executable, "-m", "tests.server.watched", str(tmp_path)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        base = f"http://127.0.0.1:{int(process.stdout.readline())}"
        while httpx2.get(f"{base}/health/ready", trust_env=False).status_code != 200:
            assert process.poll() is None
            time.sleep(0.2)
        yield process, base
        process.kill()


@pytest.mark.slow
def test_no_turn_of_the_loop_takes_long_during_a_whole_job_of_the_model(real, noise):
    process, base = real
    with httpx2.Client(base_url=base, timeout=60, trust_env=False) as http:
        job = http.post(SUBMIT, json={"prompt": "The camera pans left.", "image_url": photo()}).json()
        done = threading.Event()
        with ThreadPoolExecutor() as threads:
            beside = [
                threads.submit(again, done, 0.01, lambda: http.get(job["status_url"], params={"logs": 1})),
                threads.submit(again, done, 0.5, lambda: cancelled(http, {"prompt": "p", "image_url": photo()})),
                threads.submit(again, done, 2.0, lambda: cancelled(http, json.loads(noise))),
                threads.submit(again, done, 1.0, lambda: there_and_back(http)),
            ]
            while http.get(job["status_url"]).json()["status"] != "COMPLETED":
                time.sleep(0.1)
            done.set()
            times = [task.result() for task in beside]
        output = http.get(job["response_url"]).json()
        assert http.get(output["video"]["url"]).content[4:8] == b"ftyp"
    process.terminate()
    seen = json.loads(process.stdout.read().splitlines()[-1])
    sys.stdout.write(f"{seen['turns']} turns, the longest {1000 * seen['longest']:.1f} ms; beside the job {times}\n")
    assert all(times)
    assert seen["turns"] > 1000
    assert seen["longest"] < MOST


def photo() -> str:
    return "data:image/jpeg;base64," + base64.b64encode(PHOTO.read_bytes()).decode()


def again(done: threading.Event, pause: float, what: Callable[[], object]) -> int:
    """Does something again and again until all is done; gives how often."""
    times = 0
    while not done.wait(pause):
        what()
        times += 1
    return times


def cancelled(http: httpx2.Client, given: dict[str, object]) -> None:
    """Submits a job and cancels it."""
    assert http.put(http.post(SUBMIT, json=given).json()["cancel_url"]).status_code == 202


def there_and_back(http: httpx2.Client) -> None:
    """Uploads 100 MiB, and downloads them."""
    url = http.post("/files/upload", content=(bytes(MIB) for _ in range(100))).json()["access_url"]
    with http.stream("GET", url) as answer:
        assert sum(map(len, answer.iter_raw())) == 100 * MIB
