"""Requests to every route, mutated in all their parts: no fault, no traceback, no answer against the OpenAPI document.

A request begins as one that is right for its route and is then changed, or not, in its address, path, method, query,
headers and body, each on its own, so that most of them get past the first check that could stop them.
"""

import json
import re
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any
from urllib.parse import quote, urlencode

import pytest
from hypothesis import HealthCheck, given, note, seed, settings
from hypothesis import strategies as st

from server.schema import APP, ENDPOINT

METHODS = ["GET", "HEAD", "POST", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "PROPFIND", "get", "M-SEARCH"]
HOSTS = {"run": "fal.run", "queue": "queue.fal.run", "rest": "rest.fal.ai", "files": "v3.fal.media"}
ODD_PATHS = [
    "%00", "%2f", "%2F..%2F", "..", "%2e%2e", "//", "/./", ";a=b", "%ff%fe", "%ed%a0%80", "é", "%E6%97%A5", "%",
    "%zz", "\\", "%0d%0aa:b", "requests", "%20", "?", "#", "\x7f", "a" * 3000, "%F0%9F%98%80", "~", "*",
]  # fmt: skip
ODD_TEXTS = [
    "", "\x00", "\ud800", "a\udfffb", "日本語 😀", "é" * 3000, "../../etc/passwd", "%00", "-1", "1e999", "NaN", "null",
    "١٢", "²", "\u202e", "\ufeff", "'; DROP TABLE jobs; --", "{{7*7}}", "9" * 400, "[" * 2000,
]  # fmt: skip
ODD_NUMBERS = [
    0, -1, 1, 9, 121, 2**31, 2**63 - 1, 2**63, -(2**63), 10**30, 10**4000, 0.5, -0.0, 1e-320, 1e308, float("nan"),
    float("inf"), float("-inf"),
]  # fmt: skip
ODD_URLS = [
    "", "http://", "http:///a", "http://[", "http://[::1%eth0]/", "http://127.0.0.1:9/", "http://127.0.0.1:x/",
    "http://0x7f.1/", "http://2130706433/", "http://localhost./", "http://a.invalid/ä", "http://日本.invalid/",
    "http://xn--a.invalid/", "http://" + "a" * 300 + ".invalid/", "http://a..invalid/", "https://u:p@a.invalid:0/",
    "http://169.254.169.254/", "file:///etc/passwd", "data:", "data:,", "data:image/png;base64,", "data:;base64,=",
    "data:image/png;base64,iVBORw0KGgo=", "DATA:,%ff%00", "/files/x/y", "http://a.invalid/files/x/y", "\x00",
    "javascript:1", "http://a.invalid/" + "a" * 9000,
]  # fmt: skip
ODD_HOSTS = [
    "", "evil.example", "[::1", "[::1]", "localhost:x", "fal.ai", "u@127.0.0.1", "é", "ws.fal.run", "a" * 300,
]  # fmt: skip
ODD_TARGETS = [
    "", "x", "http://queue.fal.run/", "https://fal.ai/", "https://[", "https://queue.fal.run", "https://evil.example/",
    f"https://queue.fal.run:x/{APP}", "https://queue.fal.run/%00?%ff", "https://queue.fal.run/é", "//fal.run/",
]  # fmt: skip
ODD_HEADERS = {
    "content-type": [
        "", "application/json", "text/plain", "multipart/form-data", "multipart/form-data; boundary=",
        "application/x-www-form-urlencoded", "image/svg+xml", "text/html; charset=utf-7", "é/ü", "a" * 300,
    ],
    "content-encoding": ["gzip", "br", "identity", "nonsense"],
    "accept": ["", "*/*", "text/event-stream", "image/png;q=x"],
    "accept-encoding": ["gzip", "*;q=0"],
    "range": [
        "bytes=0-0", "bytes=-1", "bytes=-0", "bytes=5-2", "bytes=0-0,2-3,1-1", "bytes=9999999999999999999-",
        "bytes=-" + "9" * 30, "bytes=a-b", "bytes=", "lines=1-2", "bytes=0-0" + ",0-0" * 500, "bytes=²-3", "é",
    ],
    "if-range": ['"x"', "Wed, 21 Oct 2015 07:28:00 GMT", "é"],
    "if-none-match": ["*", '"x"', 'W/"x", "y"', ",,,", "é"],
    "if-modified-since": ["Wed, 21 Oct 2015 07:28:00 GMT", "yesterday", "9" * 50],
    "expect": ["100-continue", "a miracle"],
    "origin": ["null", "http://localhost:3000", "https://evil.example", "http://[", "file://", "é"],
    "sec-fetch-site": ["same-origin", "same-site", "cross-site", "none", "x"],
    "access-control-request-method": ["POST", "é", ""],
    "cookie": ["a=b; " * 50],
    "forwarded": ["for=1.2.3.4;host=x"],
    "x-forwarded-for": ["1.2.3.4, é"],
    "x-forwarded-host": ["evil.example"],
    "transfer-encoding": ["identity"],
    "upgrade": ["websocket", "h2c"],
    "x-fal-request-timeout": ["30", "0.2", "0", "-1", "nan", "inf", "1e400", "1_0", "soon", "é", ""],
    "x-fal-queue-priority": ["low", "normal", "high", "é", ""],
    "x-fal-object-lifecycle": [
        '{"expiration_duration_seconds": 60}', "{", "[" * 3000, '{"expiration_duration_seconds": 1e999}',
        '{"expiration_duration_seconds": "x"}', '{"expiration_duration_seconds": ' + "9" * 500 + "}", "é",
    ],
    "x-fal-object-lifecycle-preference": ['{"expiration_duration_seconds": 0.001}', "null", "{}"],
    "x-fal-file-name": ["a.png", "../../x", "", "é" * 200, "a" * 5000, ".", "con.mp4", "%00"],
    "x-fal-store-io": ["0", "x"],
    "x-fal-no-retry": ["1", "x"],
    "x-fal-runner-hint": ["é"],
    "x-fal-retry-config": ["{", "{}"],
    "x-fal-tags": ["a=b", "é"],
    "x-fal-request-id": ["mine"],
}  # fmt: skip
QUERIES = {
    "logs": ["1", "0", "true", "True", "", "2", "é", "\x00"],
    "fal_webhook": ODD_URLS,
    "fal_max_queue_length": ["0", "3", "-1", "1e3", "٣", "9" * 30, "", "x"],
    "endpoint_id": [ENDPOINT, "", "é", "fal-ai/other"],
    "storage_type": ["gcs", "fal-cdn-v3", "", "é"],
    "ticket": ["", "x", "a.b.c", "é"],
    "fal_jwt_token": ["", "x", "a.b.c", "é"],
}


@dataclass(frozen=True)
class Sent:
    """One request. `intact`: whether address, path and method are those of its route."""

    route: str
    method: str
    target: str
    headers: list[tuple[str, str]] = field(repr=False)
    body: bytes = field(repr=False)
    chunked: bool
    intact: bool

    def raw(self) -> bytes:
        """Its bytes."""
        headers = [*self.headers, ("connection", "close")]
        body = self.body
        if self.chunked:
            headers.append(("transfer-encoding", "chunked"))
            half = len(body) // 2
            body = b"".join(b"%x\r\n%s\r\n" % (len(part), part) for part in (body[:half], body[half:]) if part)
            body += b"0\r\n\r\n"
        elif body or self.method in ("POST", "PUT"):
            headers.append(("content-length", str(len(body))))
        head = "\r\n".join([f"{self.method} {self.target} HTTP/1.1", *(f"{name}: {value}" for name, value in headers)])
        return head.encode("latin-1", "replace") + b"\r\n\r\n" + body


def rarely(odds: int, value: st.SearchStrategy[Any], otherwise: Any) -> st.SearchStrategy[Any]:
    """`value` once in `odds` times, else `otherwise`."""
    return st.integers(1, odds).flatmap(lambda n: value if n == odds else st.just(otherwise))


SCALARS = st.one_of(
    st.sampled_from([None, True, False, [], {}, *ODD_NUMBERS, *ODD_TEXTS, *ODD_URLS]),
    st.text(st.characters(), max_size=30),
    st.integers(),
    st.floats(),
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.one_of(
        st.lists(inner, max_size=4),
        st.dictionaries(st.sampled_from(["width", "height", "a", "", "\x00", "\ud800"]), inner, max_size=3),
    ),
    max_leaves=6,
)
DEEP = st.integers(1, 3000).map(lambda depth: b"[" * depth + b"]" * depth)
FORM = b'--b\r\nContent-Disposition: form-data; name="prompt"\r\n\r\na\r\n--b'


@st.composite
def json_bodies(draw: st.DrawFn, base: dict[str, Any]) -> bytes:
    """`base` with some fields changed, gone or new; in the end, perhaps, broken as a text."""
    value: Any = dict(base)
    for name in draw(st.lists(st.sampled_from([*base, "new", "\x00", "__proto__"]), max_size=3)):
        value[name] = draw(VALUES)
    for name in draw(rarely(4, st.lists(st.sampled_from(list(base)), max_size=2), ())) if base else ():
        value.pop(name, None)
    value = draw(rarely(12, VALUES, value))
    body = json.dumps(value).encode()
    match draw(rarely(3, st.integers(0, 9), 0)):
        case 1:
            body = body[: draw(st.integers(0, len(body)))]
        case 2:
            at = draw(st.integers(0, len(body)))
            body = body[:at] + draw(st.binary(max_size=8)) + body[at:]
        case 3:
            body = body.decode().encode(draw(st.sampled_from(["utf-16", "utf-32", "utf-8-sig", "utf-7"])))
        case 4:
            body = draw(DEEP)
        case 5:
            body = b'{"prompt": ' + draw(DEEP) + b"}"
        case 6:
            body = re.sub(
                rb"\d+", draw(st.sampled_from([b"1e400", b"-0", b"01", b"9" * 5000, b"Infinity", b"0x1"])), body
            )
        case 7:
            body = draw(
                st.sampled_from([b"", b"\x00", FORM, FORM + b"--\r\n", b"prompt=a&image_url=b", b"\x1f\x8b\x08\x00"])
            )
        case 8:
            body = draw(st.binary(max_size=200))
        case 9:
            body = b" " * 120_000 + body
    return body


BASES: dict[str, dict[str, Any]] = {
    "tokens": {"allowed_apps": [ENDPOINT], "token_expiration": 60},
    "complete": {"parts": [{"partNumber": 1, "etag": '"x"'}]},
    "initiate": {"file_name": "a.png", "content_type": "image/png"},
    "initiate-multipart": {"file_name": "a.png", "content_type": "image/png"},
    "image-to-video": {
        "prompt": "a",
        "image_url": "",
        "num_frames": 9,
        "resolution": {"width": 64, "height": 64},
        "frames_per_second": 24.0,
        "num_inference_steps": 8,
        "guidance_scale": 1.0,
        "generate_audio": True,
        "image_strength": 0.7,
        "negative_prompt": "b",
        "seed": 1,
        "enable_prompt_expansion": False,
        "enable_safety_checker": False,
        "video_quality": "low",
        "video_write_mode": "fast",
        "sync_mode": False,
    },
}  # fmt: skip


def bodies(method: str, path: str, image: str) -> st.SearchStrategy[bytes]:
    """Bodies for a route."""
    if method == "GET":
        return rarely(6, st.binary(max_size=50), b"")
    base = BASES.get(path.rpartition("/")[2])
    if base is None:
        return st.one_of(st.binary(max_size=300), rarely(5, st.integers(49_000, 101_000).map(bytes), b""))
    return json_bodies(base | {"image_url": image} if "image_url" in base else base)


@st.composite
def requests(draw: st.DrawFn, besieged: Any, method: str, path: str, image: str) -> Sent:
    """Requests for one route of a server."""
    file_id, name, ticket = draw(st.sampled_from(besieged.files))
    right = {
        "job_id": draw(st.sampled_from(besieged.jobs)),
        "file_id": file_id,
        "name": name,
        "ticket": ticket,
        "number": "1",
    }
    odd = st.one_of(
        st.sampled_from([*ODD_PATHS, "1", "complete"]),
        st.text(max_size=10).map(lambda text: quote(text, safe="", errors="replace")),
    )
    inside = re.sub(r"\{(\w+)\}", lambda found: draw(rarely(4, odd, right[found[1]])), path)
    asked = inside
    if (change := draw(rarely(4, st.sampled_from(ODD_PATHS), None))) is not None:
        at = draw(st.integers(0, len(inside)))
        inside = inside[:at] + change + inside[at:]
    asked_method = draw(rarely(8, st.sampled_from(METHODS), method))

    parameters: dict[str, list[str]] = {}
    if "ticket" not in path and path.startswith("/files/"):
        parameters["ticket"] = [draw(rarely(4, st.sampled_from(QUERIES["ticket"]), ticket))]
    if path.startswith("/api"):
        parameters["endpoint_id"] = [ENDPOINT]
    for key in draw(rarely(2, st.lists(st.sampled_from([*QUERIES, "", "é"]), max_size=3), ())):
        values = st.one_of(st.sampled_from(QUERIES.get(key, [""])), st.sampled_from(ODD_TEXTS))
        parameters.setdefault(key, []).append(draw(values))
    query = urlencode(parameters, doseq=True, errors="replace")
    query += draw(rarely(8, st.sampled_from(["&", "%", "&=&=", "&a[]=1", "&logs=%ff"]), ""))

    headers = [("authorization", draw(authorizations(besieged, path)))]
    for key in draw(rarely(2, st.lists(st.sampled_from(list(ODD_HEADERS)), max_size=4), ())):
        values = st.one_of(
            st.sampled_from(ODD_HEADERS[key]), st.text(st.characters(min_codepoint=32, max_codepoint=255), max_size=20)
        )
        headers.append((key, draw(values)))

    own, role = f"127.0.0.1:{besieged.port}", path.split("/")[1]
    bare = inside.removeprefix(f"/{role}") if role != "files" else inside
    host, target = own, inside
    match draw(st.sampled_from(["prefix", "prefix", "host", "target", "bare", "odd host", "odd target"])):
        case "host" if role in HOSTS:
            host, target = HOSTS[role], bare
        case "target" if role in HOSTS:
            headers.append(("x-fal-target-url", f"https://{HOSTS[role]}{bare}{'?' * bool(query)}{query}"))
            target, query = "/api/fal/proxy", ""
        case "bare" if role in ("run", "files"):
            target = bare
        case "odd host":
            host, asked = draw(st.sampled_from(ODD_HOSTS)), ""
        case "odd target":
            headers.append(("x-fal-target-url", draw(st.sampled_from(ODD_TARGETS))))
            asked = ""
    slash = draw(rarely(5, st.just("/"), ""))
    return Sent(
        route=f"{method} {path}",
        method=asked_method,
        target=(target + slash + "?" * bool(query) + query).replace(" ", "%20"),
        headers=[("host", host), *headers],
        body=draw(bodies(method, path, image)),
        chunked=draw(rarely(6, st.just(True), False)),
        intact=inside == asked and asked_method == method,
    )


def authorizations(besieged: Any, path: str) -> st.SearchStrategy[str]:
    """What stands in Authorization: mostly what is right."""
    right = f"Bearer {besieged.upload_token}" if path.startswith("/files/") else f"Key {besieged.key}"
    deep = "W1tb" * 8000
    credentials = [
        "", "Key", "Key ", "Key :", "Basic eDp5", "é é", "Bearer a.b.c", "Bearer eyJhbGciOiJub25lIn0.e30.",
        "Key " + "a" * 5000, f"Key {besieged.key.partition(':')[0]}:", f"Key {besieged.token}x",
        f"Bearer {besieged.token}", f"Bearer {besieged.files[-1][2]}", f"Bearer {deep}.{deep}.x",
    ]  # fmt: skip
    return rarely(4, st.sampled_from(credentials), right)


@pytest.fixture
def siege(besieged, verdicts, routes, image, blots) -> Callable[..., None]:
    """Sends so many examples to each route of a server, and writes what was answered."""
    return partial(lay_siege, besieged, verdicts, routes, image, blots)


def lay_siege(besieged, verdicts, routes, image, blots, *, examples: int, number: int) -> None:
    answered: dict[str, Counter[int]] = {}
    for n, (method, path) in enumerate(routes):

        @seed(1000 * number + n)
        @settings(max_examples=examples, deadline=None, database=None, suppress_health_check=list(HealthCheck))
        @given(requests(besieged, method, path, image))
        def one(sent: Sent) -> None:
            answer = besieged.send(sent.raw(), method=sent.method)
            assert answer is not None
            answered.setdefault(sent.route, Counter())[answer.status] += 1
            note(f"{sent.raw()[:4000]!r} was answered {answer.status} {answer.headers} {answer.body[:1000]!r}")
            verdicts.check(sent, answer)
            assert not blots

        one()
    assert besieged.send(b"GET /health/live HTTP/1.1\r\nhost: localhost\r\n\r\n").status == 200
    lines = [f"{besieged.name}: {sum(map(Counter.total, answered.values()))} requests"]
    for route, statuses in answered.items():
        told = "  ".join(f"{status}: {count}" for status, count in sorted(statuses.items()))
        lines.append(f"{route:90} {statuses.total():5}   {told}")
    sys.stdout.write("\n".join(["", *lines, ""]))
    assert {f"{method} {path}" for method, path in routes} == answered.keys()
    assert all(statuses.total() >= examples for statuses in answered.values())


def test_no_mutated_request_makes_a_fault_or_an_answer_against_the_document(siege):
    siege(examples=4, number=1)


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_none_of_ten_thousand_does(siege):
    # two servers, 33 routes
    siege(examples=170, number=2)
