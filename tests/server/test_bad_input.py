"""Every wrong field: 422 at once on the run host; on the queue host the job's result, with the model left alone."""

import base64
import io
import json
import struct
import zlib

import pytest
from PIL import Image

ENDPOINT = "fal-ai/ltx-2.3-quality/image-to-video"

WRONG = [
    # what is changed, the last element of loc, type, ctx
    ({"prompt": ...}, "prompt", "missing", None),
    ({"image_url": ...}, "image_url", "missing", None),
    ({"prompt": 5}, "prompt", "string_type", None),
    ({"prompt": None}, "prompt", "string_type", None),
    ({"image_url": ["x"]}, "image_url", "string_type", None),
    ({"num_frames": 8}, "num_frames", "greater_than_equal", {"ge": 9}),
    ({"num_frames": 482}, "num_frames", "less_than_equal", {"le": 481}),
    ({"num_frames": 9.5}, "num_frames", "int_from_float", None),
    ({"num_frames": None}, "num_frames", "int_type", None),
    ({"num_frames": "many"}, "num_frames", "int_parsing", None),
    ({"frames_per_second": 0.5}, "frames_per_second", "greater_than_equal", {"ge": 1}),
    ({"frames_per_second": 61}, "frames_per_second", "less_than_equal", {"le": 60}),
    ({"frames_per_second": float("nan")}, "frames_per_second", "finite_number", None),
    ({"frames_per_second": float("inf")}, "frames_per_second", "finite_number", None),
    ({"num_inference_steps": 7}, "num_inference_steps", "greater_than_equal", {"ge": 8}),
    ({"num_inference_steps": 31}, "num_inference_steps", "less_than_equal", {"le": 30}),
    ({"guidance_scale": 0.9}, "guidance_scale", "greater_than_equal", {"ge": 1}),
    ({"guidance_scale": 21}, "guidance_scale", "less_than_equal", {"le": 20}),
    ({"guidance_scale": float("nan")}, "guidance_scale", "finite_number", None),
    ({"image_strength": -0.1}, "image_strength", "greater_than_equal", {"ge": 0}),
    ({"image_strength": 1.1}, "image_strength", "less_than_equal", {"le": 1}),
    ({"image_strength": float("-inf")}, "image_strength", "finite_number", None),
    ({"seed": -1}, "seed", "greater_than_equal", {"ge": 0}),
    ({"seed": 2**63}, "seed", "less_than_equal", {"le": 2**63 - 1}),
    ({"seed": 1e30}, "seed", None, None),
    ({"seed": float("nan")}, "seed", "finite_number", None),
    ({"generate_audio": "perhaps"}, "generate_audio", "bool_parsing", None),
    ({"sync_mode": 2}, "sync_mode", None, None),
    ({"video_quality": "best"}, "video_quality", "one_of", {"expected": ["low", "medium", "high", "maximum"]}),
    ({"video_write_mode": 1}, "video_write_mode", "one_of", {"expected": ["fast", "balanced", "small"]}),
    (
        {"resolution": "1080p"},
        "resolution",
        "one_of",
        {
            "expected": [
                "auto",
                "square_hd",
                "square",
                "portrait_4_3",
                "portrait_16_9",
                "landscape_4_3",
                "landscape_16_9",
            ]
        },
    ),
    ({"resolution": None}, "resolution", "one_of", ...),
    ({"resolution": 720}, "resolution", "one_of", ...),
    ({"resolution": float("nan")}, "resolution", "one_of", ...),
    ({"resolution": {"width": 0}}, "width", "greater_than", {"gt": 0}),
    ({"resolution": {"height": 14_143}}, "height", "less_than_equal", {"le": 14_142}),
    ({"resolution": {"width": float("nan")}}, "width", "finite_number", None),
    ({"resolution": {"width": 4096, "height": 4096}}, "resolution", "value_error", ...),
    ({"resolution": "square_hd", "num_frames": 241}, "resolution", "value_error", ...),
    ({"negative_prompt": "\ud800"}, "negative_prompt", "string_unicode", None),
    ({"prompt": "a\ud800"}, "prompt", "string_unicode", None),
]


def body(image: str, changed: dict[str, object]) -> bytes:
    given = {"prompt": "a", "image_url": image, **changed}
    return json.dumps({name: value for name, value in given.items() if value is not ...}).encode()


@pytest.mark.parametrize(("changed", "last", "kind", "context"), WRONG, ids=lambda value: str(value)[:40])
def test_a_wrong_field_is_422_and_says_which(server, image, changed, last, kind, context):
    answer = server.http.post(f"/{ENDPOINT}", content=body(image, changed))
    assert answer.status_code == 422
    assert answer.headers["x-fal-retryable"] == "false"
    assert answer.headers["x-fal-needs-retry"] == "0"
    assert answer.headers["x-fal-request-id"]
    entry, *others = answer.json()["detail"]
    assert entry["loc"][0] == "body"
    assert entry["loc"][-1] == last
    assert "input" in entry
    # a wrong side of a size is an error of the size too, which clients look for by the last element of loc
    assert [other["loc"] for other in others] == ([["body", "resolution"]] if last in ("width", "height") else [])
    assert entry["url"] == f"https://docs.fal.ai/errors#{entry['type']}"
    assert entry["msg"]
    if kind is not None:
        assert entry["type"] == kind
        assert answer.headers["x-fal-error-type"] == kind
    if context is not ... and kind not in (None, "int_parsing", "bool_parsing", "finite_number"):
        assert entry.get("ctx") == context


def test_two_wrong_fields_are_two_entries(server, image):
    answer = server.run(image_url=image, num_frames=1)
    assert [entry["loc"] for entry in answer.json()["detail"]] == [["body", "prompt"], ["body", "num_frames"]]


BROKEN = {
    b"": "json_invalid",
    b"{": "json_invalid",
    b"prompt=a": "json_invalid",
    b"\xff\xfe\x00": "json_invalid",
    b"[" * 100_000: "json_invalid",
    b'{"prompt": ' + b"[" * 900 + b"]" * 900 + b"}": "string_type",
    b"[1]": "model_type",
    b"null": "model_type",
    b'"text"': "model_type",
    b'{"seed": ' + b"9" * 5000 + b"}": "json_invalid",
}


@pytest.mark.parametrize(("sent", "kind"), BROKEN.items(), ids=lambda value: str(value)[:20])
def test_a_body_that_is_no_object_is_422(server, sent, kind):
    answer = server.http.post(f"/{ENDPOINT}", content=sent)
    assert answer.status_code == 422
    entry = answer.json()["detail"][0]
    assert entry["type"] == kind
    assert entry["loc"][0] == "body"
    assert "Traceback" not in answer.text


def test_the_queue_accepts_wrong_input_and_ends_the_job_with_it_at_once(server, image):
    given = body(image, {"num_frames": 8})
    answer = server.http.post(f"/queue/{ENDPOINT}", content=given)
    assert answer.status_code == 200
    job = answer.json()
    assert job["status"] == "IN_QUEUE"
    status = server.http.get(job["status_url"], params={"logs": 1})
    assert status.status_code == 200
    assert status.json()["status"] == "COMPLETED"
    assert status.json()["error"] == "num_frames: Input should be greater than or equal to 9"
    assert status.json()["error_type"] == "greater_than_equal"
    assert status.json()["logs"] == []
    result = server.http.get(job["response_url"])
    assert result.status_code == 422
    assert result.json() == server.http.post(f"/{ENDPOINT}", content=given).json()


def test_what_is_over_the_recipes_cap_is_told_with_what_would_fit(server, image):
    asked = {"resolution": {"width": 1920, "height": 1080}}
    answer = server.http.post(f"/{ENDPOINT}", content=body(image, asked))
    (entry,) = answer.json()["detail"]
    assert "16,384" in entry["msg"]
    frames = entry["ctx"]["max_num_frames"]
    fitting = server.http.post(f"/{ENDPOINT}", content=body(image, asked | {"num_frames": frames}))
    assert fitting.status_code == 200
    job = server.http.post(f"/queue/{ENDPOINT}", content=body(image, asked)).json()
    assert server.http.get(job["status_url"]).json()["status"] == "COMPLETED"
    assert server.http.get(job["response_url"]).status_code == 422


def test_the_queue_accepts_what_is_not_json(server):
    job = server.http.post(f"/queue/{ENDPOINT}", content=b"{").json()
    result = server.http.get(job["response_url"])
    assert result.status_code == 422
    assert result.json()["detail"][0]["type"] == "json_invalid"


def png(width: int, height: int) -> bytes:
    """A PNG that only claims its size."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


def uri(data: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(data).decode()


def small() -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (3, 3)).save(buffer, "PNG")
    return buffer.getvalue()


IMAGES = {
    "text": (uri(b"hello"), "image_load_error"),
    "empty": ("data:,", "image_load_error"),
    "no comma": ("data:image/png;base64", "image_load_error"),
    "not base64": ("data:image/png;base64,????", "image_load_error"),
    "truncated": (uri(png(64, 64)), "image_load_error"),
    "too small": (uri(small()), "image_too_small"),
    "bomb": (uri(png(40_000, 40_000)), "image_too_large"),
    "svg": (uri(b"<svg xmlns='http://www.w3.org/2000/svg'/>"), "unsupported_image_format"),
    "no url": ("photo.jpg", "file_download_error"),
    "empty text": ("", "file_download_error"),
    "file": ("file:///etc/passwd", "file_download_error"),
    "gopher": ("gopher://127.0.0.1/x", "file_download_error"),
    "loopback": ("http://127.0.0.1:1/a.png", "file_download_error"),
    "localhost": ("http://localhost:1/a.png", "file_download_error"),
    "metadata": ("http://169.254.169.254/latest", "file_download_error"),
    "bad port": ("http://127.0.0.1:99999/", "file_download_error"),
    "long": ("https://x.invalid/" + "a" * 9000, "file_download_error"),
    "NUL": ("http://127.0.0.1/\x00", "file_download_error"),
}


@pytest.mark.parametrize(("url", "kind"), IMAGES.values(), ids=IMAGES)
def test_an_image_that_cannot_be_used_is_422(server, url, kind):
    answer = server.run(prompt="a", image_url=url)
    assert answer.status_code == 422, answer.text
    (entry,) = answer.json()["detail"]
    assert entry["loc"] == ["body", "image_url"]
    assert entry["type"] == kind
    assert len(answer.content) < 4000


def test_an_image_over_the_limit_is_422(launch):
    with launch(max_image_bytes=5000) as it:
        (entry,) = it.run(prompt="a", image_url=uri(b"x" * 6000)).json()["detail"]
        assert entry["type"] == "file_too_large"
        assert entry["ctx"] == {"max_size": 5000}


@pytest.mark.parametrize(
    ("prompt", "status", "kind", "loc"),
    [
        ("unsafe", 422, "content_policy_violation", ["body", "prompt"]),
        ("huge", 422, "value_error", ["body", "num_frames"]),
        ("fail", 500, "internal_server_error", ["body"]),
    ],
)
def test_what_the_pipeline_refuses_is_told_in_fals_words(server, image, prompt, status, kind, loc):
    answer = server.run(prompt=prompt, image_url=image)
    assert answer.status_code == status
    assert answer.headers["x-fal-error-type"] == kind
    (entry,) = answer.json()["detail"]
    assert (entry["type"], entry["loc"]) == (kind, loc)
    assert server.run(prompt="a", image_url=image).status_code == 200


def test_numbers_that_are_none_are_told_with_their_place_at_once(server, image):
    answer = server.run(prompt="nan", image_url=image)
    assert answer.status_code == 500
    (entry,) = answer.json()["detail"]
    assert entry["msg"] == "stage 1 of 1, call 2 of 8: the latents hold NaN"
    assert server.run(prompt="a", image_url=image).status_code == 200


def test_a_fault_of_ours_tells_nothing_of_the_inside(server, image):
    answer = server.run(prompt="broken", image_url=image)
    assert answer.status_code == 500
    assert "secret" not in answer.text
    assert "Traceback" not in answer.text
    assert server.http.get("/health/live").status_code == 200
