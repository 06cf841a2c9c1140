"""Many tiny jobs in a row: memory stays flat, and after retention nothing is left."""

import os
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import httpx2
import numpy as np
import psutil
import pytest

ENDPOINT = "fal-ai/ltx-2.3-quality/image-to-video"
SERVE_FAKE = Path(__file__).with_name("serve_fake.py")
JOBS, WARM_UP, EVERY = 500, 100, 10
SLOPE_BYTES = 50_000


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_500_jobs_leave_neither_memory_nor_files_nor_rows_behind(tmp_path, image, clip):
    data = tmp_path / "data"
    retention = {"LTX_RESULT_RETENTION": "1", "LTX_ROW_RETENTION": "1"}
    with subprocess.Popen(
        [sys.executable, str(SERVE_FAKE), str(data), str(clip)],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, **retention},
    ) as server:
        url = f"http://127.0.0.1:{server.stdout.readline().split(' ')[0]}"
        watched = psutil.Process(server.pid)
        grown: dict[str, list[tuple[int, int]]] = {"server": [], "generating process": []}
        with httpx2.Client(base_url=url, timeout=60, trust_env=False) as http:
            for n in range(JOBS):
                answer = http.post(f"/run/{ENDPOINT}", json={"prompt": "a", "image_url": image})
                assert answer.status_code == 200, answer.text
                if n >= WARM_UP and n % EVERY == 0:
                    for name, process in zip(grown, (watched, watched.children()[0]), strict=True):
                        grown[name].append((n, process.memory_info().rss))
        slopes = {name: float(np.polyfit(*zip(*seen, strict=True), 1)[0]) for name, seen in grown.items()}
        sys.stdout.write(f"bytes per job after {WARM_UP}: {slopes}\n")
        assert max(slopes.values()) < SLOPE_BYTES
        deadline = time.monotonic() + 150
        while (left := left_behind(data)) and time.monotonic() < deadline:
            time.sleep(1)
        assert not left
        server.terminate()
        assert server.wait(timeout=30) == 0


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
