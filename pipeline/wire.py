"""What the server and the generating process say to each other: JSON messages, each after its length in four bytes.

The server sends Generate, Cancel and Stop. The process answers Ready once, then for each Generate any number of
Progress and exactly one of Done, Failed or Cancelled. A Failed before Ready says why the model did not load.
"""

import asyncio
import json
import socket
import struct
from dataclasses import asdict, dataclass, is_dataclass
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from pipeline.errors import CallerError, GenerationError
from pipeline.types import Generated, GenerationRequest, LoadedModel, Progress

HEADER = struct.Struct(">I")
MAX_BYTES = 16 * 2**20


class WireError(Exception):
    """The other side sent what is not a message."""


@dataclass(frozen=True, slots=True)
class Generate:
    """Make the clip and write it to `output`."""

    request: GenerationRequest
    output: Path


@dataclass(frozen=True, slots=True)
class Cancel:
    """Stop the running clip, if one is running."""


@dataclass(frozen=True, slots=True)
class Stop:
    """Leave."""


@dataclass(frozen=True, slots=True)
class Ready:
    """The model is loaded."""

    model: LoadedModel


@dataclass(frozen=True, slots=True)
class Done:
    """The clip is written."""

    generated: Generated


@dataclass(frozen=True, slots=True)
class Failed:
    """The clip, or loading, failed. `kind` names the exception's class, `field` what the caller got wrong, if any."""

    kind: str
    message: str
    field: str | None
    context: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Cancelled:
    """The clip was given up, as asked."""


Message = Generate | Cancel | Stop | Ready | Progress | Done | Failed | Cancelled

_KINDS: dict[str, type[Message]] = {kind.__name__: kind for kind in get_args(Message)}


def failed(error: BaseException) -> Failed:
    """The message that says that `error` ended a clip."""
    if isinstance(error, CallerError):
        return Failed(type(error).__name__, str(error), error.field, error.context)
    if isinstance(error, GenerationError):
        return Failed(type(error).__name__, str(error), None, error.context)
    return Failed(type(error).__name__, str(error), None, {})


def pack(message: Message) -> bytes:
    """The bytes of one message."""
    body = json.dumps({"kind": type(message).__name__, "value": asdict(message)}, default=str).encode("ascii")
    return HEADER.pack(len(body)) + body


def unpack(body: bytes) -> Message:
    """The message in `body`, which is without its length.

    Raises: WireError.
    """
    try:
        envelope = json.loads(body)
        message: Message = _build(_KINDS[envelope["kind"]], envelope["value"])
    except (ValueError, KeyError, TypeError) as error:
        raise WireError(f"not a message: {error!r} in {body[:200]!r}") from error
    return message


def receive(connection: socket.socket) -> Message | None:
    """The next message, waiting for it; None once the other side is gone.

    Raises: WireError.
    """
    header = _read(connection, HEADER.size)
    body = header and _read(connection, _length(header))
    return unpack(body) if body else None


async def receive_from(reader: asyncio.StreamReader) -> Message | None:
    """The next message, waiting for it; None once the other side is gone.

    Raises: WireError.
    """
    try:
        header = await reader.readexactly(HEADER.size)
        return unpack(await reader.readexactly(_length(header)))
    except (asyncio.IncompleteReadError, ConnectionError):
        return None


def _length(header: bytes) -> int:
    (length,) = HEADER.unpack(header)
    if length > MAX_BYTES:
        raise WireError(f"a message of {length} bytes; at most {MAX_BYTES} are allowed")
    return int(length)


def _read(connection: socket.socket, count: int) -> bytes:
    parts = bytearray()
    while len(parts) < count:
        try:
            part = connection.recv(count - len(parts))
        except ConnectionError:
            return b""
        if not part:
            return b""
        parts += part
    return bytes(parts)


def _build(kind: Any, value: Any) -> Any:
    """The value of type `kind` that `asdict` and JSON made `value` of.

    Raises: TypeError, KeyError.
    """
    if kind is Any:
        return value
    if is_dataclass(kind) and isinstance(kind, type):
        hints = get_type_hints(kind)
        if value.keys() != hints.keys():
            raise TypeError(f"{kind.__name__} has the fields {sorted(hints)}, not {sorted(value)}")
        return kind(**{name: _build(hint, value[name]) for name, hint in hints.items()})
    origin = get_origin(kind)
    if origin in (Union, UnionType):
        some = [k for k in get_args(kind) if k is not NoneType]
        return None if value is None else _build(some[0], value)
    if origin is Literal:
        if value not in get_args(kind):
            raise TypeError(f"{value!r} is not one of {get_args(kind)}")
        return value
    if origin is dict:
        _, inner = get_args(kind)
        return {str(key): _build(inner, item) for key, item in value.items()}
    if origin is tuple and type(value) is list:
        inner, _ = get_args(kind)
        return tuple(_build(inner, item) for item in value)
    if kind is Path:
        return Path(value)
    if kind is float and type(value) is int:
        return float(value)
    if type(value) is not kind:
        raise TypeError(f"{value!r} is not a {kind.__name__}")
    return value
