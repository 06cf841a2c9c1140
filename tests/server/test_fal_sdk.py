"""The real `fal` package, which is not fal_client: its `fal.apps` tells the end of a job by the HTTP status alone."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from server.__main__ import main

INSTALLED = Path(__file__).parents[1] / "contract/python_modules/fal"

pytestmark = pytest.mark.full

SCRIPT = """
import os, time
from fal import apps
E = "fal-ai/ltx-2.3-quality/image-to-video"
given = {"prompt": "slow log:hello", "image_url": os.environ["TEST_IMAGE"]}

first = apps.submit("fal-ai/ltx-2.3-quality", given, path="image-to-video")
second = apps.submit("fal-ai/ltx-2.3-quality", given | {"prompt": "a"}, path="image-to-video")
assert isinstance(second.status(), apps.Queued), second.status()
seen = [type(state).__name__ for state in first.iter_events(logs=True)]
assert "InProgress" in seen and "Completed" not in seen, seen
ended = first.status(logs=True)
assert isinstance(ended, apps.Completed) and ended.error is None, ended
assert "hello" in [line["message"] for line in ended.logs]
assert first.get()["prompt"].endswith(", expanded")
assert second.get()["video"]["content_type"] == "video/mp4"

wrong = apps.submit("fal-ai/ltx-2.3-quality", given | {"num_frames": 8}, path="image-to-video")
while not isinstance(state := wrong.status(), apps.Completed):
    time.sleep(0.1)
assert state.error_type == "greater_than_equal", state

cancelled = apps.submit("fal-ai/ltx-2.3-quality", given, path="image-to-video")
cancelled.cancel()
while not isinstance(state := cancelled.status(), apps.Completed):
    time.sleep(0.1)
assert state.error_type == "client_cancelled", state

out = apps.run("fal-ai/ltx-2.3-quality", given | {"prompt": "a"}, path="image-to-video")
assert out["seed"] >= 0
"""


def test_the_sdk_follows_a_job_to_its_end(server, image, capsys, tmp_path):
    if not (INSTALLED / "fal").is_dir():
        pytest.fail("the package fal is missing: make test-full installs it")
    assert main(["client", "env", f"--data={server.settings.data}", f"--tls-port={server.ports.tls}"]) == 0
    printed = re.findall(r"^export (\w+)=(.*)$", capsys.readouterr().out, re.MULTILINE)
    values = {name: shlex.split(value)[0] for name, value in printed}
    path = {"PATH": os.environ["PATH"], "HOME": str(tmp_path), "PYTHONPATH": str(INSTALLED)}
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT],
        env=path | values | {"FAL_KEY": "a:b", "TEST_IMAGE": image},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
