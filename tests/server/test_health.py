"""Health tells that something ails, and nothing of its inside."""

import asyncio
import errno
import itertools
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import httpx2
import pytest
from fastapi import FastAPI

from server.agent import Agent
from server.blobs import Blobs, BlobsUnavailableError
from server.database import StoreUnavailableError
from server.model import ModelState
from server.routes import health
from server.settings import Settings
from server.store import Store


async def none_waiting() -> int:
    return 0


def asking(
    data: Path, check: Callable[[], Awaitable[None]], *, waiting: Callable[[], Awaitable[int]] = none_waiting
) -> httpx2.AsyncClient:
    """A client of a node whose database and blobs are as `check` and `waiting` say."""
    store = cast("Store", SimpleNamespace(check=check, waiting=waiting))
    blobs = cast("Blobs", SimpleNamespace(check=check))
    agent = cast("Agent", SimpleNamespace(state=ModelState("none"), draining=False, running=False))
    app = FastAPI()
    app.include_router(health.router(Settings(data=data, min_free_bytes=0), store, blobs, agent))
    return httpx2.AsyncClient(transport=httpx2.ASGITransport(app), base_url="http://test")


@pytest.mark.parametrize(
    ("trouble", "told"),
    [
        (StoreUnavailableError("host db.secret, user secret"), "the database cannot be used at the moment"),
        (BlobsUnavailableError("bucket secret"), "the file store cannot be used at the moment"),
        (OSError(errno.EROFS, "Read-only file system", "/secret"), "files cannot be kept: Read-only file system"),
    ],
)
async def test_health_tells_a_trouble_without_its_inside_and_the_log_has_the_rest(trouble, told, tmp_path, caplog):
    async def fail() -> None:
        raise trouble

    async with asking(tmp_path, fail) as http:
        answer = await http.get("/health/ready")
    assert answer.status_code == 503
    assert answer.json()["status"] == "storage_unavailable"
    assert answer.json()["error"].startswith(told)
    assert "secret" not in answer.text
    assert "secret" in caplog.text


async def test_however_many_ask_the_storage_is_tried_once_a_second(tmp_path):
    tries = []

    async def slow() -> None:
        tries.append(time.monotonic())
        await asyncio.sleep(0.05)

    async with asking(tmp_path, slow) as http:
        answers = await asyncio.gather(*(http.get(f"/health{way}") for way in ("", "/ready") * 50))
        answers += [await http.get("/health/ready") for _ in range(20)]
    assert {answer.status_code for answer in answers} == {200}
    # database and blobs, each time
    assert tries[1] - tries[0] >= 0.05
    assert all(later - earlier >= health.KEEP_SECONDS for earlier, later in zip(tries[::2], tries[2::2], strict=False))


async def test_a_trouble_and_its_end_are_told_within_two_seconds(tmp_path):
    troubles: list[Exception] = []

    async def check() -> None:
        if troubles:
            raise troubles[0]

    async with asking(tmp_path, check) as http:
        assert (await http.get("/health/ready")).status_code == 200
        troubles.append(StoreUnavailableError("gone"))
        await asyncio.sleep(health.KEEP_SECONDS)
        assert (await http.get("/health/ready")).json()["status"] == "storage_unavailable"
        troubles.clear()
        await asyncio.sleep(health.KEEP_SECONDS)
        assert (await http.get("/health/ready")).status_code == 200
    assert health.KEEP_SECONDS <= 2


async def test_a_storage_that_does_not_answer_is_told_so_and_a_caller_that_leaves_takes_it_from_nobody(
    tmp_path, monkeypatch
):
    monkeypatch.setattr(health, "PATIENCE_SECONDS", 0.2)
    answered = asyncio.Event()
    async with asking(tmp_path, lambda: cast("Awaitable[None]", answered.wait())) as http:
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(http.get("/health/ready"), 0.05)
        assert (await http.get("/health/ready")).json()["error"].startswith("the database or the file store has not")
        answered.set()
        await asyncio.sleep(health.KEEP_SECONDS)
        assert (await http.get("/health/ready")).status_code == 200


async def healthy() -> None:
    """Nothing ails."""


async def test_however_many_ask_the_waiting_jobs_are_counted_once_a_second(tmp_path):
    counts = []

    async def slow() -> int:
        counts.append(time.monotonic())
        await asyncio.sleep(0.05)
        return 7

    async with asking(tmp_path, healthy, waiting=slow) as http:
        answers = await asyncio.gather(*(http.get(f"/health{way}") for way in ("", "/ready") * 50))
        answers += [await http.get("/health") for _ in range(20)]
    assert {answer.json()["queue_length"] for answer in answers} == {7}
    assert all(later - earlier >= health.KEEP_SECONDS for earlier, later in itertools.pairwise(counts))


async def test_a_count_of_the_waiting_jobs_that_does_not_come_is_not_waited_for(tmp_path, monkeypatch):
    monkeypatch.setattr(health, "PATIENCE_SECONDS", 0.2)

    async def never() -> int:
        await asyncio.Event().wait()
        return 0

    async with asking(tmp_path, healthy, waiting=never) as http:
        answer = await asyncio.wait_for(http.get("/health/ready"), 30)
    assert answer.status_code == 503
    assert answer.json()["queue_length"] is None
    assert answer.json()["error"].startswith("the database or the file store has not")


async def test_a_disk_that_cannot_be_asked_for_its_room_is_told_and_the_waiting_jobs_too(tmp_path):
    async with asking(tmp_path / "gone", healthy) as http:
        answer = await http.get("/health/ready")
    assert answer.status_code == 503
    assert answer.json()["status"] == "storage_unavailable"
    assert answer.json()["error"] == "files cannot be kept: No such file or directory"
    assert answer.json()["queue_length"] == 0
