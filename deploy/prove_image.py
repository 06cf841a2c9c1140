"""Builds the image without a Docker daemon, runs it read-only as uid 10001, and posts one demo request to it.

For a plain Debian machine, as root: `apt-get install buildah debootstrap runc`, then `python3 deploy/prove_image.py`.
The base is made by debootstrap, the image by buildah with chroot isolation, the container by runc with the host's
network, a read-only root, no capabilities and no new privileges. Needs nothing but the standard library. What the
build must see of this machine (certificates, a pip.conf, wheels) is named by --mount.
"""

import argparse
import base64
import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
UID = 10001
PORT = 18471
BASE = "localhost/ltxd-base"
IMAGE = "localhost/ltxd"
PACKAGES = "ca-certificates,python3,python3-venv,python3-pip"
READY_SECONDS = 180.0


def main() -> int:
    """Builds, runs and asks; gives the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("/var/tmp/ltxd-image"), help="folder for all it makes")  # noqa: S108 -- ours alone, made 0700
    parser.add_argument("--base", help="an image to build on instead of one made by debootstrap")
    parser.add_argument("--mount", action="append", default=[], help="HOST:CONTAINER, read-only, while building")
    args = parser.parse_args()
    missing = [tool for tool in ("buildah", "debootstrap", "runc") if not shutil.which(tool)]
    if missing or os.geteuid():
        wanted = f"install {' '.join(missing)}" if missing else "run it as root"
        sys.stderr.write(f"prove_image: {wanted}\n")
        return 1
    args.work.mkdir(mode=0o700, parents=True, exist_ok=True)
    took: dict[str, float] = {}
    with timed(took, "base"):
        base = args.base or make_base(args.work)
    with timed(took, "build"):
        build(base, args.mount)
    with mounted(IMAGE) as root:
        print(f"image    {du(root) / 1e6:.0f} MB")
        data = args.work / "data"
        for name in ("data", "cache"):
            (args.work / name).mkdir(exist_ok=True)
            os.chown(args.work / name, UID, UID)
        bundle = args.work / "bundle"
        with timed(took, "demo weights"), container(bundle, root, ["weights", "build-demo"], args.work) as process:
            if process.wait():
                raise SystemExit("prove_image: the demo weights could not be built in the container")
        with timed(took, "request"), container(bundle, root, ["serve"], args.work) as process:
            wait_until_ready(process)
            print(f"refused  {refusals(bundle)}")
            clip = ask()
            process.send_signal(signal.SIGTERM)
            status = process.wait(60)
        (args.work / "clip.mp4").write_bytes(clip)
        print(f"clip     {len(clip)} bytes, {args.work / 'clip.mp4'}; the server left with status {status}")
        print(f"owner    uid {(data / 'ltxd.sqlite3').stat().st_uid}")
    print("seconds  " + ", ".join(f"{name} {seconds:.0f}" for name, seconds in took.items()))
    return int(b"ftyp" not in clip[:12] or status != 0)


@contextmanager
def timed(took: dict[str, float], name: str) -> Iterator[None]:
    """Notes under `name` how many seconds its block took."""
    began = time.monotonic()
    yield
    took[name] = time.monotonic() - began


def run(*command: str) -> str:
    """Standard output of `command`, which must succeed."""
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.strip()


def make_base(work: Path) -> str:
    """An image of a minimal Debian 12 with Python; made once."""
    if BASE in run("buildah", "images", "--format", "{{.Name}}").splitlines():
        return BASE
    tree = work / "base"
    if not (tree / "etc/debian_version").exists():
        run("debootstrap", "--variant=minbase", f"--include={PACKAGES}", "bookworm", str(tree))
    packed = work / "base.tar"
    with tarfile.open(packed, "w") as tar:
        tar.add(tree, "/")
    empty = run("buildah", "from", "scratch")
    run("buildah", "add", "--quiet", empty, str(packed), "/")
    run("buildah", "commit", "--quiet", "--rm", empty, BASE)
    return BASE


def build(base: str, mounts: Sequence[str]) -> None:
    """Builds the image from the Dockerfile as it is."""
    volumes = [word for mount in mounts for word in ("--volume", f"{mount}:ro")]
    # OCI images have no HEALTHCHECK
    run("buildah", "bud", "--format", "docker", "--isolation", "chroot", "--layers", "--pull-never", "--quiet",
        *volumes, "--build-arg", f"BASE={base}", "--tag", IMAGE, str(ROOT))  # fmt: skip


@contextmanager
def mounted(image: str) -> Iterator[Path]:
    """The file tree of `image`."""
    name = run("buildah", "from", "--pull-never", image)
    try:
        yield Path(run("buildah", "mount", name))
    finally:
        run("buildah", "rm", name)


@contextmanager
def container(bundle: Path, root: Path, command: list[str], work: Path) -> Iterator["subprocess.Popen[bytes]"]:
    """`ltxd` with `command` in a container, as the image's own ENTRYPOINT runs it."""
    config = json.loads(run("buildah", "inspect", "--type", "image", IMAGE))["Docker"]["config"]
    bundle.mkdir(exist_ok=True)
    (bundle / "config.json").unlink(missing_ok=True)
    run("runc", "spec", "--bundle", str(bundle))
    spec: dict[str, Any] = json.loads((bundle / "config.json").read_text())
    spec["root"] = {"path": str(root), "readonly": True}
    spec["process"] |= {
        "terminal": False,
        "user": {"uid": UID, "gid": UID},
        "args": [*config["Entrypoint"], *command],
        "env": [*config["Env"], f"LTX_PORT={PORT}", "LTX_TLS_PORT=0", "LTX_RECIPE=demo"],
        "cwd": "/",
        "noNewPrivileges": True,
        "capabilities": {},
    }
    del spec["process"]["rlimits"]
    spec["linux"]["namespaces"] = [n for n in spec["linux"]["namespaces"] if n["type"] in {"pid", "mount", "ipc"}]
    spec["linux"].pop("resources", None)
    del spec["hostname"]
    spec["mounts"] = [m for m in spec["mounts"] if m["type"] not in {"sysfs", "cgroup"}]
    spec["mounts"].append({"destination": "/tmp", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "nodev"]})  # noqa: S108 -- inside
    for name in ("data", "cache"):
        spec["mounts"].append(
            {"destination": f"/{name}", "type": "bind", "source": str(work / name), "options": ["bind", "rw"]}
        )
    (bundle / "config.json").write_text(json.dumps(spec))
    process = subprocess.Popen(["runc", "run", "--bundle", str(bundle), f"ltxd-{os.getpid()}"])
    try:
        yield process
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()


def wait_until_ready(process: "subprocess.Popen[bytes]") -> None:
    """Returns once the server in the container can generate."""
    deadline = time.monotonic() + READY_SECONDS
    while time.monotonic() < deadline and process.poll() is None:
        try:
            urllib.request.urlopen(f"http://127.0.0.1:{PORT}/health/ready", timeout=5).close()
        except (urllib.error.URLError, OSError):
            time.sleep(0.5)
        else:
            return
    raise SystemExit(f"prove_image: not ready after {READY_SECONDS:.0f} s")


def refusals(bundle: Path) -> str:
    """What the container answers to a write outside its volumes."""
    spec = json.loads((bundle / "config.json").read_text())
    name = f"ltxd-{os.getpid()}"
    tried = subprocess.run(
        ["runc", "exec", name, "sh", "-c", "id -u; touch /opt/x /etc/x /x; true"],
        check=True, capture_output=True, text=True,
    )  # fmt: skip
    writes = [line.split(": ")[-1] for line in tried.stderr.splitlines()]
    if tried.stdout.strip() != str(UID) or len(writes) != 3 or not spec["root"]["readonly"]:
        raise SystemExit(f"prove_image: not read-only as {UID}: {tried.stdout} {tried.stderr}")
    return f"{len(writes)} writes outside the volumes, as uid {tried.stdout.strip()}: {', '.join(sorted(set(writes)))}"


def ask() -> bytes:
    """The clip that the server makes of the demo request."""
    request = json.loads((ROOT / "examples/seed_request.json").read_text())
    photo = ROOT / "examples" / request["image_url"]
    request["image_url"] = f"data:image/jpeg;base64,{base64.b64encode(photo.read_bytes()).decode()}"
    asked = urllib.request.Request(
        f"http://127.0.0.1:{PORT}/run/fal-ai/ltx-2.3-quality/image-to-video",
        data=json.dumps(request).encode(),
        headers={"Content-Type": "application/json"},
    )
    with urllib.request.urlopen(asked, timeout=300) as answer:
        url = json.load(answer)["video"]["url"]
    with urllib.request.urlopen(url, timeout=30) as answer:
        clip: bytes = answer.read()
    return clip


def du(root: Path) -> int:
    """Bytes of all files below `root`."""
    return sum(path.lstat().st_size for path in root.rglob("*") if path.is_file() and not path.is_symlink())


if __name__ == "__main__":
    sys.exit(main())
