"""What a large upload costs the server, as a process of its own."""

import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx2
import pytest

PIECE = bytes(range(256)) * 4096
PIECES = 100
MIB = 1 << 20
PART_PIECES = 10
GROWTH = 20 * MIB


@pytest.fixture(scope="module")
def program(tmp_path_factory, clip) -> Iterator[tuple[int, httpx2.Client]]:
    """The id of the server's process, and a client of it."""
    data = tmp_path_factory.mktemp("memory")
    command = [sys.executable, str(Path(__file__).with_name("serve_fake.py")), str(data), str(clip)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        port = process.stdout.readline().split()[0]
        with httpx2.Client(base_url=f"http://127.0.0.1:{port}", timeout=60, trust_env=False) as http:
            # what the first upload loads of modules is not what a large one costs
            http.post("/files/upload", content=PIECE)
            yield process.pid, http
        process.terminate()


def memory(pid: int, what: str) -> int:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith(f"{what}:"):
            return int(line.split()[1]) * 1024
    raise AssertionError(f"no {what}")


def whole() -> Iterator[bytes]:
    for _ in range(PIECES):
        yield PIECE


def by_token(http: httpx2.Client) -> str:
    return http.post("/files/upload", content=whole()).json()["access_url"]


def by_address(http: httpx2.Client) -> str:
    where = http.post("/rest/storage/upload/initiate", json={}).json()
    assert http.put(where["upload_url"], content=whole()).status_code == 200
    return where["file_url"]


def in_parts_at_once(http: httpx2.Client) -> str:
    """As Python does: ten parts of 10 MiB, all at once."""
    made = http.post("/files/upload/multipart").json()
    url = f"{made['access_url']}/multipart/{made['uploadId']}"

    def put(n: int) -> dict[str, object]:
        answer = http.put(f"{url}/{n}", content=PIECE * PART_PIECES)
        return {"partNumber": n, "etag": answer.headers["etag"]}

    numbers = range(1, PIECES // PART_PIECES + 1)
    with ThreadPoolExecutor(len(numbers)) as threads:
        parts = list(threads.map(put, numbers))
    assert http.post(f"{url}/complete", json={"parts": parts}).status_code == 200
    return made["access_url"]


@pytest.mark.parametrize("way", [by_token, by_address, in_parts_at_once], ids=lambda way: way.__name__)
def test_an_upload_of_100_mb_costs_at_most_20_mb_of_memory(program, way):
    pid, http = program
    before = memory(pid, "VmRSS")
    Path(f"/proc/{pid}/clear_refs").write_text("5")
    url = way(http)
    grown = memory(pid, "VmHWM") - before
    assert int(http.head(url).headers["content-length"]) == PIECES * MIB
    assert grown <= GROWTH, f"{grown / MIB:.1f} MiB"
    # reading it back is streamed as well
    with http.stream("GET", url) as answer:
        assert sum(map(len, answer.iter_raw())) == PIECES * MIB
    assert memory(pid, "VmHWM") - before <= GROWTH
    sys.stdout.write(f"{way.__name__}: {grown / MIB:.1f} MiB\n")
