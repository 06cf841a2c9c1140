import errno

import httpx2
import pytest
from fastapi import FastAPI

from server.blobs import BlobsUnavailableError
from server.database import StoreUnavailableError
from server.troubles import answer_troubles


@pytest.mark.parametrize(
    ("trouble", "status", "error_type"),
    [
        (StoreUnavailableError("the password is secret"), 503, "storage_unavailable"),
        (BlobsUnavailableError("the password is secret"), 503, "storage_unavailable"),
        (OSError(errno.ENOSPC, "secret"), 503, "storage_full"),
        (OSError(errno.EDQUOT, "secret"), 503, "storage_full"),
        (OSError(errno.EIO, "secret"), 500, "internal_error"),
    ],
)
async def test_a_trouble_of_the_operators_is_told_without_its_inside(trouble, status, error_type):
    app = FastAPI()
    answer_troubles(app)

    @app.get("/")
    async def fail() -> None:
        raise trouble

    async with httpx2.AsyncClient(transport=httpx2.ASGITransport(app), base_url="http://test") as http:
        answer = await http.get("/")
    assert answer.status_code == status
    assert answer.json()["error_type"] == answer.headers["x-fal-error-type"] == error_type
    assert answer.headers["x-fal-retryable"] == "true"
    assert ("retry-after" in answer.headers) is (status == 503)
    assert "secret" not in answer.text
