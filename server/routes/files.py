"""The files, made or uploaded, found by id. Whoever knows the address may read: clients fetch them without a key."""

import re
import time

from fastapi import APIRouter, Request, Response
from starlette.responses import FileResponse
from starlette.types import Receive, Scope, Send

from server.answers import fail
from server.blobs import Blobs
from server.errors import plain
from server.store import Store

SHOWN = ("image/", "video/", "audio/")
SCRIPTED = ("image/svg+xml",)
"""Types that a browser would run, and not only show."""

RANGES = re.compile(rb"(?i:bytes)=\s*(\d{1,18}-\d{0,18}|-\d{1,18})(\s*,\s*(\d{1,18}-\d{0,18}|-\d{1,18}))*\s*")
BOUNDED = re.compile(rb"(\d+)-(\d+)")


def router(store: Store, blobs: Blobs) -> APIRouter:
    """The routes."""
    routes = APIRouter()

    @routes.api_route("/files/{file_id}/{name}", methods=["GET", "HEAD"])
    async def read(request: Request, file_id: str, name: str) -> Response:
        file = await store.file(file_id)
        if file is None or file.name != name:
            return fail(plain("not_found", "There is no such file, or it has expired"))
        etag = f'"{file.sha256}"'
        headers = {
            "etag": etag,
            "cache-control": f"public, max-age={max(0, int(file.expires - time.time()))}, immutable",
            "content-security-policy": "sandbox; default-src 'none'",
            "cross-origin-resource-policy": "cross-origin",
        }
        known = [tag.strip().removeprefix("W/") for tag in request.headers.get("if-none-match", "").split(",")]
        if etag in known or "*" in known:
            return Response(status_code=304, headers=headers)
        try:
            path = await blobs.local(file.id)
        except FileNotFoundError:
            return fail(plain("not_found", "There is no such file, or it has expired"))
        shown = file.content_type.startswith(SHOWN) and file.content_type not in SCRIPTED
        return RangedFile(
            path,
            headers=headers,
            media_type=file.content_type if shown else "application/octet-stream",
            filename=file.name,
            content_disposition_type="inline" if shown else "attachment",
        )

    return routes


class RangedFile(FileResponse):
    """A file, or its ranges that are asked for. A range that is not understood is as good as none: RFC 9110, 14.2."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Sends it."""
        headers = [(name, value) for name, value in scope["headers"] if name != b"range" or _understood(value)]
        await super().__call__({**scope, "headers": headers}, receive, send)


def _understood(value: bytes) -> bool:
    if not RANGES.fullmatch(value):
        return False
    return all(int(first) <= int(last) for first, last in BOUNDED.findall(value))
