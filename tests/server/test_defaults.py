import json
from dataclasses import replace

import pytest

from pipeline import recipe
from pipeline.recipe import Defaults
from server.jobs import freeze, parse

SENT = {"prompt": "a cat", "image_url": "data:image/png;base64,"}
MINE = replace(recipe.load("demo"), defaults=Defaults(steps=9, guidance_scale=2.5, strength=0.4))


def test_a_field_that_was_not_sent_has_the_recipes_value():
    given = parse(json.dumps(SENT).encode(), MINE)
    assert (given.num_inference_steps, given.guidance_scale, given.image_strength) == (9, 2.5, 0.4)
    assert (given.num_frames, given.frames_per_second) == (121, 24.0)


@pytest.mark.parametrize(
    ("field", "value"), [("num_inference_steps", 15), ("guidance_scale", 1.0), ("image_strength", 0.7)]
)
def test_a_field_that_was_sent_keeps_its_value_even_if_it_is_fals_default(field, value):
    given = parse(json.dumps(SENT | {field: value}).encode(), MINE)
    assert getattr(given, field) == value


def test_a_job_keeps_the_values_that_it_was_submitted_with():
    stored = json.loads(freeze(parse(json.dumps(SENT).encode(), MINE)))
    assert (stored["num_inference_steps"], stored["guidance_scale"], stored["image_strength"]) == (9, 2.5, 0.4)


def test_the_quality_recipe_defaults_to_what_fals_page_says():
    given = parse(json.dumps(SENT).encode(), recipe.load("quality"))
    assert (given.num_inference_steps, given.guidance_scale, given.image_strength) == (15, 1.0, 0.7)
