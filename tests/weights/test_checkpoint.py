import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from weights.checkpoint import Checkpoint, layout, load_component
from weights.errors import WeightsFileError
from weights.lora import fuse_lora

NAME = "ltx-2.3-tiny.safetensors"
SCALE = "vae.encoder.conv_in.conv.bias"


@pytest.fixture(scope="module")
def audio(tiny):
    """Only the tensors of the audio VAE, and the metadata."""
    checkpoint = Checkpoint.open(tiny / NAME)
    tensors = {name: value for name, value in load_file(tiny / NAME).items() if name.startswith("audio_vae.")}
    return tensors, {"config": json.dumps(checkpoint.config)}


def test_opening_reads_the_header_only(tiny):
    checkpoint = Checkpoint.open(tiny / NAME)
    assert checkpoint.model_version == "2.3.0"
    assert not checkpoint.is_demo
    assert checkpoint.shapes[SCALE] == (128,)
    assert len(checkpoint.shapes) == 1663


@pytest.mark.parametrize("kind", ["transformer", "vocoder"])
def test_every_tensor_takes_the_dtype_asked_for(tiny, kind):
    module = load_component(Checkpoint.open(tiny / NAME), kind, dtype=torch.bfloat16, device="cpu")
    values = [*module.parameters(), *module.buffers()]
    assert {value.dtype for value in values} == {torch.bfloat16}
    assert {value.device.type for value in values} == {"cpu"}


def test_missing_unexpected_and_misshapen_tensors_are_named(audio, tmp_path):
    tensors, metadata = audio
    gone, bent = "audio_vae.encoder.conv_in.conv.bias", "audio_vae.decoder.conv_in.conv.bias"
    wrong = {name: value for name, value in tensors.items() if name != gone} | {bent: torch.zeros(3)}
    wrong["audio_vae.encoder.odd"] = torch.zeros(1)
    path = tmp_path / "wrong.safetensors"
    save_file(wrong, path, metadata=metadata)
    with pytest.raises(WeightsFileError) as caught:
        layout(Checkpoint.open(path), "audio_vae")
    message = str(caught.value)
    assert message.startswith(str(path))
    assert f"1 missing: {gone}" in message
    assert "1 unexpected: audio_vae.encoder.odd" in message
    assert f"{bent} (found [3], expected [128])" in message


def test_a_component_that_is_not_in_the_file_is_refused(audio, tmp_path):
    tensors, metadata = audio
    path = tmp_path / "part.safetensors"
    save_file(tensors, path, metadata=metadata)
    with pytest.raises(WeightsFileError, match=r"found no vocoder"):
        load_component(Checkpoint.open(path), "vocoder", dtype=torch.float32, device="cpu")


@pytest.mark.parametrize(
    ("content", "says"),
    [(None, "no such file"), (b"\x00" * 9, "header that cannot be read"), (b"{" * 9, "the header alone would take")],
)
def test_what_is_no_model_file_is_refused(tmp_path, content, says):
    path = tmp_path / "model.safetensors"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(WeightsFileError, match=says):
        Checkpoint.open(path)


def test_a_truncated_file_is_refused(tiny, tmp_path):
    path = tmp_path / "short.safetensors"
    path.write_bytes((tiny / NAME).read_bytes()[:-100])
    with pytest.raises(WeightsFileError, match=r"cut short"):
        Checkpoint.open(path)


def test_a_file_without_configuration_is_refused(tmp_path):
    path = tmp_path / "plain.safetensors"
    save_file({"a": torch.zeros(1)}, path)
    with pytest.raises(WeightsFileError, match=r"metadata without `config`"):
        Checkpoint.open(path)


def test_a_configuration_with_an_entry_missing_is_refused(audio, tmp_path):
    tensors, metadata = audio
    config = json.loads(metadata["config"])
    del config["audio_vae"]["model"]["params"]["ddconfig"]["ch_mult"]
    path = tmp_path / "lacking.safetensors"
    save_file(tensors, path, metadata={"config": json.dumps(config)})
    with pytest.raises(WeightsFileError, match=r"lacks 'ch_mult'"):
        layout(Checkpoint.open(path), "audio_vae")


@pytest.mark.parametrize(
    ("tensors", "says"),
    [
        ({}, "found nothing"),
        ({"diffusion_model.proj_out.lora_A.weight": torch.zeros(4, 32)}, "expected only pairs"),
        ({"diffusion_model.proj_out.alpha": torch.zeros(1)}, "expected only pairs"),
        (
            {
                "diffusion_model.odd.lora_A.weight": torch.zeros(4, 32),
                "diffusion_model.odd.lora_B.weight": torch.zeros(128, 4),
            },
            "name no matrix",
        ),
        (
            {
                "transformer_blocks.0.attn1.q_norm.lora_A.weight": torch.zeros(4, 32),
                "transformer_blocks.0.attn1.q_norm.lora_B.weight": torch.zeros(32, 4),
            },
            "name no matrix",
        ),
        (
            {
                "diffusion_model.proj_out.lora_A.weight": torch.zeros(4, 31),
                "diffusion_model.proj_out.lora_B.weight": torch.zeros(128, 4),
            },
            "expected a product of",
        ),
    ],
)
def test_a_lora_that_does_not_fit_is_refused(tiny, tmp_path, tensors, says):
    path = tmp_path / "lora.safetensors"
    save_file(tensors, path)
    transformer = load_component(Checkpoint.open(tiny / NAME), "transformer", dtype=torch.float32, device="cpu")
    before = transformer.proj_out.weight.clone()
    with pytest.raises(WeightsFileError, match=says):
        fuse_lora(transformer, path, strength=1.0)
    assert torch.equal(transformer.proj_out.weight, before)
