import asyncio
import json
import socket
from pathlib import Path

import pytest

from pipeline.errors import ContentError, GenerationError
from pipeline.types import Generated, GenerationRequest, LoadedModel, Progress, Size
from pipeline.wire import (
    HEADER,
    MAX_BYTES,
    Cancel,
    Cancelled,
    Done,
    Failed,
    Generate,
    Message,
    Ready,
    Stop,
    WireError,
    failed,
    pack,
    receive,
    receive_from,
    unpack,
)

REQUEST = GenerationRequest(
    prompt="日本 \ud800 \x00",
    image=Path("a folder/b.png"),
    image_size=Size(64, 48),
    seed=2**63 - 1,
    negative_prompt="",
    size=None,
    num_frames=121,
    fps=23.976,
    steps=15,
    guidance_scale=1.0,
    strength=0.7,
    audio=True,
    expand_prompt=False,
    check_safety=True,
    quality="high",
    write_mode="small",
)

MESSAGES: list[Message] = [
    Generate(REQUEST, Path("out.mp4")),
    Cancel(),
    Stop(),
    Ready(LoadedModel("demo", "demo weights", True, "cpu", 1.5, "resident", ("evict-text", "stream"))),
    Progress("denoise", 3, 15, eta=2.5),
    Progress("plan", 1, 1, message="size snapped"),
    Done(Generated(Path("out.mp4"), "p", 7, Size(512, 288), 121, 24.0, True, {"denoise": 1.0})),
    Failed("ContentError", "flagged", "prompt", {"max": 1, "names": ["a"]}),
    Failed("RuntimeError", "boom", None, {}),
    Cancelled(),
]


@pytest.mark.parametrize("message", MESSAGES, ids=lambda m: type(m).__name__)
def test_a_message_arrives_as_it_was_sent(message):
    data = pack(message)
    assert unpack(data[HEADER.size :]) == message


def test_messages_arrive_one_by_one_over_a_socket_and_then_the_end():
    here, there = socket.socketpair()
    with here, there:
        here.sendall(b"".join(pack(message) for message in MESSAGES))
        here.shutdown(socket.SHUT_WR)
        assert [receive(there) for _ in MESSAGES] == MESSAGES
        assert receive(there) is None


async def test_messages_arrive_in_pieces_over_a_stream():
    reader = asyncio.StreamReader()
    for byte in pack(MESSAGES[0]) + pack(Cancel()) + b"\x00\x00":
        reader.feed_data(bytes([byte]))
    reader.feed_eof()
    assert await receive_from(reader) == MESSAGES[0]
    assert await receive_from(reader) == Cancel()
    assert await receive_from(reader) is None


def progress(**changed: object) -> bytes:
    """The bytes of a Progress."""
    fields = {"stage": "s", "step": 1, "total": 2, "eta": None, "message": None, "device_bytes": 0}
    return json.dumps({"kind": "Progress", "value": fields | changed}).encode()


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"[]",
        b"{}",
        b"\xff",
        b'{"kind": "Launch", "value": {}}',
        b'{"kind": "Ready", "value": {}}',
        progress(stage=1),
        b'{"kind": "Cancel", "value": {"now": true}}',
    ],
)
def test_rubbish_is_told_from_a_message(body):
    with pytest.raises(WireError):
        unpack(body)


def test_a_length_that_no_message_has_is_refused():
    here, there = socket.socketpair()
    with here, there:
        here.sendall(HEADER.pack(MAX_BYTES + 1))
        with pytest.raises(WireError, match="at most"):
            receive(there)


def test_a_whole_number_may_stand_for_a_fraction_and_not_the_reverse():
    assert unpack(progress(eta=3)) == Progress("s", 1, 2, eta=3.0)


def test_an_exception_becomes_its_message():
    assert failed(ContentError("no", field="prompt", context={"a": 1})) == Failed(
        "ContentError", "no", "prompt", {"a": 1}
    )
    assert failed(GenerationError("oh")) == Failed("GenerationError", "oh", None, {})
