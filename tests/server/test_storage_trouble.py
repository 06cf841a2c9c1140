"""A full disk, a read-only database and a lost one: errors a client understands, and work goes on when they heal."""

import os
import sqlite3
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import create_engine, text

from server.database import StoreUnavailableError, open_database
from server.store import Store

ENDPOINT = "fal-ai/ltx-2.3-quality/image-to-video"
PAGE = 4096
DISK_BYTES = 32 * 2**20  # several times the 4 MiB at which SQLite folds its log into the database
UNDERSTOOD = {200, 429, 503}


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A small file system."""
    if os.geteuid() != 0:
        pytest.fail("mounting a small file system needs root")
    folder = tmp_path / "small"
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={DISK_BYTES}", "tmpfs", str(folder)], check=True)
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def fill(folder: Path, *, leave: int) -> Path:
    """Takes all of the disk but `leave` bytes."""
    filler = folder / "filler"
    free = os.statvfs(folder).f_bavail * os.statvfs(folder).f_frsize
    with filler.open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, max(PAGE, (free - leave) // PAGE * PAGE))
    return filler


@pytest.mark.full
@pytest.mark.timeout(600)
def test_a_disk_that_fills_up_at_any_write_of_a_job_fails_in_words_and_heals(launch, image, small_disk):
    seen = set()
    with launch(data=small_disk / "data", min_free_bytes=0) as it:
        assert it.run(prompt="a", image_url=image).status_code == 200
        # every write of a job's life takes a page or more, so that each is the first to fail at some step
        for pages in range(0, 40, 2):
            filler = fill(small_disk, leave=pages * PAGE)
            answer = it.http.post(f"/queue/{ENDPOINT}", json={"prompt": "a", "image_url": image})
            assert answer.status_code in UNDERSTOOD, answer.text
            if answer.status_code == 200:
                time.sleep(0.5)
                health = it.http.get("/health")
                assert health.status_code == 200, health.text
            else:
                assert answer.headers["retry-after"]
                assert answer.json()["error_type"] in ("storage_full", "storage_unavailable", "queue_full")
            filler.unlink()
            if answer.status_code == 200:
                ended = it.wait(answer.json())
                assert ended.get("error_type") in (None, "storage_full"), ended
                seen.add(ended.get("error_type", "done"))
            else:
                seen.add("refused")
            assert it.run(prompt="a", image_url=image).status_code == 200
    assert seen >= {"refused", "done"}
    with sqlite3.connect(small_disk / "data" / "ltxd.sqlite3") as connection:
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    connection.close()


async def test_a_sqlite_that_became_read_only_is_told_so_and_heals(tmp_path):
    database = open_database(tmp_path)
    store = Store(database)

    def set_read_only(value: int) -> None:
        connection = database._writer._engine.raw_connection()
        connection.execute(f"PRAGMA query_only={value}")
        connection.close()

    set_read_only(1)
    for write in (store.submit("a", b"{}", max_waiting=9), store.check()):
        with pytest.raises(StoreUnavailableError, match="readonly"):
            await write
    set_read_only(0)
    await store.check()
    assert await store.submit("a", b"{}", max_waiting=9) == "accepted"
    await database.close()


@pytest.mark.full
@pytest.mark.parametrize("trouble", ["gone", "read-only"])
def test_a_running_job_outlives_a_lost_database_and_callers_are_told_to_come_back(launch, image, postgres, trouble):
    url = postgres()
    name = url.rpartition("/")[2]
    admin = create_engine(
        url.replace("postgresql:", "postgresql+psycopg:").replace(name, "postgres"), isolation_level="AUTOCOMMIT"
    )

    def ask(statement: str) -> None:
        hang_up = text("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = :name")
        with admin.connect() as connection:
            connection.execute(text(statement))
            connection.execute(hang_up, {"name": name})

    if trouble == "gone":
        lose, heal = f"ALTER DATABASE {name} ALLOW_CONNECTIONS false", f"ALTER DATABASE {name} ALLOW_CONNECTIONS true"
    else:
        lose = f"ALTER DATABASE {name} SET default_transaction_read_only = on"
        heal = f"ALTER DATABASE {name} SET default_transaction_read_only = off"
    with launch(database_url=url, lease_seconds=60) as it:
        job = it.submit(prompt="slow", image_url=image)
        it.wait(job, "IN_PROGRESS")
        ask(lose)
        answer = it.http.post(f"/queue/{ENDPOINT}", json={"prompt": "a", "image_url": image})
        assert (answer.status_code, answer.headers["retry-after"]) == (503, "5")
        assert answer.json()["error_type"] == "storage_unavailable"
        health = it.http.get("/health/ready")
        assert (health.status_code, health.json()["status"]) == (503, "storage_unavailable")
        time.sleep(2)
        ask(heal)
        assert "error" not in it.wait(job)
        assert it.run(prompt="a", image_url=image).status_code == 200
    admin.dispose()
