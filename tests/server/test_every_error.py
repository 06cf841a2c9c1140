"""Every error that can occur, as its caller sees it: on the run host, and as the result of a job."""

import asyncio
import base64
import io
import json
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from pipeline.picture import SUFFIXES
from pipeline.recipe import load
from server.control import ask
from server.errors import PIPELINE_TYPES, STATUSES, FalError
from server.jobs import parse
from server.schema import RESOLUTION_NAMES, ImageToVideoInput

ROOT = Path(__file__).parents[2]
ENDPOINT = "fal-ai/ltx-2.3-quality/image-to-video"
APP = "fal-ai/ltx-2.3-quality"
DOCS = "https://docs.fal.ai/errors#"

MAX_IMAGE = 200_000
MAX_BODY = 400_000


def picture(width: int, height: int) -> str:
    buffer = io.BytesIO()
    Image.new("1", (width, height)).save(buffer, "PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def uri(data: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(data).decode()


GOOD = {"prompt": "a", "image_url": picture(64, 48)}


@dataclass(frozen=True)
class Model:
    """An error of the model: a list of entries, of which the first is told here. Ellipsis: any value."""

    type: str
    given: dict[str, Any]
    loc: list[str | int]
    ctx: Any = None
    input: Any = ...
    status: int = 422
    retryable: bool = False


MODEL = [
    Model("missing", {"prompt": ...}, ["body", "prompt"]),
    Model("string_type", {"prompt": None}, ["body", "prompt"], input=None),
    Model("string_unicode", {"prompt": "a\ud800"}, ["body", "prompt"], input="a?"),
    Model("int_type", {"num_frames": None}, ["body", "num_frames"], input=None),
    Model("int_parsing", {"num_frames": "many"}, ["body", "num_frames"], input="many"),
    Model("int_from_float", {"num_frames": 9.5}, ["body", "num_frames"], input=9.5),
    Model("float_parsing", {"guidance_scale": "much"}, ["body", "guidance_scale"], input="much"),
    Model("finite_number", {"image_strength": float("nan")}, ["body", "image_strength"], input="nan"),
    Model("float_type", {"guidance_scale": None}, ["body", "guidance_scale"], input=None),
    Model("bool_type", {"generate_audio": None}, ["body", "generate_audio"], input=None),
    Model("bool_parsing", {"generate_audio": "perhaps"}, ["body", "generate_audio"], input="perhaps"),
    Model("greater_than_equal", {"num_frames": 8}, ["body", "num_frames"], {"ge": 9}, 8),
    Model("less_than_equal", {"num_frames": 482}, ["body", "num_frames"], {"le": 481}, 482),
    Model("greater_than", {"resolution": {"width": 0}}, ["body", "resolution", "width"], {"gt": 0}, 0),
    Model(
        "one_of",
        {"video_quality": "best"},
        ["body", "video_quality"],
        {"expected": ["low", "medium", "high", "maximum"]},
        "best",
    ),
    Model("one_of", {"resolution": "1080p"}, ["body", "resolution"], {"expected": list(RESOLUTION_NAMES)}, "1080p"),
    Model("value_error", {"resolution": "square_hd", "num_frames": 241}, ["body", "resolution"], ..., "square_hd"),
    Model("value_error", {"prompt": "huge"}, ["body", "num_frames"], ..., 121),
    Model("content_policy_violation", {"prompt": "unsafe"}, ["body", "prompt"], input="unsafe"),
    Model("image_load_error", {"image_url": uri(b"hello")}, ["body", "image_url"], input=uri(b"hello")),
    Model("image_load_error", {"image_url": "data:,"}, ["body", "image_url"], input="data:,"),
    Model(
        "image_too_small", {"image_url": picture(3, 9)}, ["body", "image_url"], {"min_width": ..., "min_height": ...}
    ),
    Model(
        "image_too_large",
        {"image_url": picture(20_000, 40)},
        ["body", "image_url"],
        {"max_width": ..., "max_height": ...},
    ),
    Model("unsupported_image_format", {"image_url": uri(b"<svg/>")}, ["body", "image_url"], ..., uri(b"<svg/>")),
    Model("file_download_error", {"image_url": "photo.jpg"}, ["body", "image_url"], input="photo.jpg"),
    Model(
        "file_download_error",
        {"image_url": "http://10.0.0.1/a.png"},
        ["body", "image_url"],
        input="http://10.0.0.1/a.png",
    ),
    Model("file_too_large", {"image_url": uri(bytes(MAX_IMAGE + 1))}, ["body", "image_url"], {"max_size": MAX_IMAGE}),
    Model("internal_server_error", {"prompt": "fail"}, ["body"], status=500, retryable=True),
    Model("internal_server_error", {"prompt": "broken"}, ["body"], status=500, retryable=True),
    Model("internal_server_error", {"prompt": "crash-always"}, ["body"], status=500, retryable=True),
    Model("generation_timeout", {"prompt": "hang"}, ["body"], status=504, retryable=True),
]


@pytest.fixture(scope="module")
def strict(shared_launch):
    """A server that bears little."""
    limits = {"max_image_bytes": MAX_IMAGE, "max_body_bytes": MAX_BODY, "max_upload_bytes": 5000}
    with shared_launch(**limits, max_attempts=1, step_timeout=0.6, max_queue_length=1) as it:
        yield it


@pytest.mark.parametrize("error", MODEL, ids=lambda error: f"{error.type} {str(error.given)[:30]}")
def test_an_error_of_the_model_is_told_alike_by_both_hosts(strict, error):
    given = {name: value for name, value in (GOOD | error.given).items() if value is not ...}
    body = json.dumps(given).encode()
    answer = strict.http.post(f"/run/{ENDPOINT}", content=body)
    assert answer.status_code == error.status, answer.text
    assert answer.headers["x-fal-error-type"] == error.type
    assert answer.headers["x-fal-retryable"] == str(error.retryable).lower()
    assert answer.headers["x-fal-needs-retry"] == str(int(error.retryable))
    assert answer.headers["x-fal-billable-units"] == "0"
    assert answer.headers["x-fal-request-id"]
    assert set(answer.json()) == {"detail"}
    entry = answer.json()["detail"][0]
    assert (entry["type"], entry["loc"], entry["url"]) == (error.type, error.loc, f"{DOCS}{error.type}")
    assert entry["msg"]
    assert list(entry) == [key for key in ("loc", "msg", "type", "url", "ctx", "input") if key in entry]
    assert ("input" in entry) is (len(error.loc) > 1)
    if error.input is not ...:
        assert entry["input"] == error.input
    if isinstance(error.ctx, dict):
        assert entry["ctx"].keys() == error.ctx.keys()
        assert all(value in (..., entry["ctx"][key]) for key, value in error.ctx.items())

    job = strict.http.post(f"/queue/{ENDPOINT}", content=body).json()
    status = strict.wait(job)
    assert status["error_type"] == error.type
    assert status["error"]
    result = strict.http.get(job["response_url"])
    assert (result.status_code, result.json()) == (answer.status_code, answer.json())
    for name in ("x-fal-error-type", "x-fal-retryable", "x-fal-needs-retry", "x-fal-billable-units"):
        assert result.headers[name] == answer.headers[name]


@dataclass(frozen=True)
class Service:
    """An error of the service: a sentence beside its type."""

    type: str
    method: str
    path: str
    status: int
    retryable: bool = False
    more: dict[str, Any] = field(default_factory=dict)


SERVICE = [
    Service("bad_request", "POST", f"/run/{ENDPOINT}", 400, more={"headers": {"x-fal-request-timeout": "soon"}}),
    Service("bad_request", "POST", f"/queue/{ENDPOINT}?fal_max_queue_length=x", 400),
    Service("forbidden", "GET", "/health", 403, more={"headers": {"origin": "https://evil.example"}}),
    Service("not_found", "GET", "/files/0/x.mp4", 404),
    Service("method_not_allowed", "DELETE", f"/run/{ENDPOINT}", 405),
    Service("body_too_large", "POST", f"/run/{ENDPOINT}", 413, more={"content": bytes(MAX_BODY + 1)}),
    Service("body_too_large", "POST", "/files/upload", 413, more={"content": bytes(5001)}),
]


@pytest.mark.parametrize("error", SERVICE, ids=lambda error: f"{error.type} {error.method} {error.path[:30]}")
def test_an_error_of_the_service_is_a_sentence_and_its_type(strict, error):
    more = error.more if "content" in error.more else {"json": GOOD, **error.more}
    check(strict.http.request(error.method, error.path, **more), error)


def test_a_full_queue_is_told_on_both_hosts(strict):
    running = strict.submit(**GOOD | {"prompt": "slow"})
    strict.wait(running, "IN_PROGRESS")
    waiting = strict.submit(**GOOD)
    full = Service("queue_full", "POST", "", 429, retryable=True)
    for path in (f"/queue/{ENDPOINT}", f"/run/{ENDPOINT}", f"/queue/{ENDPOINT}?fal_max_queue_length=0"):
        check(strict.http.post(path, json=GOOD), full)
    # what would end at once is kept like what waits
    check(strict.http.post(f"/queue/{ENDPOINT}", json={}), full)
    assert strict.http.post(f"/run/{ENDPOINT}", json={}).status_code == 422
    for job in (waiting, running):
        strict.http.put(job["cancel_url"])
        strict.wait(job)


def check(answer, error):
    assert answer.status_code == error.status, answer.text
    assert answer.json().keys() == {"detail", "error_type"}
    assert answer.json()["detail"]
    assert answer.json()["error_type"] == answer.headers["x-fal-error-type"] == error.type
    assert answer.headers["x-fal-retryable"] == str(error.retryable).lower()
    assert answer.headers["x-fal-needs-retry"] == str(int(error.retryable))
    assert answer.headers["x-fal-request-id"]


def test_a_fault_of_the_server_itself_is_an_internal_error_that_tells_nothing(launch, image):
    with launch() as it:
        job = it.submit(prompt="a", image_url=image, sync_mode=True)
        it.wait(job)
        for path in (it.settings.data / "blobs").rglob("*"):
            if path.is_file():
                path.unlink()
                path.mkdir()
        answer = it.http.get(job["response_url"])
        assert answer.status_code == 500
        assert answer.json() == {"detail": "Internal error", "error_type": "internal_error"}
        assert answer.headers["x-fal-request-id"]
        assert answer.headers["x-fal-retryable"] == "true"


def test_an_upload_without_a_token_is_unauthorized_once_there_is_a_key(launch):
    with launch() as it:
        asked = {"do": "create", "name": "a", "max_in_flight": None, "private_webhooks": False}
        asyncio.run(ask(it.settings.data, asked))
        for headers in ({}, {"authorization": "Bearer x"}, {"authorization": "Key x"}):
            answer = it.http.post("/files/upload", content=b"a", headers=headers)
            check(answer, Service("unauthorized", "POST", "/files/upload", 401))


ELSEWHERE = {
    "request_timeout": "test_deadlines.py",
    "client_cancelled": "test_queue.py",
    "client_disconnected": "test_run.py",
    "storage_full": "test_uploads.py",
    "internal_error": "test_every_error.py",
    "unauthorized": "test_every_error.py",
    "concurrent_requests_limit": "test_keys.py",
    "storage_unavailable": "test_troubles.py",
    "feature_not_supported": "test_errors.py",
    "json_invalid": "test_bad_input.py",
    "model_type": "test_bad_input.py",
}
"""Types that need more than a request of fields to come about, and the file whose tests bring them about."""

SHOWN = {error.type for error in (*MODEL, *SERVICE)} | {"queue_full"} | set(ELSEWHERE)

# Source: fal's documentation, pages "Errors" and "Request errors": every type of an answer that is no 200
FALS_TYPES = re.findall(
    r"\w+",
    """
internal_server_error generation_timeout downstream_service_error downstream_service_unavailable
content_policy_violation no_media_generated image_too_small image_too_large image_load_error file_download_error
face_detection_error file_too_large greater_than greater_than_equal less_than less_than_equal multiple_of
sequence_too_short sequence_too_long one_of feature_not_supported invalid_archive archive_file_count_below_minimum
archive_file_count_exceeds_maximum audio_duration_too_long audio_duration_too_short unsupported_audio_format
unsupported_image_format unsupported_video_format video_duration_too_long video_duration_too_short request_timeout
startup_timeout runner_scheduling_failure runner_connection_timeout runner_disconnected runner_connection_refused
runner_connection_error runner_incomplete_response runner_server_error client_disconnected client_cancelled
bad_request internal_error concurrent_requests_limit
""",
)

ODD = [None, "x", "", [], {}, True, 2, 1.5, float("nan"), -(10**9), 10**9, 10**400, "9" * 4000, "\ud800",
       {"width": 0}, {"width": 10**30}, {"height": "x"}, {"width": None}, {"width": 1.5}]  # fmt: skip
"""Values that are wrong, each in its own way, for some field."""


def test_every_type_of_error_is_brought_about_by_a_test():
    assert set(STATUSES) | set(PIPELINE_TYPES.values()) <= SHOWN
    for error_type, name in ELSEWHERE.items():
        assert f'"{error_type}"' in (Path(__file__).parent / name).read_text(), error_type


def test_every_type_that_the_code_names_is_brought_about_by_a_test():
    raised = r'(?:plain|item|\w*[fF]ailure|FieldError)\(\s*"(\w+)"'
    sources = [path.read_text() for path in (ROOT / "server").rglob("*.py")]
    named = {error_type for source in sources for error_type in re.findall(raised, source)}
    assert {"image_load_error", "queue_full", "json_invalid"} < named
    assert named <= SHOWN


def test_every_type_that_a_wrong_value_of_a_field_can_have_is_brought_about_by_a_test():
    found, recipe = set(), load("demo", semantics="recipe")
    for name in ImageToVideoInput.model_fields:
        for value in ODD:
            try:
                parse(json.dumps(GOOD | {name: value}).encode(), recipe)
            except FalError as error:
                found |= {entry["type"] for entry in error.failure.detail}
    assert len(found) > 10
    assert found <= SHOWN


def test_every_type_of_error_stands_in_the_table_of_compatibility():
    told = set(re.findall(r"`(\w+)`", (ROOT / "docs/fal-compatibility.md").read_text()))
    assert (SHOWN | set(FALS_TYPES)) - told == set()


def test_a_type_of_fals_that_the_page_calls_the_same_is_brought_about_by_a_test():
    page = (ROOT / "docs/fal-compatibility.md").read_text().partition("## Errors")[2].partition("\n## ")[0]
    same = {
        name for row in page.splitlines() if "| same |" in row for name in re.findall(r"`(\w+)`", row.split("|")[1])
    }
    assert len(same & set(FALS_TYPES)) > 15
    assert same & set(FALS_TYPES) <= SHOWN


def test_the_formats_that_would_do_are_told_as_endings(strict):
    answer = strict.run(prompt="a", image_url=uri(b"<svg/>"))
    assert answer.json()["detail"][0]["ctx"] == {"supported_formats": list(SUFFIXES)}
    assert ".jpg" in SUFFIXES
