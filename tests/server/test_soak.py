"""Many tiny jobs in a row: memory stays flat, and after retention nothing is left."""

import contextlib
import os
import socket
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
import psutil
import pytest

ENDPOINT = "fal-ai/ltx-2.3-quality/image-to-video"
SERVE_FAKE = Path(__file__).with_name("serve_fake.py")
SLOPE_BYTES = 50_000
DEMO_JOBS, DEMO_WARM_UP = 60, 20
RETENTION = {"LTX_RESULT_RETENTION": "1", "LTX_ROW_RETENTION": "1"}
SMALLEST = {"resolution": {"width": 32, "height": 32}, "num_frames": 9, "num_inference_steps": 8}


@contextlib.contextmanager
def serving(command: list[str], **environment: str) -> Iterator[subprocess.Popen[str]]:
    """A server as a process of its own, ended in order."""
    env = {name: value for name, value in os.environ.items() if not name.startswith("LTX_")}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=env | environment) as server:
        try:
            yield server
        finally:
            server.terminate()
        assert server.wait(timeout=30) == 0


def slopes(
    server: subprocess.Popen[str], http: httpx2.Client, given: dict[str, Any], *, jobs: int, warm_up: int, every: int
) -> dict[str, float]:
    """Bytes that each process grows by with a job, after the first `warm_up`."""
    watched = psutil.Process(server.pid)
    grown: dict[str, list[tuple[int, int]]] = {"server": [], "generating process": []}
    for n in range(jobs):
        answer = http.post(f"/run/{ENDPOINT}", json=given)
        assert answer.status_code == 200, answer.text
        if n >= warm_up and n % every == 0:
            for name, process in zip(grown, (watched, watched.children()[0]), strict=True):
                grown[name].append((n, process.memory_info().rss))
    found = {name: float(np.polyfit(*zip(*seen, strict=True), 1)[0]) for name, seen in grown.items()}
    sys.stdout.write(f"bytes per job after {warm_up} of {jobs}: {found}\n")
    return found


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_500_jobs_leave_neither_memory_nor_files_nor_rows_behind(tmp_path, image, clip):
    with serving([sys.executable, str(SERVE_FAKE), str(tmp_path), str(clip)], **RETENTION) as server:
        url = f"http://127.0.0.1:{server.stdout.readline().split(' ')[0]}"
        with httpx2.Client(base_url=url, timeout=60, trust_env=False) as http:
            given = {"prompt": "a", "image_url": image}
            grown = slopes(server, http, given, jobs=500, warm_up=100, every=10)
        assert max(grown.values()) < SLOPE_BYTES
        deadline = time.monotonic() + 150
        while (left := left_behind(tmp_path)) and time.monotonic() < deadline:
            time.sleep(1)
        assert not left


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_jobs_of_the_demo_model_leave_no_memory_behind(tmp_path, image):
    port = free_port()
    ltxd, data = [sys.executable, "-m", "server"], {"LTX_DATA": str(tmp_path)}
    subprocess.run([*ltxd, "weights", "build-demo"], env=os.environ | data, check=True)
    with (
        serving([*ltxd, "serve", f"--port={port}", "--tls-port=0"], **data) as server,
        httpx2.Client(base_url=f"http://127.0.0.1:{port}", timeout=120, trust_env=False) as http,
    ):
        until_ready(http)
        given = {"prompt": "The camera pans left.", "image_url": image, **SMALLEST}
        grown = slopes(server, http, given, jobs=DEMO_JOBS, warm_up=DEMO_WARM_UP, every=1)
    assert max(grown.values()) < SLOPE_BYTES


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def until_ready(http: httpx2.Client) -> None:
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        with contextlib.suppress(httpx2.TransportError):
            if http.get("/health/ready").status_code == 200:
                return
        time.sleep(0.2)
    raise AssertionError("never ready")


def left_behind(data: Path) -> list[str]:
    files = [str(path) for folder in ("blobs", "work") for path in (data / folder).rglob("*") if path.is_file()]
    connection = sqlite3.connect(data / "ltxd.sqlite3")
    rows = [
        f"{count} rows of {table}"
        for table in ("jobs", "logs", "files")
        if (count := connection.execute(f"SELECT count(*) FROM {table}").fetchone()[0])  # noqa: S608  # our names
    ]
    connection.close()
    return files + rows
