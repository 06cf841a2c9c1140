"""The real clients where a call outlasts its connection: they post again, and one job is done.

A call that comes again before the server has seen that the first is gone makes a second job, which ends by itself.
"""

import contextlib
import itertools
import json
import os
import re
import shlex
import shutil
import socket
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from server.__main__ import main

CONTRACT = Path(__file__).parents[1] / "contract"

PYTHON = """
import json, os, fal_client
given = {"prompt": "brisk", "image_url": os.environ["TEST_IMAGE"]}
print(json.dumps(fal_client.run("fal-ai/ltx-2.3-quality/image-to-video", arguments=given)))
"""

# Node's own limit is 300 s; this is the switch that sets it
GIVES_UP = """
import { Agent, setGlobalDispatcher } from "undici";
setGlobalDispatcher(new Agent({ headersTimeout: 1000 }));
"""

NODE = """
import { fal } from "@fal-ai/client";
let posts = 0;
const counting = (url, options) => { posts += 1; return fetch(url, options); };
fal.config({ proxyUrl: { url: process.env.PROXY, when: "always" }, credentials: "any", fetch: counting });
const input = { prompt: process.env.PROMPT, image_url: process.env.TEST_IMAGE };
const { data } = await fal.run("fal-ai/ltx-2.3-quality/image-to-video", { input });
console.log(JSON.stringify({ data, posts }));
"""


def waiting_calls(data: Path) -> list[int]:
    """The HTTP status of each job whose caller waits, or waited, for its answer."""
    with contextlib.closing(sqlite3.connect(data / "ltxd.sqlite3")) as database:
        return [status for (status,) in database.execute("SELECT http_status FROM jobs WHERE asked IS NOT NULL")]


def python(script: str, *, host: str, server, image: str, capsys) -> dict:
    """What the script prints, with fal_client led to `host`."""
    assert main(["client", "env", f"--data={server.settings.data}", f"--tls-port={server.ports.tls}"]) == 0
    printed = dict(re.findall(r"^export (\w+)=(.*)$", capsys.readouterr().out, re.MULTILINE))
    values = {name: shlex.split(value)[0] for name, value in printed.items()}
    own = {"PATH": os.environ["PATH"], "FAL_KEY": "x", "TEST_IMAGE": image}
    run_host = {"FAL_RUN_HOST": values["FAL_RUN_HOST"].replace(f"127.0.0.1:{server.ports.tls}", host)}
    command = [sys.executable, "-c", script]
    done = subprocess.run(
        command, env=values | own | run_host, capture_output=True, text=True, timeout=100, check=False
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def node(script: str, *, server, image: str, prompt: str) -> dict:
    """What the script prints, with @fal-ai/client led here by proxyUrl."""
    program = shutil.which("node")
    if program is None:
        pytest.fail("node is missing: install the package nodejs")
    own = {"PATH": str(Path(program).parent), "TEST_IMAGE": image, "PROMPT": prompt}
    done = subprocess.run(
        [program, "--input-type=module", "-"],
        input=script,
        env=own | {"PROXY": f"{server.url}/api/fal/proxy"},
        cwd=CONTRACT,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@contextlib.contextmanager
def cutting(port: int, *, when: Callable[[], object]) -> Iterator[tuple[int, list[tuple[socket.socket, ...]]]]:
    """A port that leads to `port`, and the connections to it; the first is cut off once `when` is true."""
    came: list[tuple[socket.socket, ...]] = []

    def serve() -> None:
        with contextlib.suppress(OSError):
            while True:
                client = listener.accept()[0]
                server = socket.create_connection(("127.0.0.1", port))
                came.append((client, server))
                work = [(pump, client, server), (pump, server, client)] + [(cut, client, server)] * (len(came) == 1)
                for what, *ends in work:
                    threading.Thread(target=what, args=ends, daemon=True).start()

    def pump(source: socket.socket, target: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while piece := source.recv(65536):
                target.sendall(piece)
            target.shutdown(socket.SHUT_WR)

    def cut(*ends: socket.socket) -> None:
        while not when():
            time.sleep(0.02)
        for end in ends:
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        threading.Thread(target=serve, daemon=True).start()
        try:
            yield listener.getsockname()[1], came
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            for end in itertools.chain(*came):
                end.close()


def test_a_connection_that_is_lost_makes_python_post_again_and_join_its_job(launch, ports, image, capsys):
    with (
        launch(tls_port=ports()["tls_port"]) as it,
        cutting(it.ports.tls, when=lambda: waiting_calls(it.settings.data)) as (port, came),
    ):
        output = python(PYTHON, host=f"127.0.0.1:{port}", server=it, image=image, capsys=capsys)
        assert output["prompt"] == "brisk, expanded"
        assert len(came) > 1
        assert waiting_calls(it.settings.data).count(200) == 1


@pytest.mark.full
def test_node_gives_up_on_a_long_call_posts_again_and_joins_its_job(launch, image):
    with launch() as it:
        # two jobs ahead, so that the answer is not there within the second
        for _ in range(2):
            it.submit(prompt="slow", image_url=image)
        told = node(GIVES_UP + NODE, server=it, image=image, prompt="slow")
        assert told["data"]["prompt"] == "slow, expanded"
        assert told["posts"] > 1
        assert waiting_calls(it.settings.data).count(200) == 1


@pytest.mark.full
def test_with_heartbeats_node_does_not_give_up(launch, image):
    with launch(heartbeat=True, heartbeat_after=0.2) as it:
        for _ in range(2):
            it.submit(prompt="slow", image_url=image)
        told = node(GIVES_UP + NODE, server=it, image=image, prompt="slow")
        assert told["data"]["prompt"] == "slow, expanded"
        assert told["posts"] == 1


def test_python_reads_an_answer_that_began_with_blanks(launch, ports, image, capsys):
    with launch(heartbeat=True, heartbeat_after=0.05, tls_port=ports()["tls_port"]) as it:
        host = f"127.0.0.1:{it.ports.tls}"
        output = python(PYTHON, host=host, server=it, image=image, capsys=capsys)
        assert output["prompt"] == "brisk, expanded"
