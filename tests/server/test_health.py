"""Health tells that something ails, and nothing of its inside."""

import errno
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

    async def none_waiting() -> int:
        return 0

    store = cast("Store", SimpleNamespace(check=fail, waiting=none_waiting))
    blobs = cast("Blobs", SimpleNamespace(check=fail))
    agent = cast("Agent", SimpleNamespace(state=ModelState("none"), draining=False, running=False))
    app = FastAPI()
    app.include_router(health.router(Settings(data=tmp_path), store, blobs, agent))
    async with httpx2.AsyncClient(transport=httpx2.ASGITransport(app), base_url="http://test") as http:
        answer = await http.get("/health/ready")
    assert answer.status_code == 503
    assert answer.json()["status"] == "storage_unavailable"
    assert answer.json()["error"].startswith(told)
    assert "secret" not in answer.text
    assert "secret" in caplog.text
