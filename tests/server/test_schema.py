import json
from typing import get_args

import pytest

from pipeline import recipe
from pipeline.types import Size
from server.jobs import freeze, parse
from server.schema import File, ImageSize, ImageToVideoInput, ImageToVideoOutput

# name, default, (lowest, highest), from the model's page, in its order
PAGE = [
    ("prompt", ..., None),
    ("image_url", ..., None),
    ("num_frames", 121, (9, 481)),
    ("resolution", "auto", None),
    ("frames_per_second", 24.0, (1, 60)),
    ("num_inference_steps", 15, (8, 30)),
    ("guidance_scale", 1.0, (1, 20)),
    ("generate_audio", True, None),
    ("image_strength", 0.7, (0, 1)),
    ("negative_prompt", None, None),
    ("seed", None, (0, 2**63 - 1)),
    ("enable_prompt_expansion", True, None),
    ("enable_safety_checker", True, None),
    ("video_quality", "high", None),
    ("video_write_mode", "balanced", None),
    ("sync_mode", False, None),
]

DEMO = recipe.load("demo")


def test_the_fields_stand_in_the_pages_order():
    assert list(ImageToVideoInput.model_fields) == [name for name, _, _ in PAGE]
    assert list(ImageToVideoOutput.model_fields) == ["video", "seed", "prompt"]
    assert list(File.model_fields) == ["url", "content_type", "file_name", "file_size"]


@pytest.mark.parametrize(("name", "default", "span"), PAGE)
def test_a_field_has_the_pages_default_and_range(name, default, span):
    schema = ImageToVideoInput.model_json_schema()
    field = schema["properties"][name]
    assert field["description"]
    if default is ...:
        assert name in schema["required"]
        assert field["examples"]
    elif name != "negative_prompt":
        assert field["default"] == default
    if span is not None:
        inner = field if "minimum" in field else field["anyOf"][0]
        assert (inner["minimum"], inner["maximum"]) == span


def test_the_default_negative_prompt_is_the_pages():
    text = ImageToVideoInput.model_fields["negative_prompt"].default
    assert text.startswith("color distortion, overexposure, static, blurry details, subtitles")
    assert text.endswith("three legs, crowded background, walking backwards")
    assert len(text.split(", ")) == 28


def test_enums_have_the_pages_options():
    fields = ImageToVideoInput.model_fields
    assert get_args(fields["video_quality"].annotation) == ("low", "medium", "high", "maximum")
    assert get_args(fields["video_write_mode"].annotation) == ("fast", "balanced", "small")


@pytest.mark.parametrize(
    ("resolution", "size"),
    [
        ("auto", None),
        ("square_hd", Size(1024, 1024)),
        ("square", Size(512, 512)),
        ("portrait_4_3", Size(768, 1024)),
        ("portrait_16_9", Size(576, 1024)),
        ("landscape_4_3", Size(1024, 768)),
        ("landscape_16_9", Size(1024, 576)),
        ({"width": 1280}, Size(1280, 512)),
        ({"width": 1280, "height": 720}, Size(1280, 720)),
        ({}, Size(512, 512)),
    ],
)
def test_a_resolution_is_a_size(resolution, size):
    given = {"prompt": "a", "image_url": "b", "resolution": resolution}
    assert parse(json.dumps(given).encode(), DEMO).size() == size


def test_the_limits_of_a_size_are_fals():
    assert ImageSize(width=1, height=14_142) == ImageSize(width=1, height=14_142)


@pytest.mark.parametrize("seed", [0, 2**53 + 1, 2**63 - 1])
def test_a_given_seed_is_kept_exactly(seed):
    given = parse(json.dumps({"prompt": "a", "image_url": "b", "seed": seed}).encode(), DEMO)
    assert json.loads(freeze(given))["seed"] == seed


def test_a_frozen_input_reads_back_as_it_was():
    given = parse(
        json.dumps({"prompt": "日本", "image_url": "b", "seed": 1, "resolution": {"width": 640}}).encode(), DEMO
    )
    assert ImageToVideoInput.model_validate_json(freeze(given)) == given
