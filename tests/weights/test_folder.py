"""A folder of diffusers gives the modules that the published file gives."""

import json

import pytest
import torch

from weights import config, names
from weights.checkpoint import Checkpoint, load_component
from weights.errors import WeightsFileError
from weights.lora import Lora

NAME = "ltx-2.3-tiny.safetensors"
UPSAMPLER = "ltx-2.3-tiny-spatial-upscaler-x2.safetensors"


def open_file(tiny, kind):
    return Checkpoint.open(tiny / (UPSAMPLER if kind == "upsampler" else NAME))


@pytest.fixture(scope="module")
def folder(diffusers_folder):
    return diffusers_folder


def test_the_transformer_lies_in_shards(folder):
    assert len(list((folder / "transformer").glob("*.safetensors"))) > 1


@pytest.mark.parametrize("kind", names.KINDS)
def test_every_component_is_that_of_the_published_file(tiny, folder, kind):
    path = folder / "latent_upsampler" if kind == "upsampler" else folder
    ours = load_component(Checkpoint.open(path), kind, dtype=torch.float32, device="cpu")
    theirs = load_component(open_file(tiny, kind), kind, dtype=torch.bfloat16, device="cpu").state_dict()
    assert ours.state_dict().keys() == theirs.keys()
    assert all(torch.equal(value, theirs[name].float()) for name, value in ours.state_dict().items())


def test_the_vocoder_is_clamped_although_the_folder_does_not_say_so(folder):
    vocoder = load_component(Checkpoint.open(folder), "vocoder", dtype=torch.float32, device="cpu")
    assert vocoder.vocoder.final_act_fn == "clamp"
    assert vocoder.bwe_generator.final_act_fn is None


def test_the_upsampler_in_the_folder_is_left_for_who_names_it(folder):
    assert (folder / "latent_upsampler" / "config.json").is_file()
    opened = Checkpoint.open(folder)
    assert set(opened.arguments) == set(names.KINDS) - {"upsampler"}
    assert {names.kind_of(name) for name in opened.tensors} == set(opened.arguments)


def test_a_lora_fits_the_folder_as_it_fits_the_file(tiny, folder):
    path = tiny / "ltx-2.3-tiny-distilled-lora.safetensors"
    of_folder, of_file = (Lora.open(path, shapes=Checkpoint.open(p).shapes) for p in (folder, tiny / NAME))
    assert of_folder.targets == of_file.targets


def copy(folder, kind, tmp_path, **changes):
    """The component `kind` of `folder` with `changes` to its configuration."""
    (tmp_path / kind).mkdir()
    for path in (folder / kind).iterdir():
        if path.name != "config.json":
            (tmp_path / kind / path.name).hardlink_to(path)
    settings = json.loads((folder / kind / "config.json").read_text()) | changes
    (tmp_path / kind / "config.json").write_text(json.dumps(settings))
    return tmp_path


@pytest.mark.parametrize(
    ("kind", "changes"),
    [
        ("transformer", {"cross_attn_mod": False}),
        ("transformer", {"gated_attn": None}),
        ("connectors", {"proj_bias": False}),
    ],
)
def test_a_folder_of_another_release_is_refused(folder, tmp_path, kind, changes):
    with pytest.raises(WeightsFileError, match=r"config\.json: found \w+ = \w+, as in another release of LTX-2"):
        Checkpoint.open(copy(folder, kind, tmp_path, **changes))


def test_an_argument_that_the_module_does_not_have_is_refused(folder, tmp_path):
    checkpoint = Checkpoint.open(copy(folder, "vae", tmp_path, odd=1))
    with pytest.raises(WeightsFileError, match=r"cannot be built: .*odd"):
        load_component(checkpoint, "vae", dtype=torch.float32, device="cpu")


def test_a_shard_that_is_gone_is_named(folder, tmp_path):
    copy(folder, "transformer", tmp_path)
    gone = min((tmp_path / "transformer").glob("*.safetensors"))
    gone.unlink()
    with pytest.raises(WeightsFileError, match=f"{gone.name}: found no such file"):
        Checkpoint.open(tmp_path)


def test_a_folder_with_two_sets_of_weights_is_refused(folder, tmp_path):
    copy(folder, "vae", tmp_path)
    (path,) = (tmp_path / "vae").glob("*.safetensors")
    path.with_name("z.fp16.safetensors").hardlink_to(path)
    with pytest.raises(WeightsFileError, match="which another file of the folder holds too"):
        Checkpoint.open(tmp_path)


@pytest.mark.parametrize("content", [None, "{", "[]", '{"_class_name": "LTX2Vocoder"}'])
def test_a_folder_of_something_else_is_refused(tmp_path, content):
    if content is not None:
        (tmp_path / "config.json").write_text(content)
    with pytest.raises(WeightsFileError, match=str(tmp_path)):
        Checkpoint.open(tmp_path)


def test_every_component_has_a_module():
    assert config.CLASSES.keys() == set(names.KINDS)
