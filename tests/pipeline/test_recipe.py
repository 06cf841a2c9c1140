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


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"sampler": "heun"}, "sampler is 'heun', not one of euler"),
        ({"eta": "much"}, "eta is 'much', not a float"),
        ({"image_crf": True}, "image_crf is True, not a int"),
        ({"sigmas": [1.0, 0.5]}, "must fall from 1 to 0"),
        ({"sigmas": [1.0, 0.5, 0.5, 0.0]}, "must fall from 1 to 0"),
        ({"sigmas": "distilled"}, "not a list of numbers"),
        ({"color": "blue"}, "unknown keys color"),
    ],
)
def test_a_wrong_key_is_named(change, told):
    with pytest.raises(RecipeError, match=told):
        recipe.parse(DEMO | change, origin="mine")


def test_a_missing_key_is_named():
    with pytest.raises(RecipeError, match="'mine' lacks eta"):
        recipe.parse({k: v for k, v in DEMO.items() if k != "eta"}, origin="mine")


def test_an_unknown_recipe_is_told_which_there_are():
    with pytest.raises(RecipeError, match=r"no recipe 'nope'.*demo"):
        recipe.load("nope")


def test_a_file_that_is_not_toml_is_refused(tmp_path):
    (tmp_path / "bad.toml").write_text("= 3")
    with pytest.raises(RecipeError, match="cannot be read"):
        recipe.load(str(tmp_path / "bad.toml"))
