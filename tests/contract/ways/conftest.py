"""A server with a scripted generating process, and machines of clients on which a stub resolver stands in for DNS.

What strays to fal is seen there and goes nowhere.
"""

import io
import json
import os
import shlex
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
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
    """The server, and what a client's machine is told of it."""

    port: int
    tls_port: int
    proxy_port: int
    data: Path
    own_env: dict[str, str]

    def variables(self, way: str) -> dict[str, str]:
        """What `ltxd client env` prints."""
        ports = [f"--tls-port={self.tls_port}", f"--proxy-port={self.proxy_port}", f"--data={self.data}"]
        command = [sys.executable, "-m", "server", "client", "env", f"--way={way}", *ports]
        done = subprocess.run(command, env=self.own_env, capture_output=True, text=True, check=True)
        return dict(word.split("=", 1) for word in shlex.split(done.stdout) if "=" in word)


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
    folder = tmp_path_factory.mktemp("ways")
    (folder / "clip.mp4").write_bytes(CLIP)
    tls_port, proxy_port = _free_ports(2)
    settings = json.dumps({"tls_port": tls_port, "proxy_port": proxy_port})
    own_env = {k: v for k, v in os.environ.items() if not k.startswith(("LTX_", "FAL_"))}
    with (folder / "server.log").open("w") as log:
        process = subprocess.Popen(
            [sys.executable, str(SERVE_FAKE), str(folder / "data"), str(folder / "clip.mp4"), settings],
            env=own_env,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
        )
    try:
        port = int(process.stdout.readline().split()[0])
        yield Here(port, tls_port, proxy_port, folder / "data", own_env)
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(60)
        process.stdout.close()


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


def _free_ports(count: int) -> list[int]:
    with ExitStack() as probes:
        found = [probes.enter_context(socket.socket()) for _ in range(count)]
        for probe in found:
            probe.bind(("127.0.0.1", 0))
        return [probe.getsockname()[1] for probe in found]
