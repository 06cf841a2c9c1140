"""`make demo`: a server, the model page's own request through the installed fal_client, an MP4 with sound in out/."""

import argparse
import contextlib
import json
import os
import shlex
import signal
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import av
import httpx2

ROOT = Path(__file__).parents[1]
ENDPOINT = "fal-ai/ltx-2.3-quality/image-to-video"
REQUEST = ROOT / "examples/seed_request.json"
LTXD = str(Path(sys.executable).with_name("ltxd"))
READY_SECONDS = 120.0
STOP_SECONDS = 45.0
TAIL_LINES = 20


class DemoError(Exception):
    """The demo cannot go on; the message says why."""


@dataclass(frozen=True)
class Server:
    """A running `ltxd serve` of our own."""

    process: subprocess.Popen[bytes]
    data: Path
    log: Path
    port: int
    tls_port: int

    def why(self) -> str:
        """The end of its log."""
        lines = self.log.read_text("utf-8", "replace").splitlines()[-TAIL_LINES:]
        return "\n".join([f"the end of {self.log}:", *(f"  {line}" for line in lines)])


def main() -> int:
    """Runs the demo; gives the exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, default=ROOT / "data", help="the server's data folder")
    parser.add_argument("--out", type=Path, default=ROOT / "out", help="where the MP4 goes")
    args = parser.parse_args()
    data, out = args.data.absolute(), args.out.absolute()
    try:
        with serve(data) as server:
            model = wait_until_ready(server)
            print(f"server   http://127.0.0.1:{server.port}, {model['weights']} on {model['device']}")
            began = time.monotonic()
            result = ask(server)
            seconds = time.monotonic() - began
            path = download(result["video"]["url"], to=out / f"demo-{result['seed']}.mp4")
    except DemoError as error:
        print(f"make demo: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    print(f"path     {path}")
    print(f"seed     {result['seed']}")
    print(f"seconds  {seconds:.1f}")
    print(f"file     {describe(path)}")
    return 0


def environment(data: Path) -> dict[str, str]:
    """This process's environment without any other setting of the server."""
    return {k: v for k, v in os.environ.items() if not k.startswith("LTX_")} | {"LTX_DATA": str(data)}


@contextlib.contextmanager
def serve(data: Path) -> Iterator[Server]:
    """A server on free loopback ports, stopped in the end by its pid."""
    data.mkdir(parents=True, exist_ok=True)
    log = data / "demo-server.log"
    port, tls_port = free_ports()
    command = [LTXD, "serve", "--host=127.0.0.1", f"--port={port}", f"--tls-port={tls_port}"]
    with log.open("wb") as file:
        # a group of its own: Ctrl-C reaches this script, and this script ends the server
        process = subprocess.Popen(  # noqa: S603 our own command
            command,
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            env=environment(data),
            start_new_session=True,
        )
    try:
        yield Server(process, data, log, port, tls_port)
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def free_ports() -> tuple[int, int]:
    """Two loopback ports that nobody listens on."""
    with socket.socket() as one, socket.socket() as two:
        for probe in (one, two):
            probe.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1]), int(two.getsockname()[1])


def wait_until_ready(server: Server) -> dict[str, Any]:
    """What the server says of its model, once it can generate.

    Raises: DemoError if it leaves, says that it failed, or takes too long.
    """
    deadline = time.monotonic() + READY_SECONDS
    with httpx2.Client(base_url=f"http://127.0.0.1:{server.port}", trust_env=False) as http:
        while time.monotonic() < deadline:
            if server.process.poll() is not None:
                raise DemoError(f"the server left with status {server.process.returncode}; {server.why()}")
            with contextlib.suppress(httpx2.TransportError):
                answer = http.get("/health/ready")
                state = answer.json()
                if answer.status_code == 200:
                    model: dict[str, Any] = state["model"]
                    return model
                if state["status"] == "failed":
                    raise DemoError(f"the model did not load: {state['error']}; {server.why()}")
            time.sleep(0.1)
    raise DemoError(f"the server is not ready after {READY_SECONDS:g} s; {server.why()}")


def ask(server: Server) -> dict[str, Any]:
    """The result of the model page's request, its logs printed as they come.

    Raises: DemoError.
    """
    os.environ.update(client_environment(server))
    # fal_client reads the environment when it is imported
    import fal_client

    request = json.loads(REQUEST.read_text("utf-8"))
    photo = REQUEST.parent / request["image_url"]
    request["image_url"] = fal_client.encode_file(photo)
    print(f"photo    {photo.relative_to(ROOT)}")
    print(f"prompt   {request['prompt']}", flush=True)
    seen = 0

    def tell(update: fal_client.Status) -> None:
        nonlocal seen
        if isinstance(update, fal_client.InProgress | fal_client.Completed):
            lines = update.logs or []
            for line in lines[seen:]:
                print(f"  {line['message']}", flush=True)
            seen = max(seen, len(lines))

    try:
        result: dict[str, Any] = fal_client.subscribe(
            ENDPOINT, arguments=request, with_logs=True, on_queue_update=tell, interval=0.25
        )
    except (fal_client.FalClientError, OSError) as error:
        raise DemoError(f"the request failed: {error}; {server.why()}") from error
    return result


def client_environment(server: Server) -> dict[str, str]:
    """The variables that lead fal_client to `server`, as `ltxd client env` prints them.

    Raises: DemoError.
    """
    command = [LTXD, "client", "env", "--host=127.0.0.1", f"--tls-port={server.tls_port}"]
    done = subprocess.run(  # noqa: S603 our own command
        command, env=environment(server.data), capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise DemoError(f"`ltxd client env` failed: {done.stderr.strip()}")
    words = [word for word in shlex.split(done.stdout) if "=" in word]
    # a proxy for the outside world would not find this machine's loopback
    return dict(word.split("=", 1) for word in words) | {"NO_PROXY": "127.0.0.1", "no_proxy": "127.0.0.1"}


def download(url: str, *, to: Path) -> Path:
    """The file at `url`, saved.

    Raises: DemoError.
    """
    trusted = ssl.create_default_context(cafile=os.environ["SSL_CERT_FILE"])
    to.parent.mkdir(parents=True, exist_ok=True)
    try:
        answer = httpx2.get(url, verify=trusted, trust_env=False, timeout=60)
        answer.raise_for_status()
    except httpx2.HTTPError as error:
        raise DemoError(f"the clip at {url} cannot be fetched: {error}") from error
    to.write_bytes(answer.content)
    return to


def describe(path: Path) -> str:
    """Size, frames, rate, sound and bytes of a clip, as it decodes."""
    with av.open(path) as clip:
        video = clip.streams.video[0]
        size, rate = f"{video.width}x{video.height}", video.average_rate
        sound = clip.streams.audio[0] if clip.streams.audio else None
        heard = "no sound"
        if sound is not None:
            seconds = float((sound.duration or 0) * (sound.time_base or 0))
            heard = f"sound {sound.rate / 1000:g} kHz {sound.layout.name} {seconds:.2f} s"
        frames = sum(1 for _ in clip.decode(video))
    return f"{size}, {frames} frames, {float(rate or 0):g} fps, {heard}, {path.stat().st_size / 1000:.0f} kB"


if __name__ == "__main__":
    sys.exit(main())
