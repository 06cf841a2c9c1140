"""Troubles that an operator can heal, told so that a client understands them: 503, and when to come back."""

import errno

from fastapi import FastAPI, Request, Response

from server.answers import fail
from server.blobs import BlobsUnavailableError
from server.database import StoreUnavailableError
from server.errors import plain

DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)


def answer_troubles(app: FastAPI) -> None:
    """Makes `app` answer for a database or a disk that cannot be used."""

    @app.exception_handler(StoreUnavailableError)
    async def answer_store(_request: Request, _error: StoreUnavailableError) -> Response:
        return fail(plain("storage_unavailable", "The server's database cannot be used at the moment"))

    @app.exception_handler(BlobsUnavailableError)
    async def answer_blobs(_request: Request, _error: BlobsUnavailableError) -> Response:
        return fail(plain("storage_unavailable", "The server's file store cannot be used at the moment"))

    @app.exception_handler(OSError)
    async def answer_disk(_request: Request, error: OSError) -> Response:
        if error.errno in DISK_FULL:
            return fail(plain("storage_full", "The server's disk is full or cannot be written"))
        return fail(plain("internal_error", "Internal error"))
