"""A server with a scripted generating process, and machines of clients on which a stub resolver stands in for DNS.

What strays to fal is seen there and goes nowhere.
"""

import io
import json
import os
import shlex
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from server.client_ways import hosts_names

HERE = Path(__file__).parent
SERVE_FAKE = HERE.parents[1] / "server/serve_fake.py"
CLIP = b"what the scripted process makes"
STRAYED = 66
"""The exit status by which the stub resolvers end a program that looks for a name they do not know."""


@dataclass(frozen=True)
class Here:
    """The server, and what a client's machine is told of it. `key`: the one that opens it; any does if it is None."""

    port: int
    tls_port: int
    proxy_port: int
    data: Path
    key: str | None
    pid: int

    def variables(self, way: str, host: str = "127.0.0.1") -> dict[str, str]:
        """What `ltxd client env` prints."""
        ports = [f"--tls-port={self.tls_port}", f"--proxy-port={self.proxy_port}", f"--data={self.data}"]
        printed = _ltxd("client", "env", f"--way={way}", f"--host={host}", *ports)
        return dict(word.split("=", 1) for word in shlex.split(printed) if "=" in word)


@dataclass(frozen=True)
class Machine:
    """A client's machine with a stub resolver. `asked` are the names that programs on it looked for."""

    folder: Path

    @property
    def asked(self) -> set[str]:
        log = self.folder / "asked"
        return set(log.read_text().split()) if log.exists() else set()

    def run(self, command: list[str], *, order: Any, names: dict[str, int], env: dict[str, str]) -> Any:
        """What a program printed that found `names` alone, and looked for no other."""
        done = self._run(command, order, names, env)
        assert done.returncode == 0, f"looked for {self.asked}\n{done.stdout}\n{done.stderr}"
        return json.loads(done.stdout)

    def stray(self, command: list[str], *, order: Any, names: dict[str, int], env: dict[str, str]) -> str:
        """The first name that a program looked for beside `names`: there it ended."""
        done = self._run(command, order, names, env)
        assert done.returncode == STRAYED, f"{done.stdout}\n{done.stderr}"
        (strange,) = self.asked - set(names)
        return strange

    def _run(self, command, order, names, env):
        stub = {"RESOLVE": json.dumps(names), "RESOLVER_LOG": str(self.folder / "asked"), "HOME": str(self.folder)}
        env = {"PATH": os.environ["PATH"], **stub, **env}
        return subprocess.run(
            command,
            input=json.dumps(order),
            env=env,
            cwd=HERE,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )


@pytest.fixture(scope="session")
def here(tmp_path_factory) -> Iterator[Here]:
    with _serving(tmp_path_factory.mktemp("ways"), keyed=False) as it:
        yield it


@pytest.fixture(scope="session")
def locked(tmp_path_factory) -> Iterator[Here]:
    """A server that only one key opens."""
    with _serving(tmp_path_factory.mktemp("locked"), keyed=True) as it:
        yield it


@dataclass(frozen=True)
class OwnMachine:
    """A machine within this one, see own_machine.py: its hosts file leads fal's names to a server with a key.

    The server listens on all addresses; `address` is one as in a local network, and `name` leads there.
    """

    server: Here
    address: str
    name: str

    def run(self, command: list[str], *, order: Any = None, env: dict[str, str] | None = None) -> str:
        """What a program on it prints."""
        enter = ["nsenter", f"--target={self.server.pid}", "--user", "--mount", "--net", "--preserve-credentials"]
        done = subprocess.run(
            [*enter, *command],
            input=json.dumps(order),
            env={"PATH": os.environ["PATH"], "HOME": str(self.server.data)} | (env or {}),
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
        return done.stdout


@pytest.fixture(scope="session")
def own_machine(tmp_path_factory) -> Iterator[OwnMachine]:
    for program in ("unshare", "nsenter", "mount"):
        if shutil.which(program) is None:
            pytest.fail(f"{program} is missing: install the package util-linux")
    folder = tmp_path_factory.mktemp("own")
    hosts_file = folder / "hosts"
    address, name = "10.77.0.1", "studio.example"
    hosts_file.write_text(f"127.0.0.1 localhost\n{address} {name}\n" + _ltxd("client", "hosts"))
    spaces = ["unshare", "--map-root-user", "--mount", "--net"]
    within = [*spaces, sys.executable, str(HERE / "own_machine.py"), str(hosts_file), address]
    open_to_all = {"host": "0.0.0.0", "trusted_hosts": [name], "tls_port": 443}  # noqa: S104 -- of that machine
    with _serving(folder, keyed=True, given=open_to_all, within=within) as it:
        yield OwnMachine(it, address, name)


@pytest.fixture
def machine(tmp_path) -> Machine:
    return Machine(tmp_path)


@pytest.fixture(scope="session")
def hosts(here) -> dict[str, int]:
    """What the lines of `ltxd client hosts` do, were the server on port 443."""
    return dict.fromkeys(hosts_names(), here.tls_port)


@pytest.fixture(scope="session")
def clip() -> bytes:
    """What every clip of the scripted process holds."""
    return CLIP


@pytest.fixture(scope="session")
def fal_files() -> tuple[str, ...]:
    """How file addresses begin where a client believes that it speaks to fal."""
    return ("https://fal.run/files/", "https://queue.fal.run/files/")


@pytest.fixture(scope="session")
def png() -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (64, 48), "teal").save(buffer, "PNG")
    return buffer.getvalue()


@contextmanager
def _serving(
    folder: Path, *, keyed: bool, given: dict[str, Any] | None = None, within: Sequence[str] = ()
) -> Iterator[Here]:
    """A server with the settings `given` that keeps everything in `folder`, started by the command `within`."""
    data, clip = folder / "data", folder / "clip.mp4"
    clip.write_bytes(CLIP)
    made = _ltxd("keys", "create", "--name=anna", f"--data={data}").strip() if keyed else ""
    tls_port, proxy_port = _free_ports(2)
    settings = {"tls_port": tls_port, "proxy_port": proxy_port, **(given or {})}
    command = [*within, sys.executable, str(SERVE_FAKE), str(data), str(clip), json.dumps(settings)]
    with (folder / "server.log").open("w") as log:
        process = subprocess.Popen(command, env=_own_env(), stdout=subprocess.PIPE, stderr=log, text=True)
    try:
        said = process.stdout.readline().split()
        assert said, f"the server did not start: {(folder / 'server.log').read_text()}"
        key = made.removeprefix("FAL_KEY=") or None
        yield Here(int(said[0]), settings["tls_port"], proxy_port, data, key, process.pid)
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(60)
        process.stdout.close()


def _ltxd(*words: str) -> str:
    command = [sys.executable, "-m", "server", *words]
    return subprocess.run(command, env=_own_env(), capture_output=True, text=True, check=True).stdout


def _own_env() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if not name.startswith(("LTX_", "FAL_"))}


def _free_ports(count: int) -> list[int]:
    with ExitStack() as probes:
        found = [probes.enter_context(socket.socket()) for _ in range(count)]
        for probe in found:
            probe.bind(("127.0.0.1", 0))
        return [probe.getsockname()[1] for probe in found]
