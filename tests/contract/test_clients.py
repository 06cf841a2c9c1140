"""The official clients against a real server: each test runs with Python's, and in full with JavaScript's."""

import json
import sys
import uuid
from pathlib import Path

import pytest

SMALL = {"resolution": {"width": 256, "height": 160}, "num_frames": 17, "num_inference_steps": 8}
SIZE = (256, 160)

in_python_only = pytest.mark.parametrize("drive", ["python"], indirect=True)


def test_a_run_gives_a_clip(drive, opened, photo):
    output = drive("run", prompt="The camera pans left.", image_url=photo, seed=5, **SMALL)["output"]
    assert output["seed"] == 5
    clip = opened(output, size=SIZE, num_frames=17)
    assert clip.rms > 0.01


@in_python_only
def test_a_run_without_audio_gives_a_silent_clip(drive, opened, photo):
    output = drive("run", prompt="Still.", image_url=photo, generate_audio=False, **SMALL)["output"]
    assert opened(output, size=SIZE, num_frames=17).seconds_of_sound is None


def test_a_subscription_shows_states_and_logs_as_they_come(drive, opened, photo):
    seen = drive("subscribe", prompt="The camera pans left.", image_url=photo, **SMALL)
    assert seen["states"][-2:] == ["IN_PROGRESS", "COMPLETED"]
    assert any("denoise" in line for line in seen["logs"])
    assert any("demo weights" in line for line in seen["logs"])
    opened(seen["output"], size=SIZE, num_frames=17)


def test_a_submitted_job_is_followed_and_fetched_by_its_id(drive, opened, photo):
    seen = drive("queue", prompt="The camera tilts up.", image_url=photo, **SMALL)
    assert str(uuid.UUID(seen["request_id"])) == seen["request_id"]
    assert seen["status"] == "COMPLETED"
    assert seen["metrics"]["inference_time"] > 0
    assert any("denoise" in line for line in seen["logs"])
    opened(seen["output"], size=SIZE, num_frames=17)


def test_a_running_job_is_cancelled_once(drive, photo):
    seen = drive("cancel", prompt="The camera pans left.", image_url=photo)
    assert seen["status"] == 499
    assert seen["body"]["error_type"] == "client_cancelled"
    assert seen["again"] == 400


def test_a_wrong_field_is_named(drive, photo):
    seen = drive("fail", prompt="The camera pans left.", image_url=photo, num_frames=8)
    assert seen["status"] == 422
    (item,) = seen["body"]["detail"]
    assert item["loc"] == ["body", "num_frames"]
    assert item["type"] == "greater_than_equal"


def test_the_async_client_subscribes_alike(server, opened, photo):
    order = {"do": "subscribe_async", "input": {"prompt": "Still.", "image_url": photo, **SMALL}}
    program = str(Path(__file__).with_name("drive.py"))
    seen = json.loads(server.client([sys.executable, program], stdin=json.dumps(order), **server.client_env))
    assert seen["states"][-2:] == ["IN_PROGRESS", "COMPLETED"]
    opened(seen["output"], size=SIZE, num_frames=17)


@in_python_only
def test_the_same_request_and_seed_give_the_same_frames(drive, opened, photo):
    asked = {"prompt": "The camera pans left.", "image_url": photo, **SMALL}
    one, two = (opened(drive("run", seed=7, **asked)["output"], size=SIZE, num_frames=17) for _ in range(2))
    other = opened(drive("run", seed=8, **asked)["output"], size=SIZE, num_frames=17)
    assert (one.pictures == two.pictures).all()
    assert (one.pictures != other.pictures).any()
