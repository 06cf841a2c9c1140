"""A real server with the real demo weights, as a process of its own, and clients that know only its address."""

import base64
import io
import json
import os
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import av
import httpx2
import numpy as np
import pytest

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
PHOTO = ROOT / "examples/photos/astronaut.jpg"
LTXD = (sys.executable, "-m", "server")
START_SECONDS = 60


@dataclass(frozen=True)
class Server:
    port: int
    tls_port: int
    data: Path
    client_env: dict[str, str]
    http: httpx2.Client

    def client(self, command: list[str], *, stdin: str = "", **more: str) -> str:
        """What a client program prints that inherits nothing but its path."""
        env = {"PATH": os.environ["PATH"], "HOME": str(self.data), **more}
        done = subprocess.run(command, input=stdin, env=env, cwd=HERE, capture_output=True, text=True, timeout=280)
        assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
        return done.stdout


def needs(program: str, *, package: str) -> str:
    path = shutil.which(program)
    if path is None:
        pytest.fail(f"{program} is missing: install the package {package}")
    return path


@pytest.fixture(scope="session")
def data(tmp_path_factory) -> Path:
    """A data folder with demo weights."""
    folder = tmp_path_factory.mktemp("data")
    done = subprocess.run([*LTXD, "weights", "build-demo"], env=_own_env(folder), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture(scope="session")
def server(data) -> Iterator[Server]:
    port, tls_port = _free_ports()
    log = data / "server.log"
    with log.open("wb") as file:
        process = subprocess.Popen(
            [*LTXD, "serve", "--host=127.0.0.1", f"--port={port}", f"--tls-port={tls_port}"],
            env=_own_env(data),
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
        )
    try:
        with httpx2.Client(base_url=f"http://127.0.0.1:{port}", timeout=60, trust_env=False) as http:
            _wait_until_ready(process, http, log)
            told = subprocess.run(
                [*LTXD, "client", "env", "--host=127.0.0.1", f"--tls-port={tls_port}"],
                env=_own_env(data),
                capture_output=True,
                text=True,
                check=True,
            )
            env = dict(word.split("=", 1) for word in shlex.split(told.stdout) if "=" in word)
            yield Server(port, tls_port, data, env, http)
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(60)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


@pytest.fixture(params=["python", pytest.param("javascript", marks=pytest.mark.full)])
def drive(request, server) -> Callable[..., dict[str, Any]]:
    """Does one thing with an official client, see drive.py and drive.mjs, which do the same things alike."""

    def do(what: str, **arguments: Any) -> dict[str, Any]:
        order = json.dumps({"do": what, "input": arguments})
        if request.param == "python":
            told = server.client([sys.executable, str(HERE / "drive.py")], stdin=order, **server.client_env)
        else:
            node = needs("node", package="nodejs")
            told = server.client([node, str(HERE / "drive.mjs")], stdin=order, PROXY=proxy_of(server))
        return json.loads(told)

    return do


def proxy_of(server: Server) -> str:
    return f"http://127.0.0.1:{server.port}/api/fal/proxy"


@pytest.fixture
def proxy(server) -> str:
    return proxy_of(server)


@pytest.fixture(scope="session")
def node() -> str:
    return needs("node", package="nodejs")


@pytest.fixture(scope="session")
def chromium() -> str:
    return needs("chromium", package="chromium")


@pytest.fixture(scope="session")
def curl() -> None:
    needs("curl", package="curl")


@pytest.fixture(scope="session")
def photo() -> str:
    """The demo's photo as a data URI."""
    return "data:image/jpeg;base64," + base64.b64encode(PHOTO.read_bytes()).decode()


@dataclass(frozen=True)
class Clip:
    pictures: np.ndarray
    """Shapes: [frames, height, width, 3], uint8."""
    fps: float
    seconds_of_sound: float | None
    rms: float | None
    comment: str


@pytest.fixture(scope="session")
def opened(server) -> Callable[..., Clip]:
    """Opens an output's clip and looks at every frame."""

    def open_clip(output: dict[str, Any], *, size: tuple[int, int], num_frames: int, fps: float = 24.0) -> Clip:
        assert list(output) == ["video", "seed", "prompt"]
        file = output["video"]
        assert list(file) == ["url", "content_type", "file_name", "file_size"]
        assert file["content_type"] == "video/mp4"
        answer = server.http.get(urlsplit(file["url"]).path)
        assert answer.headers["content-type"] == "video/mp4"
        assert len(answer.content) == file["file_size"]
        assert 0 < answer.content.index(b"moov") < answer.content.index(b"mdat")
        clip = _decoded(answer.content)
        assert clip.pictures.shape == (num_frames, size[1], size[0], 3)
        assert clip.fps == pytest.approx(fps)
        assert f"Seed: {output['seed']}." in clip.comment
        assert "demo weights" in clip.comment
        return clip

    return open_clip


def _decoded(content: bytes) -> Clip:
    pictures, times, sound = [], [], []
    with av.open(io.BytesIO(content)) as container:
        video = container.streams.video[0]
        heard = container.streams.audio[0] if container.streams.audio else None
        assert (video.codec.name, video.codec_context.pix_fmt) == ("h264", "yuv420p")
        tags = video.codec_context
        assert (tags.color_primaries, tags.color_trc, tags.colorspace, tags.color_range) == (1, 1, 1, 1)
        for frame in container.decode(*container.streams):
            if isinstance(frame, av.VideoFrame):
                assert not frame.is_corrupt
                pictures.append(frame.to_ndarray(format="rgb24"))
                times.append(frame.time)
            else:
                sound.append(frame.to_ndarray())
        rate = float(video.average_rate)
        length = float(video.duration * video.time_base)
        assert length == pytest.approx(len(pictures) / rate, abs=1e-3)
        assert times[0] == 0
        assert [b - a for a, b in pairwise(times)] == pytest.approx([1 / rate] * (len(times) - 1), abs=1e-3)
        if heard is not None:
            assert (heard.codec.name, heard.rate, heard.layout.name) == ("aac", 48_000, "stereo")
            seconds = float(heard.duration * heard.time_base)
            assert length - 0.1 < seconds <= length + 1e-3
        comment = container.metadata["comment"]
    waveform = np.concatenate(sound, axis=1) if sound else None
    return Clip(
        pictures=np.stack(pictures),
        fps=rate,
        seconds_of_sound=None if heard is None else seconds,
        rms=None if waveform is None else float(np.sqrt(np.mean(waveform**2))),
        comment=comment,
    )


def _own_env(data: Path) -> dict[str, str]:
    return {k: v for k, v in os.environ.items() if not k.startswith(("LTX_", "FAL_"))} | {"LTX_DATA": str(data)}


def _free_ports() -> tuple[int, int]:
    with socket.socket() as one, socket.socket() as two:
        for probe in (one, two):
            probe.bind(("127.0.0.1", 0))
        return one.getsockname()[1], two.getsockname()[1]


def _wait_until_ready(process: subprocess.Popen[bytes], http: httpx2.Client, log: Path) -> None:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline and process.poll() is None:
        try:
            if http.get("/health/ready").status_code == 200:
                return
        except httpx2.TransportError:
            pass
        time.sleep(0.1)
    pytest.fail(f"the server is not ready: {log.read_text()}")
