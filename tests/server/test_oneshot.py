import pytest
from PIL import Image

from pipeline import loading
from pipeline.errors import OperatorError
from server.__main__ import main


@pytest.mark.parametrize(
    ("flag", "told"), [("--lora", "--lora takes --lora-strength"), ("--upsampler", "recipe 'demo' has one stage")]
)
def test_a_file_that_the_recipe_has_no_use_for_is_refused(tmp_path, capsys, flag, told):
    image = tmp_path / "photo.png"
    Image.new("RGB", (64, 64)).save(image)
    argv = ["generate", "--prompt", "a cat", "--image-url", str(image), flag, str(image), "--data", str(tmp_path)]
    assert main(argv) == 1
    assert told in capsys.readouterr().err


def test_the_settings_say_how_the_model_is_loaded(tmp_path, monkeypatch):
    image = tmp_path / "photo.png"
    Image.new("RGB", (64, 64)).save(image)
    asked = {}

    def load(_recipe, **options):
        asked.update(options)
        raise OperatorError("seen enough")

    monkeypatch.setattr(loading, "load", load)
    monkeypatch.setenv("LTX_RESIDENCY", "stream")
    monkeypatch.setenv("LTX_PASSES_PER_CALL", "1")
    argv = ["generate", "--prompt", "a cat", "--image-url", str(image), "--data", str(tmp_path)]
    assert main([*argv, "--num-frames", "17"]) == 1
    assert (asked["residency"], asked["passes_per_call"]) == ("stream", 1)
    assert asked["clip"].num_frames == 17
