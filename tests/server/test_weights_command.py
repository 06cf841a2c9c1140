"""`ltxd weights fetch` and `check` as a user runs them, against a hub on loopback."""

import os
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from pipeline.recipe import load as load_recipe
from server.__main__ import main
from tests.weights.stub_hub import Hub, serve
from weights.manifest import load_manifest

ROOT = Path(__file__).parents[2]
RECIPES = sorted((ROOT / "pipeline/recipes").glob("*.toml"))
WORD = "hf_sesame"
GEMMA = "gemma-3-12b-it-qat-q4_0-unquantized"


def fetch(hub, tmp_path, *, recipe):
    return subprocess.run(
        [sys.executable, "-m", "server.__main__", "weights", "fetch", "--recipe", recipe, "--data", tmp_path],
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
        env={name: value for name, value in os.environ.items() if not name.startswith("HF_")}
        | {"HF_ENDPOINT": hub.address, "HF_TOKEN": WORD},
    )


@pytest.fixture
def small_recipe(tmp_path):
    """A recipe whose files are two small ones of the manifest."""
    text = (ROOT / "pipeline/recipes/demo.toml").read_text()
    shipped = tomllib.loads(text)
    path = tmp_path / "small.toml"
    path.write_text(
        text.replace(shipped["checkpoint"], f"{GEMMA}/config.json").replace(
            shipped["text_encoder"], f"{GEMMA}/generation_config.json"
        )
    )
    return path


def test_the_files_of_a_recipe_are_fetched_and_shown_on_the_way(tmp_path, small_recipe):
    files = [load_manifest().find(f"{GEMMA}/{name}")[0] for name in ("config.json", "generation_config.json")]
    content = b'{"a": "b"}' * 1000
    with serve(Hub({f"/{f.repository}/resolve/{f.revision}/{f.path}": content for f in files}, token=WORD)) as hub:
        first, second = (fetch(hub, tmp_path, recipe=small_recipe) for _ in range(2))
    assert (first.returncode, second.returncode) == (0, 0), first.stderr + second.stderr
    for file in files:
        assert (tmp_path / "models" / file.name).read_bytes() == content
    assert "2 files to fetch, 0.0 GB; " in first.stdout
    assert f"{GEMMA}/config.json: fetched and whole" in first.stdout
    assert "100%" in first.stderr
    assert "10.0k/10.0k" in first.stderr
    assert second.stdout.splitlines() == [f"{file.name}: is there and whole" for file in files]
    # each once, and nobody else is told
    assert [path for path, _ in hub.asked] == [*hub.files]


def test_a_hub_with_another_file_than_published_is_refused(tmp_path):
    file = load_manifest().find("ltx-2.3-22b-distilled-1.1.safetensors")[0]
    with serve(Hub({f"/{file.repository}/resolve/{file.revision}/{file.path}": b"short"})) as hub:
        run = fetch(hub, tmp_path, recipe=write(tmp_path, file.name))
    assert run.returncode == 1
    assert "Traceback" not in run.stderr
    # the disk of whoever runs the tests may be too small for the real one, which is told first
    assert "found 5 bytes at http" in run.stderr or "bytes free; expected at least" in run.stderr


def write(tmp_path, checkpoint):
    text = (ROOT / "pipeline/recipes/demo.toml").read_text()
    shipped = tomllib.loads(text)
    path = tmp_path / "one.toml"
    path.write_text(text.replace(shipped["checkpoint"], checkpoint).replace(shipped["text_encoder"], GEMMA))
    return path


def test_files_that_are_built_and_not_fetched_are_said_to_be(tmp_path, capsys):
    assert main(["weights", "fetch", "--data", str(tmp_path), "--recipe", "demo"]) == 1
    said = capsys.readouterr().err
    assert "demo/ltx-2.3-demo.safetensors" in said
    assert "its files are made by: ltxd weights build-demo" in said
    assert "ltxd weights fetch --recipe NAME" in said


def test_a_recipe_that_is_none_is_a_message(tmp_path, capsys):
    assert main(["weights", "fetch", "--data", str(tmp_path), "--recipe", "odd"]) == 1
    assert "there is no recipe 'odd'" in capsys.readouterr().err


@pytest.mark.parametrize("path", RECIPES, ids=lambda p: p.stem)
def test_every_file_that_a_shipped_recipe_names_can_be_fetched_or_is_built(path):
    recipe, manifest = load_recipe(path.stem), load_manifest()
    names = [name for name in (recipe.checkpoint, recipe.lora, recipe.upsampler, recipe.text_encoder) if name]
    if recipe.setup == "ltxd weights build-demo":
        assert not any(manifest.find(name) for name in names)
    else:
        assert recipe.setup == f"ltxd weights fetch --recipe {recipe.name}"
        assert all(manifest.find(name) for name in names)


def test_check_says_what_a_file_is_and_its_status_whether_it_is_in_order(tiny, tmp_path, capsys):
    path = tiny / "ltx-2.3-tiny-spatial-upscaler-x2.safetensors"
    assert main(["weights", "check", str(path)]) == 0
    said = capsys.readouterr().out.splitlines()
    assert said[0] == f"{path}: a latent upsampler"
    assert all(line.startswith("  ") and "WRONG" not in line for line in said[1:])
    save_file({"a": torch.zeros(1)}, tmp_path / "a.safetensors")
    assert main(["weights", "check", str(tmp_path / "a.safetensors")]) == 1
    assert "  WRONG: " in capsys.readouterr().out


def test_check_takes_the_sum_on_request(tiny, tmp_path, capsys):
    path = tmp_path / "lora.safetensors"
    path.write_bytes((tiny / "ltx-2.3-tiny-distilled-lora.safetensors").read_bytes())
    arguments = ["weights", "check", str(path), "--checkpoint", str(tiny / "ltx-2.3-tiny.safetensors")]
    assert main([*arguments, "--sha256"]) == 0
    assert "sha256 " in capsys.readouterr().out
    assert (tmp_path / ".lora.safetensors.stamp.json").exists()
    path.touch()
    assert main(arguments) == 1
    assert f"To mend it: ltxd weights check --sha256 {path}" in capsys.readouterr().out
    assert main([*arguments, "--sha256"]) == 0


def test_the_sums_of_a_folder_are_those_of_its_tokenizer_too(tiny, tmp_path, capsys):
    folder = tmp_path / "gemma"
    shutil.copytree(tiny / "gemma", folder)
    assert main(["weights", "check", str(folder), "--sha256"]) == 0
    capsys.readouterr()
    stamped = {path.name for path in folder.glob(".*.stamp.json")}
    assert {".tokenizer.json.stamp.json", ".config.json.stamp.json", ".model.safetensors.stamp.json"} <= stamped
    assert main(["weights", "check", str(folder), "--sha256"]) == 0
    assert {path.name for path in folder.glob(".*")} == stamped


def test_check_of_a_published_file_that_is_cut_short_names_the_command_that_fetches_it_anew(tmp_path, capsys):
    path = tmp_path / "ltx-2.3-22b-distilled-1.1.safetensors"
    save_file({"a": torch.zeros(9)}, path)
    path.write_bytes(path.read_bytes()[:-1])
    assert main(["weights", "check", str(path)]) == 1
    said = capsys.readouterr().err
    assert "it is cut short. To fetch it anew: ltxd weights fetch --recipe distilled" in said


def test_check_of_nothing_is_a_message(tmp_path, capsys):
    assert main(["weights", "check", str(tmp_path / "none.safetensors")]) == 1
    assert "none.safetensors: found no such file" in capsys.readouterr().err
