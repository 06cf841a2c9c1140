"""The most that a request may bring, whatever route it is for, counted as it comes."""

from collections.abc import Mapping

from starlette.types import Message, Receive

from server.errors import Failure, FalError, plain


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
