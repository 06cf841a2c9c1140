import pytest
from PIL import Image

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
