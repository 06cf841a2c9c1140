"""Jobs while processes are killed at random moments. A trigger in the database counts every start and every end."""

import asyncio
import contextlib
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx2
import psutil
import pytest
from sqlalchemy import Engine, create_engine, text

from server.database import open_database

ENDPOINT = "fal-ai/ltx-2.3-quality/image-to-video"
SERVE_FAKE = Path(__file__).with_name("serve_fake.py")
DEADLINE = 900

SQLITE_TRIGGERS = """
CREATE TABLE told (n INTEGER PRIMARY KEY AUTOINCREMENT, seq INTEGER, what TEXT);
CREATE TRIGGER starts AFTER UPDATE OF owner ON jobs WHEN new.status = 'IN_PROGRESS'
BEGIN INSERT INTO told (seq, what) VALUES (new.seq, 'start'); END;
CREATE TRIGGER ends AFTER UPDATE OF finished ON jobs WHEN new.status = 'COMPLETED'
BEGIN INSERT INTO told (seq, what) VALUES (new.seq, 'end'); END;
"""
POSTGRES_TRIGGERS = """
CREATE TABLE told (n SERIAL PRIMARY KEY, seq INTEGER, what TEXT);
CREATE FUNCTION tell() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
IF new.status = 'IN_PROGRESS' AND old.status = 'IN_QUEUE' THEN INSERT INTO told (seq, what) VALUES (new.seq, 'start');
ELSIF new.status = 'COMPLETED' THEN INSERT INTO told (seq, what) VALUES (new.seq, 'end'); END IF; RETURN new; END $$;
CREATE TRIGGER tells AFTER UPDATE OF status ON jobs FOR EACH ROW EXECUTE FUNCTION tell();
"""


class Node:
    """One server as a process of its own, which can be killed and started again."""

    def __init__(self, data: Path, clip: Path, **environment: str) -> None:
        self.data = data
        self._clip = clip
        self._environment = environment
        self.process: subprocess.Popen[str] | None = None
        self.url = ""

    def start(self) -> None:
        self.process = subprocess.Popen(
            [sys.executable, str(SERVE_FAKE), str(self.data), str(self._clip)],
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, **self._environment},
        )
        line = self.process.stdout.readline()
        self.url = f"http://127.0.0.1:{line.split(' ')[0]}"

    def kill(self) -> None:
        children = psutil.Process(self.process.pid).children()
        self.process.kill()
        self.process.wait()
        self.process.stdout.close()
        # the generating process dies with its parent
        _, alive = psutil.wait_procs(children, timeout=10)
        assert not alive

    def kill_generating_process(self) -> bool:
        with contextlib.suppress(psutil.NoSuchProcess):
            for child in psutil.Process(self.process.pid).children():
                os.kill(child.pid, signal.SIGKILL)
                return True
        return False


class Clients:
    """Submits jobs to whichever node answers; `answered` holds the ids that were given."""

    def __init__(self, nodes: list[Node], image: str, *, count: int) -> None:
        self.answered: list[str] = []
        self._nodes = nodes
        self._image = image
        self._count = count
        self.thread = threading.Thread(target=self._submit, daemon=True)
        self.thread.start()

    def _submit(self) -> None:
        chosen = random.Random(1)
        while len(self.answered) < self._count:
            low = {"x-fal-queue-priority": "low"} if chosen.random() < 0.3 else {}
            body = {"prompt": "brisk", "image_url": self._image, "num_inference_steps": 8}
            try:
                url = f"{chosen.choice(self._nodes).url}/queue/{ENDPOINT}"
                answer = httpx2.post(url, json=body, headers=low, timeout=30, trust_env=False)
            except httpx2.HTTPError:
                time.sleep(0.1)
            else:
                assert answer.status_code == 200, answer.text
                self.answered.append(answer.json()["request_id"])


def unfinished(engine: Engine) -> int:
    with engine.connect() as connection:
        return connection.execute(text("SELECT count(*) FROM jobs WHERE status <> 'COMPLETED'")).scalar_one()


def ended(engine: Engine) -> int:
    with engine.connect() as connection:
        return connection.execute(text("SELECT count(*) FROM jobs WHERE status = 'COMPLETED'")).scalar_one()


def check(engine: Engine, answered: list[str], *, inversions: int) -> str:
    """Every answered job ended, each once, begun in the order of its submit within its priority."""
    with engine.connect() as connection:
        jobs = connection.execute(text("SELECT seq, id, status, priority, http_status FROM jobs")).all()
        told = connection.execute(text("SELECT seq, what FROM told ORDER BY n")).all()
    assert set(answered) <= {job.id for job in jobs}
    assert {job.status for job in jobs} == {"COMPLETED"}
    ends = Counter(seq for seq, what in told if what == "end")
    assert set(ends) == {job.seq for job in jobs}
    assert set(ends.values()) == {1}
    assert {job.http_status for job in jobs} <= {200, 500}
    starts = [seq for seq, what in told if what == "start"]
    for priority in (0, 1):
        first = list(dict.fromkeys(seq for seq in starts if seq in {j.seq for j in jobs if j.priority == priority}))
        assert all(abs(first.index(seq) - place) <= inversions for place, seq in enumerate(sorted(first)))
    failed = sum(job.http_status == 500 for job in jobs)
    return f"{len(jobs)} jobs, {len(starts)} starts, {failed} honest failures"


def wait_until(done: Callable[[], bool]) -> None:
    deadline = time.monotonic() + DEADLINE
    while not done():
        assert time.monotonic() < deadline
        time.sleep(0.1)


def open_copy(data: Path, copy: Path) -> None:
    """What a power cut leaves: the folder as it is, opened elsewhere."""
    copy.mkdir()
    for path in data.glob("ltxd.sqlite3*"):
        shutil.copy(path, copy)
    engine = create_engine(f"sqlite:///{copy / 'ltxd.sqlite3'}")
    with engine.connect() as connection:
        assert connection.execute(text("PRAGMA integrity_check")).scalar() == "ok"
    engine.dispose()
    shutil.rmtree(copy)


@contextlib.contextmanager
def running(nodes: list[Node]) -> Iterator[None]:
    for node in nodes:
        node.start()
    try:
        yield
    finally:
        for node in nodes:
            if node.process.poll() is None:
                node.kill()


def prepare(folder: Path, *, url: str = "", triggers: str) -> Engine:
    """An empty database that counts starts and ends, and a way to look into it."""
    asyncio.run(open_database(folder, url=url).close())
    engine = create_engine(url.replace("postgresql:", "postgresql+psycopg:") or f"sqlite:///{folder}/ltxd.sqlite3")
    with engine.begin() as connection:
        if url:
            connection.exec_driver_sql(triggers)
        else:
            connection.connection.executescript(triggers)
    return engine


@pytest.mark.parametrize(
    ("jobs", "child_kills", "server_kills"),
    [(12, 2, 2), pytest.param(300, 20, 10, marks=[pytest.mark.slow, pytest.mark.timeout(DEADLINE)])],
)
def test_no_job_is_lost_or_ends_twice_whatever_is_killed(tmp_path, image, clip, jobs, child_kills, server_kills):
    data = tmp_path / "data"
    engine = prepare(data, triggers=SQLITE_TRIGGERS)
    node = Node(data, clip, LTX_DRAIN_TIMEOUT="0")
    chosen = random.Random(jobs)
    kills = ["child"] * child_kills + ["server"] * server_kills
    chosen.shuffle(kills)
    with running([node]):
        clients = Clients([node], image, count=jobs)
        for n, kill in enumerate(kills):
            # spread over the whole run: each when its share of the jobs has ended, and a moment later
            wait_until(lambda n=n: ended(engine) >= n * jobs * 0.9 / len(kills))
            time.sleep(chosen.random() * 0.3)
            if kill == "child":
                wait_until(node.kill_generating_process)
            else:
                node.kill()
                open_copy(data, tmp_path / "copy")
                node.start()
        clients.thread.join()
        wait_until(lambda: not unfinished(engine))
    sys.stdout.write(check(engine, clients.answered, inversions=0) + "\n")
    engine.dispose()


@pytest.mark.full
@pytest.mark.parametrize(
    ("jobs", "child_kills"),
    [(12, 2), pytest.param(300, 20, marks=[pytest.mark.slow, pytest.mark.timeout(DEADLINE)])],
)
def test_of_two_nodes_on_postgres_one_may_be_killed(
    tmp_path, image, clip, postgres, bucket, monkeypatch, jobs, child_kills
):
    url = postgres()
    engine = prepare(tmp_path, url=url, triggers=POSTGRES_TRIGGERS)
    settings = {"LTX_DATABASE_URL": url, "LTX_BLOBS_URL": bucket(monkeypatch), "LTX_LEASE_SECONDS": "3"}
    nodes = [Node(tmp_path / name, clip, **settings) for name in ("a", "b")]
    chosen = random.Random(jobs)
    with running(nodes):
        clients = Clients(nodes[:1], image, count=jobs)
        for n in range(child_kills):
            wait_until(lambda n=n: ended(engine) >= n * jobs * 0.9 / child_kills)
            time.sleep(chosen.random() * 0.3)
            if n == child_kills // 2:
                nodes[1].kill()
            wait_until(nodes[0].kill_generating_process)
        clients.thread.join()
        wait_until(lambda: not unfinished(engine))
    sys.stdout.write(check(engine, clients.answered, inversions=2) + "\n")
    engine.dispose()
