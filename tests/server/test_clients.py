"""The real Python client, unchanged, led here by the environment that `ltxd client env` prints."""

import os
import re
import shlex
import subprocess
import sys

import pytest

from server.__main__ import main

PRELUDE = """
import asyncio, json, os, sys, time
import fal_client
image = os.environ["TEST_IMAGE"]
E = "fal-ai/ltx-2.3-quality/image-to-video"
"""

SYNC = """
from fal_client import Completed, InProgress, Queued

out = fal_client.run(E, arguments={"prompt": "a", "image_url": image, "seed": 3})
assert out["seed"] == 3, out
assert out["video"]["url"].startswith("https://127.0.0.1:"), out

h = fal_client.submit(E, arguments={"prompt": "slow log:hello", "image_url": image})
assert isinstance(h.status(), (Queued, InProgress))
seen = [type(e).__name__ for e in h.iter_events(with_logs=True, interval=0.05)]
assert seen[-1] == "Completed" and "InProgress" in seen, seen
assert "hello" in [line["message"] for line in h.status(with_logs=True).logs]
assert h.status().metrics["inference_time"] > 0.9
assert h.get()["prompt"].endswith(", expanded")
same = fal_client.SyncClient().get_handle(E, h.request_id)
assert (same.status_url, same.response_url, same.cancel_url) == (h.status_url, h.response_url, h.cancel_url)
assert same.get() == h.get()
assert fal_client.result(E, h.request_id) == h.get()

told = []
def update(u):
    if isinstance(u, InProgress):
        for log in u.logs:
            told.append(log["message"])
out = fal_client.subscribe(E, arguments={"prompt": "slow", "image_url": image}, with_logs=True, on_queue_update=update)
assert any(m.startswith("denoise") for m in told), told

h = fal_client.submit(E, arguments={"prompt": "slow", "image_url": image})
h.cancel()
for e in h.iter_events():
    pass
assert e.error_type == "client_cancelled", e
try:
    h.get()
    raise SystemExit("not cancelled")
except fal_client.client.FalClientHTTPError as error:
    assert error.status_code == 499 and error.error_type == "client_cancelled", error
try:
    h.cancel()
    raise SystemExit("cancelled twice")
except fal_client.client.FalClientHTTPError as error:
    assert error.status_code == 400, error

for call in (fal_client.run, fal_client.subscribe):
    try:
        call(E, arguments={"prompt": "a", "image_url": image, "num_frames": 1})
        raise SystemExit("accepted")
    except fal_client.client.FalClientHTTPError as error:
        assert error.status_code == 422, error
        assert error.message[0]["loc"] == ["body", "num_frames"], error.message
"""

TERMS = """
import httpx
from fal_client import Queued
from fal_client.client import FalClientHTTPError, FalClientTimeoutError

def busy():
    return [fal_client.submit(E, arguments={"prompt": "slow", "image_url": image}) for _ in range(3)]

# the client's own clock: it cancels its job and says so
before = busy()
states = [handle.status() for handle in before]
assert isinstance(states[2], Queued) and states[2].position in (1, 2), states
seen = []
try:
    fal_client.subscribe(
        E, arguments={"prompt": "a", "image_url": image}, client_timeout=1.2, on_enqueue=seen.append
    )
    raise SystemExit("it was in time")
except FalClientTimeoutError as error:
    assert error.request_id == seen[0], error
[*_, last] = fal_client.SyncClient().get_handle(E, seen[0]).iter_events()
assert last.error_type in ("client_cancelled", "request_timeout"), last

# the server's clock: 504, which is not asked for again
begun = time.monotonic()
try:
    fal_client.run(E, arguments={"prompt": "a", "image_url": image}, start_timeout=1.1)
    raise SystemExit("it was in time")
except FalClientHTTPError as error:
    assert (error.status_code, error.error_type) == (504, "request_timeout"), error
    assert error.response_headers["x-fal-request-timeout-type"] == "user"
assert time.monotonic() - begun < 6
for handle in before:
    try:
        handle.cancel()
    except FalClientHTTPError as error:
        assert error.status_code == 400, error

# priority, hint and lifetime are accepted, and a failed job is Completed with its error
handle = fal_client.submit(
    E, arguments={"prompt": "unsafe", "image_url": image}, priority="low", hint="any", start_timeout=60
)
[*_, last] = handle.iter_events()
assert isinstance(last, fal_client.Completed) and last.error_type == "content_policy_violation", last
try:
    handle.get()
    raise SystemExit("it was safe")
except FalClientHTTPError as error:
    assert (error.status_code, error.error_type) == (422, "content_policy_violation"), error
    assert error.message[0]["input"] == "unsafe"

# this model has no stream and no such path
try:
    list(fal_client.stream(E, arguments={"prompt": "a", "image_url": image}))
    raise SystemExit("it streams")
except Exception as error:
    assert "404" in str(error) or "text/event-stream" in str(error), repr(error)
"""

ASYNC = """
async def go():
    out = await fal_client.run_async(E, arguments={"prompt": "a", "image_url": image})
    assert out["video"]["file_size"] > 0
    h = await fal_client.submit_async(E, arguments={"prompt": "slow", "image_url": image})
    seen = []
    async for event in h.iter_events(with_logs=True):
        seen.append(type(event).__name__)
    assert seen[-1] == "Completed", seen
    assert (await h.get())["video"]["content_type"] == "video/mp4"
    h = await fal_client.submit_async(E, arguments={"prompt": "slow", "image_url": image})
    await h.cancel()
    try:
        await h.get()
        raise SystemExit("not cancelled")
    except fal_client.client.FalClientHTTPError as error:
        assert error.status_code == 499
    told = []
    out = await fal_client.subscribe_async(
        E, arguments={"prompt": "a", "image_url": image}, with_logs=True, on_queue_update=told.append
    )
    assert out["seed"] >= 0 and told
asyncio.run(go())
"""

SEED_PAGE = """
def on_queue_update(update):
    if isinstance(update, fal_client.InProgress):
        for log in update.logs:
           print(log["message"])

result = fal_client.subscribe(
    "fal-ai/ltx-2.3-quality/image-to-video",
    arguments={
        "prompt": "A woman stands still amid a busy neon-lit street at night.",
        "image_url": image
    },
    with_logs=True,
    on_queue_update=on_queue_update,
)
print(result)
"""


@pytest.fixture
def environment(server, image, capsys):
    assert main(["client", "env", f"--data={server.settings.data}", f"--tls-port={server.ports.tls}"]) == 0
    printed = dict(re.findall(r"^export (\w+)=(.*)$", capsys.readouterr().out, re.MULTILINE))
    assert set(printed) >= {"FAL_RUN_HOST", "FAL_QUEUE_RUN_HOST", "SSL_CERT_FILE"}
    values = {name: shlex.split(value)[0] for name, value in printed.items()}
    clean = {k: v for k, v in os.environ.items() if not k.lower().endswith("_proxy") and not k.startswith("SSL_")}
    return {"FAL_KEY": "x"} | clean | values | {"TEST_IMAGE": image}


@pytest.mark.parametrize("script", [SYNC, TERMS, ASYNC, SEED_PAGE], ids=["sync", "terms", "async", "seed page"])
def test_the_python_client_works_with_the_environment_alone(environment, script):
    done = subprocess.run(
        [sys.executable, "-c", PRELUDE + script],
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
