"""The most that a request may bring, whatever route it is for, counted as it comes."""

import re
from collections.abc import Mapping

from starlette.types import Message, Receive

from server.errors import Failure, FalError, plain
from server.settings import Settings

SMALL = 2_000_000
"""Bytes of what is said of uploads and tokens; the longest is the list of a file's parts."""


def limit_of(path: str, settings: Settings) -> int:
    """The most bytes that a request for the route at `path` may bring."""
    if path.startswith("/rest/") or re.fullmatch(r"/files/.+/.+/complete", path):
        return min(SMALL, settings.max_body_bytes)
    # why: every other path of a file is only written to by an upload
    return settings.max_upload_bytes if path.startswith("/files/") else settings.max_body_bytes


def too_long(headers: Mapping[str, str], *, limit: int) -> Failure | None:
    """The refusal of a body that says itself that it has more than `limit` bytes; None if it does not."""
    length = headers.get("content-length", "")
    return _failure(limit) if length.isascii() and length.isdigit() and int(length) > limit else None


def bounded(receive: Receive, *, limit: int) -> Receive:
    """`receive`, which raises FalError once the body has more than `limit` bytes."""
    taken = 0

    async def counting() -> Message:
        nonlocal taken
        message = await receive()
        if message["type"] == "http.request":
            taken += len(message.get("body", b""))
            if taken > limit:
                raise FalError(_failure(limit))
        return message

    return counting


def _failure(limit: int) -> Failure:
    return plain("body_too_large", f"The body has more than the {limit} bytes allowed")
