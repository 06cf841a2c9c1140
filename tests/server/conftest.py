"""A real server on loopback with a generating process that follows a script, see fake_worker.py."""

import asyncio
import base64
import contextlib
import inspect
import io
import itertools
import logging
import os
import selectors
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import av
import httpx2
import pytest
from fastapi.routing import APIRoute
from moto.server import ThreadedMotoServer
from PIL import Image
from starlette.routing import BaseRoute

from server.app import create_app
from server.blobs import Blobs, LocalBlobs
from server.bucket import BucketBlobs
from server.database import Database, open_database
from server.serve import Ports, serve
from server.settings import Settings
from server.store import Store

ENDPOINT = "fal-ai/ltx-2.3-quality/image-to-video"
FAKE_WORKER = Path(__file__).with_name("fake_worker.py")
ROOT = Path(__file__).parents[2]
START_SECONDS = 30


@dataclass(frozen=True)
class Running:
    """A server that runs."""

    settings: Settings
    ports: Ports
    http: httpx2.Client

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.ports.http}"

    def run(self, **given: Any) -> httpx2.Response:
        return self.http.post(f"/{ENDPOINT}", json=given)

    def submit(self, **given: Any) -> dict[str, Any]:
        answer = self.http.post(f"/queue/{ENDPOINT}", json=given)
        assert answer.status_code == 200, answer.text
        return answer.json()

    def wait(self, submitted: dict[str, Any], status: str = "COMPLETED") -> dict[str, Any]:
        deadline = time.monotonic() + 15
        while time.monotonic() < deadline:
            body = self.http.get(submitted["status_url"], params={"logs": 1}).json()
            if body["status"] == status:
                return body
            time.sleep(0.01)
        raise AssertionError(f"never {status}: {body}")


Launch = Callable[..., contextlib.AbstractContextManager[Running]]


def _fake_command(
    data: Path, clip: Path, *, load_seconds: float = 0.0, least: str = "resident", order: str = ""
) -> Callable[[int], list[str]]:
    return lambda fd: [
        sys.executable,
        "-c",
        # why: a program's folder, not this one, is where Python looks first
        "import runpy, sys; sys.path.insert(0, sys.argv.pop(1)); runpy.run_path(sys.argv.pop(1), run_name='__main__')",
        str(ROOT),
        str(FAKE_WORKER),
        f"--fd={fd}",
        f"--marker={data / 'marker'}",
        f"--clip={clip}",
        f"--load-seconds={load_seconds}",
        f"--least={least}",
        *([f"--order={order}"] if order else []),
    ]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class OfflineLoop(asyncio.SelectorEventLoop):
    """An event loop that finds no host but this machine."""

    async def getaddrinfo(self, host: Any, port: Any, **how: Any) -> Any:
        if host not in ("localhost", "127.0.0.1", "::1"):
            raise socket.gaierror(socket.EAI_NONAME, f"{host} is not known: tests send nothing to the network")
        return await super().getaddrinfo(host, port, **how)


@contextlib.contextmanager
def running(
    data: Path,
    *,
    command: Callable[[int], list[str]],
    selector: selectors.BaseSelector | None = None,
    **given: Any,
) -> Iterator[Running]:
    settings = Settings(**{"port": 0, "tls_port": 0, "drain_timeout": 0, **given, "data": data})
    up, told, loop, stop = threading.Event(), [], OfflineLoop(selector), asyncio.Event()

    def on_start(ports: Ports) -> None:
        told.append(ports)
        up.set()

    def live() -> None:
        try:
            loop.run_until_complete(serve(settings, command=command, stop=stop, on_start=on_start))
        finally:
            up.set()
            loop.close()

    thread = threading.Thread(target=live)
    thread.start()
    try:
        assert up.wait(START_SECONDS)
        assert told, "the server did not start"
        with httpx2.Client(base_url=f"http://127.0.0.1:{told[0].http}", timeout=60, trust_env=False) as http:
            yield Running(settings, told[0], http)
    finally:
        with contextlib.suppress(RuntimeError):
            loop.call_soon_threadsafe(stop.set)
        thread.join(START_SECONDS)


@pytest.fixture(autouse=True)
def log_put_back() -> Iterator[None]:
    """Puts the root logger back: a command called in a test logs to the stderr of that test, which is closed then."""
    root = logging.getLogger()
    before, level = root.handlers[:], root.level
    yield
    root.handlers[:] = before
    root.setLevel(level)


@pytest.fixture(scope="session")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small MP4 of nine frames."""
    path = tmp_path_factory.mktemp("clip") / "clip.mp4"
    with av.open(path, "w") as container:
        stream = container.add_stream("libx264", rate=24)
        stream.width = stream.height = 64
        stream.pix_fmt = "yuv420p"
        for _ in range(9):
            container.mux(stream.encode(av.VideoFrame(64, 64, "yuv420p")))
        container.mux(stream.encode())
    return path


@pytest.fixture
def fake_command(tmp_path: Path, clip: Path) -> Callable[..., Callable[[int], list[str]]]:
    """The command of the scripted process, see its flags."""
    return lambda **given: _fake_command(tmp_path, clip, **given)


@pytest.fixture
def launch(tmp_path: Path, clip: Path) -> Launch:
    """Starts a server of its own settings, in the folder of the test."""
    return lambda *, data=tmp_path / "data", **given: running(data, **{"command": _fake_command(data, clip), **given})


@pytest.fixture(scope="module")
def shared_launch(tmp_path_factory: pytest.TempPathFactory, clip: Path) -> Launch:
    """As `launch`, for a server that the tests of one module share; `name` is that of its folder."""
    folder = tmp_path_factory.mktemp("shared")

    def launch(*, name: str = "data", **given: Any) -> contextlib.AbstractContextManager[Running]:
        return running(folder / name, **{"command": _fake_command(folder, clip), **given})

    return launch


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory, clip: Path) -> Iterator[Running]:
    """One server that most tests share."""
    data = tmp_path_factory.mktemp("server")
    with running(data, command=_fake_command(data, clip), tls_port=free_port(), proxy_port=free_port()) as it:
        yield it


@pytest.fixture(scope="session")
def ports() -> Callable[[], dict[str, int]]:
    """Finds ports for HTTPS and for the proxy."""
    return lambda: {"tls_port": free_port(), "proxy_port": free_port()}


@pytest.fixture(scope="session")
def routes() -> list[tuple[str, str]]:
    """Method and path of every route of the server."""
    parts = {
        name: object() for name, of in inspect.signature(create_app).parameters.items() if of.kind is of.KEYWORD_ONLY
    }
    return sorted(_routes_in(create_app(Settings(port=0), **parts)._app._app.routes))


def _routes_in(routes: list[BaseRoute]) -> Iterator[tuple[str, str]]:
    for route in routes:
        if isinstance(route, APIRoute):
            yield from ((method, route.path) for method in route.methods)
        elif hasattr(route, "original_router"):
            yield from _routes_in(route.original_router.routes)
        else:
            raise AssertionError(f"a route that no test knows how to walk: {route}")


@pytest.fixture(scope="session")
def image() -> str:
    """A small start image, as a data URI."""
    buffer = io.BytesIO()
    Image.new("RGB", (64, 48), "teal").save(buffer, "PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


@pytest.fixture
def rung() -> list[int]:
    """One entry for every change that the database told of."""
    return []


@pytest.fixture(params=["sqlite", pytest.param("postgres", marks=pytest.mark.full)])
async def database(request: pytest.FixtureRequest, tmp_path: Path, rung: list[int]) -> AsyncIterator[Database]:
    """An empty database of each kind."""
    url = request.getfixturevalue("postgres")() if request.param == "postgres" else ""
    it = open_database(tmp_path / "database", url=url, on_change=lambda: rung.append(1))
    yield it
    await it.close()


@pytest.fixture
def store(database: Database) -> Store:
    """An empty store on each kind of database."""
    return Store(database)


@pytest.fixture(params=["local", "s3"])
def blobs(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Blobs:
    """Empty blobs of each kind."""
    if request.param == "local":
        return LocalBlobs(tmp_path / "blobs")
    url = request.getfixturevalue("bucket")(monkeypatch)
    return BucketBlobs(url, cache=tmp_path / "cache")


@pytest.fixture(scope="session")
def bucket() -> Iterator[Callable[[pytest.MonkeyPatch], str]]:
    """Makes an empty bucket on an S3 server of our own, on loopback, known to the environment; gives its URL."""
    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    endpoint = f"http://{host}:{port}"
    names = itertools.count()

    def create(environment: pytest.MonkeyPatch) -> str:
        name = f"bucket{next(names)}"
        for key, value in {
            "AWS_ENDPOINT_URL": endpoint,
            "AWS_REGION": "us-east-1",
            "AWS_ACCESS_KEY_ID": "test",
            "AWS_SECRET_ACCESS_KEY": "test",
        }.items():
            environment.setenv(key, value)
        assert httpx2.put(f"{endpoint}/{name}", trust_env=False).status_code == 200
        return f"s3://{name}/ltxd"

    yield create
    server.stop()


@pytest.fixture(scope="session")
def postgres() -> Iterator[Callable[[], str]]:
    """Makes an empty database on a Postgres of our own, on loopback, and gives its URL."""
    programs = sorted(Path("/usr/lib/postgresql").glob("*/bin"))
    if not programs:
        pytest.fail("PostgreSQL is missing: install the package postgresql")
    folder = Path(tempfile.mkdtemp(prefix="ltxd-postgres-"))
    asked_as: list[str] = []
    if os.geteuid() == 0:
        # why: it refuses to run as root
        asked_as = ["runuser", "-u", "postgres", "--"]
        shutil.chown(folder, "postgres", "postgres")
    port = free_port()

    def run(program: str, *flags: str) -> None:
        command = [*asked_as, str(programs[-1] / program), *flags]
        done = subprocess.run(command, cwd="/", capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{program}: {done.stdout}{done.stderr}"

    data = str(folder / "data")
    run("initdb", "-D", data, "-U", "ltxd", "--auth=trust", "--no-sync", "-E", "UTF8", "--locale=C")
    options = f"-p {port} -c listen_addresses=127.0.0.1 -c unix_socket_directories='' -c fsync=off"
    run("pg_ctl", "-D", data, "-l", str(folder / "log"), "-w", "-o", options, "start")
    names = itertools.count()

    def create() -> str:
        name = f"test{next(names)}"
        run("createdb", "-h", "127.0.0.1", "-p", str(port), "-U", "ltxd", name)
        return f"postgresql://ltxd@127.0.0.1:{port}/{name}"

    try:
        yield create
    finally:
        run("pg_ctl", "-D", data, "-m", "immediate", "stop")
        shutil.rmtree(folder)
