"""Time and memory of the two cases that LOG.md follows, as a table, and as JSON with --json FILE.

Through the server, over HTTP: seconds from start to the port answering and to ready, seconds of a warm request, and
the peak memory of all its processes. In this process, on the pipeline alone: seconds by stage. Figures are medians of
--runs; one request before them warms up. Linux only.
"""

import argparse
import base64
import contextlib
import json
import os
import platform
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx2

ROOT = Path(__file__).parents[1]
ENDPOINT = "fal-ai/ltx-2.3-quality/image-to-video"
REQUEST = ROOT / "examples/seed_request.json"
LTXD = str(Path(sys.executable).with_name("ltxd"))
READY_SECONDS = 120.0
STOP_SECONDS = 60.0
SAMPLE_SECONDS = 0.05
SEED = 42

CASES: dict[str, dict[str, Any]] = {
    "seed page, all defaults": {},
    "256x256, 25 frames": {"resolution": {"width": 256, "height": 256}, "num_frames": 25},
}


@dataclass(frozen=True)
class Start:
    """Units: seconds since the command was started; `idle_mb` in megabytes of all processes, once ready."""

    port: float
    ready: float
    idle_mb: float


@dataclass(frozen=True)
class Served:
    """Units: `seconds` of one warm request, `peak_mb` in megabytes of all processes, sampled."""

    seconds: float
    runs: list[float]
    peak_mb: float


def main() -> int:
    """Runs the benchmark; gives the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=5, help="default: 5")
    parser.add_argument("--data", type=Path, default=ROOT / "data", help="folder with models/demo. Default: data/")
    parser.add_argument("--json", type=Path, help="also write everything to this file")
    parser.add_argument("--only", choices=("server", "stages"), help="one of the two halves")
    args = parser.parse_args()
    found: dict[str, Any] = {"date": datetime.now(UTC).isoformat(timespec="seconds"), "machine": machine()}
    print(f"{found['date']}  {found['machine']}, median of {args.runs}")
    if args.only != "stages":
        found |= through_server(args.data.absolute(), runs=args.runs)
    if args.only != "server":
        found["stages"] = by_stage(args.data.absolute(), runs=args.runs)
    if args.json:
        args.json.write_text(json.dumps(found, indent=2) + "\n")
    return 0


def machine() -> str:
    """Processor, cores and Python, in words."""
    info = Path("/proc/cpuinfo").read_text()
    model = next((line.partition(": ")[2] for line in info.splitlines() if line.startswith("model name")), "unknown")
    return f"{model}, {len(os.sched_getaffinity(0))} cores, Python {platform.python_version()}"


def request(case: dict[str, Any]) -> dict[str, Any]:
    """The model page's request with the bundled photo, changed as `case` says."""
    given: dict[str, Any] = json.loads(REQUEST.read_text())
    photo = (REQUEST.parent / given["image_url"]).read_bytes()
    return given | {"image_url": "data:image/jpeg;base64," + base64.b64encode(photo).decode(), "seed": SEED} | case


def through_server(data: Path, *, runs: int) -> dict[str, Any]:
    """Start and requests, measured from outside."""
    with server(data) as (process, http):
        start = measure_start(process, http)
        print(f"\nserver       port after {start.port:.2f} s, ready after {start.ready:.2f} s, {start.idle_mb:.0f} MB")
        print(f"{'request':26} {'seconds':>8} {'peak MB':>8}")
        served = {}
        for name, case in CASES.items():
            served[name] = measure_requests(process, http, request(case), runs=runs)
            print(f"{name:26} {served[name].seconds:8.2f} {served[name].peak_mb:8.0f}", flush=True)
    return {"start": asdict(start), "served": {name: asdict(s) for name, s in served.items()}}


@contextlib.contextmanager
def server(data: Path) -> Iterator[tuple[subprocess.Popen[bytes], httpx2.Client]]:
    """A server of our own, just started, and a client for it."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    env = {k: v for k, v in os.environ.items() if not k.startswith("LTX_")} | {"LTX_DATA": str(data)}
    with (data / "bench-server.log").open("wb") as log:
        process = subprocess.Popen(  # noqa: S603 our own command
            [LTXD, "serve", "--host=127.0.0.1", f"--port={port}", "--tls-port=0"],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            env=env,
        )
    try:
        with httpx2.Client(base_url=f"http://127.0.0.1:{port}", timeout=600, trust_env=False) as http:
            yield process, http
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def measure_start(process: subprocess.Popen[bytes], http: httpx2.Client) -> Start:
    """The times of a start that has just begun."""
    began = time.monotonic()
    port = None
    while time.monotonic() - began < READY_SECONDS and process.poll() is None:
        with contextlib.suppress(httpx2.TransportError):
            answer = http.get("/health/ready")
            port = port or time.monotonic() - began
            if answer.status_code == 200:
                return Start(port, time.monotonic() - began, megabytes(process.pid))
        time.sleep(0.02)
    raise SystemExit(f"the server is not ready; see {ROOT / 'data'}/bench-server.log")


def measure_requests(
    process: subprocess.Popen[bytes], http: httpx2.Client, given: dict[str, Any], *, runs: int
) -> Served:
    """The time of a warm request and the peak of memory over all of them."""
    peak, done = [0.0], threading.Event()

    def watch() -> None:
        while not done.wait(SAMPLE_SECONDS):
            peak[0] = max(peak[0], megabytes(process.pid))

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        took = []
        for _ in range(runs + 1):
            began = time.monotonic()
            http.post(f"/{ENDPOINT}", json=given).raise_for_status()
            took.append(time.monotonic() - began)
    finally:
        done.set()
        watcher.join()
    return Served(statistics.median(took[1:]), took[1:], peak[0])


def megabytes(pid: int) -> float:
    """Resident memory of a process and all that it started. Pages they share count once for each."""
    total = 0
    waiting = [pid]
    while waiting:
        one = waiting.pop()
        with contextlib.suppress(OSError):
            status = Path(f"/proc/{one}/statm").read_text()
            total += int(status.split()[1]) * os.sysconf("SC_PAGE_SIZE")
            for task in Path(f"/proc/{one}/task").iterdir():
                waiting += [int(child) for child in (task / "children").read_text().split()]
    return total / 1e6


def by_stage(data: Path, *, runs: int) -> dict[str, dict[str, float]]:
    """Median seconds of every stage of the pipeline, by case."""
    # torch is imported only now, so that it did not disturb the server
    from pipeline import generate, loading, recipe
    from pipeline.picture import open_picture, save_picture
    from pipeline.plan import make_plan
    from pipeline.types import Size
    from server.schema import ImageToVideoInput
    from server.words import to_request

    chosen = recipe.load("demo")
    loaded = loading.start(chosen, models=data / "models", classifier=None, threshold=0.8, forced=False)
    print(f"\npipeline     {loaded.model.weights} on {loaded.model.device}, loaded in {loaded.model.seconds:.2f} s")
    medians = {}
    for name, case in CASES.items():
        given = ImageToVideoInput.model_validate(request(case))
        with tempfile.TemporaryDirectory() as folder:
            picture = open_picture(base64.b64decode(given.image_url.partition(",")[2]))
            image = Path(folder) / "image.png"
            save_picture(picture, image)
            wanted = to_request(given, image=image, image_size=Size(picture.width, picture.height))
            plan = make_plan(wanted, chosen)
            output = Path(folder) / "clip.mp4"
            took = [finish(generate.generate(loaded, wanted, plan, output=output)) for _ in range(runs + 1)]
        stages = {stage: statistics.median(t[stage] for t in took[1:]) for stage in took[0]}
        medians[name] = stages | {"total": statistics.median(sum(t.values()) for t in took[1:])}
        print(f"{name}: {plan.size}, {plan.num_frames} frames")
        for stage, seconds in medians[name].items():
            print(f"  {stage:24} {seconds:8.3f} s", flush=True)
    return medians


def finish(clip: Any) -> dict[str, float]:
    """The seconds by stage of a generation, run to its end."""
    while True:
        try:
            next(clip)
        except StopIteration as end:
            seconds: dict[str, float] = end.value.seconds
            return seconds


if __name__ == "__main__":
    sys.exit(main())
