import subprocess
import sys
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline import plan, recipe
from pipeline.errors import OverBudgetError
from pipeline.types import GenerationRequest, Size
from server.schema import PRESETS

DEMO = recipe.load("demo")
REQUEST = GenerationRequest(
    prompt="a cat",
    image=Path("cat.png"),
    image_size=Size(1920, 1080),
    seed=1,
    negative_prompt="",
    size=None,
    num_frames=121,
    fps=24.0,
    steps=15,
    guidance_scale=1.0,
    strength=0.7,
    audio=True,
    expand_prompt=True,
    check_safety=True,
    quality="high",
    write_mode="balanced",
)


@pytest.mark.parametrize(
    ("asked", "made"),
    [
        (Size(1920, 1080), Size(1888, 1056)),
        (Size(1080, 1920), Size(1056, 1888)),
        (Size(512, 512), Size(512, 512)),
        (Size(1280, 720), Size(1248, 704)),
        (Size(1024, 576), Size(1024, 576)),
        (Size(33, 40), Size(32, 32)),
        (Size(7, 9), Size(32, 32)),
    ],
)
def test_a_size_keeps_its_aspect_with_the_short_side_floored_to_a_cell(asked, made):
    assert plan.snapped(asked) == made


@pytest.mark.parametrize(
    ("image", "area", "made"),
    [
        (Size(1920, 1080), 147_456, Size(512, 288)),
        (Size(1080, 1920), 147_456, Size(288, 512)),
        (Size(100, 100), 147_456, Size(384, 384)),
        (Size(1920, 1080), 901_120, Size(1248, 704)),
        (Size(4000, 100), 147_456, Size(1280, 32)),
    ],
)
def test_auto_has_the_images_aspect_and_about_the_recipes_area(image, area, made):
    assert plan.fitted(image, area=area) == made


@given(width=st.integers(1, 14_142), height=st.integers(1, 14_142), area=st.integers(1024, 2_000_000))
def test_every_size_is_made_of_whole_cells_and_lies_as_the_image_does(width, height, area):
    for made in (plan.snapped(Size(width, height)), plan.fitted(Size(width, height), area=area)):
        assert made.width % 32 == made.height % 32 == 0
        assert min(made.width, made.height) >= 32
        assert (made.width >= made.height) == (width >= height) or made.width == made.height


@pytest.mark.parametrize(("asked", "made"), [(9, 9), (16, 9), (17, 17), (120, 113), (121, 121), (481, 481)])
def test_a_length_is_floored_to_8k_plus_1(asked, made):
    assert plan.snapped_frames(asked) == made


def test_the_seed_request_is_planned_as_the_page_describes_it():
    made = plan.make_plan(REQUEST, DEMO)
    assert made.size == Size(512, 288)
    assert (made.num_frames, made.latent_frames, made.audio_tokens) == (121, 16, 126)
    assert (made.fps, made.conditioning_fps) == (Fraction(24), 24)
    assert len(made.stages[0].sigmas) == 16
    assert made.megapixels == 18
    assert made.has_audio


def test_fals_price_example_has_112_megapixels():
    made = plan.make_plan(replace(REQUEST, size=Size(1280, 704)), replace(DEMO, max_tokens=100_000))
    assert replace(made, size=Size(1280, 720)).megapixels == 112


def test_every_change_from_the_request_has_a_note():
    asked = replace(REQUEST, size=Size(500, 300), num_frames=120, fps=5.0)
    notes = " ".join(plan.make_plan(asked, DEMO).notes)
    for told in ("500x300", "480x288", "120", "113", "5 fps"):
        assert told in notes


def test_a_request_that_fits_has_no_note():
    assert plan.make_plan(replace(REQUEST, size=Size(512, 288)), DEMO).notes == ()


def test_slow_clips_are_made_for_20_seconds_and_played_at_their_own_rate():
    made = plan.make_plan(replace(REQUEST, fps=1.0), DEMO)
    assert made.fps == 1
    assert made.conditioning_fps == 6
    assert made.audio_tokens == round(121 / 6 * 25)


@pytest.mark.parametrize("steps", range(8, 31))
def test_a_step_is_one_interval_of_the_schedule(steps):
    assert len(plan.make_plan(replace(REQUEST, steps=steps), DEMO).stages[0].sigmas) == steps + 1


def test_over_the_cap_the_error_names_the_cap_and_what_would_fit():
    with pytest.raises(OverBudgetError) as caught:
        plan.make_plan(replace(REQUEST, size=Size(1920, 1080), num_frames=481), DEMO)
    assert caught.value.field == "size"
    assert "16,384" in str(caught.value)
    frames = caught.value.context["max_num_frames"]
    assert f"{frames} frames at this size" in str(caught.value)
    plan.make_plan(replace(REQUEST, size=Size(1920, 1080), num_frames=frames), DEMO)


@given(
    width=st.integers(32, 6000), height=st.integers(32, 6000), frames=st.integers(9, 481), cap=st.integers(100, 20_000)
)
def test_what_the_error_offers_fits(width, height, frames, cap):
    tight = replace(DEMO, max_tokens=cap)
    asked = replace(REQUEST, size=Size(width, height), num_frames=frames)
    try:
        plan.make_plan(asked, tight)
    except OverBudgetError as error:
        offered = error.context["max_num_frames"]
        if offered >= 9:
            plan.make_plan(replace(asked, num_frames=offered), tight)
            with pytest.raises(OverBudgetError):
                plan.make_plan(replace(asked, num_frames=offered + 8), tight)


@pytest.mark.parametrize("name", PRESETS)
def test_the_demo_recipe_makes_every_preset_at_the_default_length(name):
    plan.make_plan(replace(REQUEST, size=PRESETS[name]), DEMO)


@pytest.mark.parametrize("frames", [9, 121, 481])
@pytest.mark.parametrize("image", [Size(1920, 1080), Size(1000, 1000), Size(600, 900), Size(3000, 200)])
def test_the_demo_recipe_makes_every_length_that_the_page_allows(frames, image):
    plan.make_plan(replace(REQUEST, image_size=image, num_frames=frames), DEMO)


def test_planning_needs_no_torch():
    code = "import sys; import pipeline.plan; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize(
    ("frames", "fps", "told", "slowed"),
    [
        (481, 24.0, 24.0, False),
        (481, 23.976, 24.0, True),
        (481, 12.0, 24.0, True),
        (121, 6.0, 6.0, False),
        (121, 23.976, 23.976, False),
        (9, 60.0, 60.0, False),
        (9, 1.0, 1.0, False),
        (121, 1.0, 6.0, True),
    ],
)
def test_the_model_is_told_a_rate_within_the_positions_it_was_trained_on(frames, fps, told, slowed):
    made = plan.make_plan(replace(REQUEST, num_frames=frames, fps=fps), DEMO)
    assert made.conditioning_fps == told
    assert (frames - 1) / made.conditioning_fps <= 20
    assert float(made.fps) == pytest.approx(fps, abs=1e-9)
    assert made.is_slowed == slowed
    assert made.audio_tokens == round(frames / told * 25)
