import tomllib
from pathlib import Path

import pytest

from pipeline import recipe
from pipeline.errors import RecipeError

DEMO = tomllib.loads((Path(recipe.__file__).parent / "recipes" / "demo.toml").read_text())


def test_a_recipe_can_be_a_file_of_ones_own(tmp_path):
    mine = tmp_path / "mine.toml"
    mine.write_text(
        (Path(recipe.__file__).parent / "recipes" / "demo.toml").read_text().replace('"demo"', '"mine"', 1)
    )
    assert recipe.load(str(mine)).name == "mine"


STAGE = DEMO["stages"][0]
TWO = {"shrink": 2, "sampler": "euler", "schedule": "shifted"}


def staged(**change):
    """The demo recipe with its one stage changed."""
    return DEMO | {"stages": [STAGE | change]}


@pytest.mark.parametrize(
    ("table", "told"),
    [
        (staged(sampler="heun"), r"stages\[0\]: sampler is 'heun', not one of euler"),
        (staged(eta="much"), "eta is 'much', not a float"),
        (DEMO | {"image_crf": True}, "image_crf is True, not a int"),
        (DEMO | {"defaults": 3}, "defaults is 3, not a table"),
        (DEMO | {"stages": {}}, "stages is {}, not a list"),
        (staged(video={"stg_blocks": [1.5]}), r"video: stg_blocks\[0\] is 1.5, not a int"),
        (staged(schedule="fixed", sigmas=[1.0, 0.5]), "must fall from at most 1 to 0"),
        (staged(schedule="fixed", sigmas=[1.0, 0.5, 0.5, 0.0]), "must fall from at most 1 to 0"),
        (staged(schedule="resampled"), "must fall from at most 1 to 0"),
        (staged(schedule="resampled", sigmas=[0.9, 0.0]), "the first stage begins with noise alone"),
        (staged(sigmas=[1.0, 0.0]), "the shifted schedule makes its own"),
        (staged(lora_strength=0.5), "there is no lora"),
        (staged(shrink=2), r"stages shrink by \[2\]"),
        (DEMO | {"stages": []}, r"stages shrink by \[\]"),
        (DEMO | {"stages": [TWO, STAGE]}, "no upsampler"),
        (DEMO | {"color": "blue"}, "unknown keys color"),
        ({k: v for k, v in DEMO.items() if k != "image_crf"}, "'mine' lacks image_crf"),
    ],
)
def test_a_wrong_key_is_named(table, told):
    with pytest.raises(RecipeError, match=told):
        recipe.parse(table, origin="mine")


def test_the_semantics_can_be_set_beside_the_recipe():
    assert recipe.load("demo").semantics == "official"
    assert recipe.load("demo", semantics="comfy").semantics == "comfy"


def test_an_unknown_recipe_is_told_which_there_are():
    with pytest.raises(RecipeError, match=r"no recipe 'nope'.*demo"):
        recipe.load("nope")


def test_a_file_that_is_not_toml_is_refused(tmp_path):
    (tmp_path / "bad.toml").write_text("= 3")
    with pytest.raises(RecipeError, match="cannot be read"):
        recipe.load(str(tmp_path / "bad.toml"))
