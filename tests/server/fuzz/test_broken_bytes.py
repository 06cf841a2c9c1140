"""Bytes that are no request, or half of one, on every port of the server: it answers 4xx or hangs up, and lives on."""

import contextlib
import re
import socket

import pytest
from hypothesis import HealthCheck, given, note, settings
from hypothesis import strategies as st

ENDPOINT = b"fal-ai/ltx-2.3-quality/image-to-video"
BODY = b'{"prompt": "a", "image_url": "data:,"}'
HOST = b"host: 127.0.0.1\r\n"
RUN = b"POST /" + ENDPOINT + b" HTTP/1.1\r\n" + HOST
UPLOAD = b"POST /files/upload HTTP/1.1\r\n" + HOST
CHUNKED = b"transfer-encoding: chunked\r\n"
RIGHT = RUN + b"content-type: application/json\r\ncontent-length: %d\r\n\r\n" % len(BODY) + BODY
UPGRADE = b"upgrade: websocket\r\nconnection: upgrade\r\nsec-websocket-version: 13\r\nsec-websocket-key: eA==\r\n\r\n"
FORM = b'content-type: multipart/form-data; boundary=b\r\ncontent-length: 60\r\n\r\n--b\r\nContent-Disposition: x="y'

BROKEN = {
    "nothing": b"",
    "no line": b"\r\n\r\n",
    "words": b"hello\r\n\r\n",
    "zeros": bytes(100),
    "HTTP/0.9": b"GET /\r\n\r\n",
    "HTTP/2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "HTTP/9.9": b"GET / HTTP/9.9\r\n\r\n",
    "TLS": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(40),
    "no host": b"GET /health HTTP/1.1\r\n\r\n",
    "two hosts": b"GET /health HTTP/1.1\r\nhost: a\r\nhost: 127.0.0.1\r\n\r\n",
    "two spaces": b"GET  /health HTTP/1.1\r\n" + HOST + b"\r\n",
    "no path": b"GET HTTP/1.1\r\n" + HOST + b"\r\n",
    "star": b"OPTIONS * HTTP/1.1\r\n" + HOST + b"\r\n",
    "absolute": b"GET http://[::1 HTTP/1.1\r\n" + HOST + b"\r\n",
    "tunnel": b"CONNECT fal.run:443 HTTP/1.1\r\n" + HOST + b"\r\n",
    "tunnel to nowhere": b"CONNECT [::1:443 HTTP/1.1\r\n\r\n",
    "tunnel to no port": b"CONNECT fal.run:x HTTP/1.1\r\n\r\n",
    "websocket": b"GET /" + ENDPOINT + b"/realtime HTTP/1.1\r\n" + HOST + UPGRADE,
    "NUL in a header": RUN + b"a: \x00\r\n\r\n",
    "folded header": RUN + b"a: b\r\n c\r\n\r\n",
    "nameless header": RUN + b": b\r\n\r\n",
    "huge header": RUN + b"a: " + b"a" * 200_000 + b"\r\n\r\n",
    "many headers": RUN + b"a: b\r\n" * 20_000 + b"\r\n",
    "long path": b"GET /" + b"a" * 200_000 + b" HTTP/1.1\r\n" + HOST + b"\r\n",
    "half a head": RUN + b"content-le",
    "half a body": RUN + b"content-length: 99\r\n\r\n{",
    "half an upload": UPLOAD + b"content-length: 99\r\n\r\nx",
    "half a form": UPLOAD + FORM,
    "half a form to run": RUN + FORM,
    "length of letters": RUN + b"content-length: x\r\n\r\n{}",
    "negative length": RUN + b"content-length: -1\r\n\r\n{}",
    "huge length": RUN + b"content-length: " + b"9" * 30 + b"\r\n\r\n{}",
    "two lengths": RUN + b"content-length: 2\r\ncontent-length: 3\r\n\r\n{}",
    "length and chunks": RUN + b"content-length: 2\r\n" + CHUNKED + b"\r\n0\r\n\r\n",
    "chunk of letters": RUN + CHUNKED + b"\r\nzz\r\n",
    "chunk of huge size": RUN + CHUNKED + b"\r\nffffffffffffffffff\r\n{}",
    "negative chunk": RUN + CHUNKED + b"\r\n-1\r\n{}",
    "chunk without an end": RUN + CHUNKED + b"\r\n2\r\n{}xx\r\n0\r\n\r\n",
    "chunks that stop": UPLOAD + CHUNKED + b"\r\n5\r\nab",
    "no last chunk": UPLOAD + CHUNKED + b"\r\n2\r\nab\r\n",
    "unknown coding": RUN + b"transfer-encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
    "one right and one wrong": RIGHT + b"\x00\x01",
    "a hundred at once": (b"GET /health/live HTTP/1.1\r\n" + HOST + b"\r\n") * 100,
}


def exchange(port: int, raw: bytes) -> bytes:
    """All that came back for `raw`, after which this side has nothing more to say."""
    came = bytearray()
    with (
        socket.create_connection(("127.0.0.1", port), timeout=30) as connection,
        contextlib.suppress(OSError),
    ):
        connection.sendall(raw)
        connection.shutdown(socket.SHUT_WR)
        while part := connection.recv(65536):
            came += part
    return bytes(came)


def check(came: bytes) -> None:
    """Fails if one of the answers is a fault, or one is begun and is no HTTP."""
    assert not came or came.startswith((b"HTTP/1.1 ", b"\x15\x03")), came[:200]
    statuses = [int(status) for status in re.findall(rb"HTTP/1\.1 (\d{3}) ", came)]
    assert [status for status in statuses if status >= 500] == [], came[:500]
    assert b"Traceback" not in came


def test_broken_bytes_are_answered_as_such_on_every_port(besieged, blots):
    for name, raw in BROKEN.items():
        for port in (besieged.port, besieged.tls_port, besieged.proxy_port):
            check(exchange(port, raw))
            assert not blots, name
        assert besieged.send(b"GET /health/live HTTP/1.1\r\n" + HOST + b"\r\n").status == 200, name


def test_a_websocket_is_answered_as_any_other_path_that_is_not_there(besieged):
    key = f"authorization: Key {besieged.key}\r\n".encode()
    answer = besieged.send(b"GET /" + ENDPOINT + b"/realtime HTTP/1.1\r\n" + HOST + key + UPGRADE)
    assert answer.status == 404
    assert answer.headers["x-fal-request-id"]
    assert answer.body == b'{"detail": "Path /image-to-video/realtime not found"}'


def hacked(besieged, blots, *, examples: int) -> None:
    """Sends a right request, with bytes changed, gone or new, to all ports."""

    @settings(
        max_examples=examples, deadline=None, database=None, derandomize=True, suppress_health_check=[*HealthCheck]
    )
    @given(
        port=st.sampled_from([besieged.port, besieged.port, besieged.tls_port, besieged.proxy_port]),
        cuts=st.lists(st.tuples(st.integers(0, len(RIGHT)), st.integers(0, 8), st.binary(max_size=8)), max_size=4),
    )
    def one(port: int, cuts: list[tuple[int, int, bytes]]) -> None:
        raw = RIGHT
        for at, gone, new in cuts:
            raw = raw[:at] + new + raw[at + gone :]
        came = exchange(port, raw)
        note(f"{raw!r} was answered {came[:500]!r}")
        check(came)
        assert not blots

    one()


def test_a_request_with_a_few_wrong_bytes_makes_no_fault(besieged, blots):
    hacked(besieged, blots, examples=40)


@pytest.mark.slow
def test_a_thousand_of_them_make_none(besieged, blots):
    hacked(besieged, blots, examples=1000)
