"""A model file's header says which model it is, and what is missing, unexpected or misshapen in it."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from weights import release, stamp
from weights.check import inspect
from weights.checkpoint import Checkpoint
from weights.errors import WeightsFileError
from weights.manifest import Manifest, PublishedFile, load_manifest
from weights.sums import sum_of, take_sum

NAME = "ltx-2.3-tiny.safetensors"
LORA = "ltx-2.3-tiny-distilled-lora.safetensors"
UPSAMPLER = "ltx-2.3-tiny-spatial-upscaler-x2.safetensors"
NOTHING = Manifest(())


def report(path, **options):
    return inspect(path, manifest=NOTHING, **options)


@pytest.mark.parametrize(
    ("name", "what", "fact"),
    [
        (NAME, "LTX-2.3, single file, no fp8", "vocoder: "),
        (UPSAMPLER, "a latent upsampler", "upsampler: "),
        ("gemma", "Gemma 3, 2 layers, 32 channels, 361 words", "51 tensors, all as its configuration says"),
        ("gemma/model.safetensors", "a part of a Gemma 3; check the folder it lies in", "51 tensors: 51 F32"),
    ],
)
def test_a_file_in_order_is_named_and_nothing_is_wrong(tiny, name, what, fact):
    found = report(tiny / name)
    assert found.what == what
    assert any(fact in line for line in found.facts)
    assert found.faults == ()


def test_names_and_shapes_are_compared_with_the_published_ones(tiny):
    assert "names and shapes: not those of the published single files" in report(tiny / NAME).facts


def test_what_is_missing_unexpected_and_misshapen_is_named(tiny, tmp_path):
    tensors = load_file(tiny / NAME)
    del tensors["vae.encoder.conv_in.conv.bias"]
    tensors["model.diffusion_model.proj_out.bias"] = torch.zeros(3)
    tensors["odd"] = torch.zeros(1)
    save_file(tensors, tmp_path / NAME, metadata={"config": json.dumps(Checkpoint.open(tiny / NAME).config)})
    faults = report(tmp_path / NAME).faults
    assert len(faults) == 3
    assert any("1 missing: vae.encoder.conv_in.conv.bias" in fault for fault in faults)
    assert any("proj_out.bias (found [3], expected [128])" in fault for fault in faults)
    assert any("1 unexpected: odd" in fault for fault in faults)


def test_another_release_is_named(tiny, tmp_path):
    config = json.loads(json.dumps(dict(Checkpoint.open(tiny / NAME).config)))
    config["transformer"]["ff_bias"] = False
    save_file(load_file(tiny / NAME), tmp_path / NAME, metadata={"config": json.dumps(config)})
    found = report(tmp_path / NAME)
    assert found.what.startswith("LTX-2.5, single file")
    assert "expected LTX-2.3" in found.faults[0]


def test_a_lora_is_held_against_a_checkpoint_or_the_published_model(tiny):
    found = report(tiny / LORA, checkpoint=tiny / NAME)
    assert found.what == f"a LoRA for {NAME}"
    assert found.faults == ()
    assert any(line == "ranks: 4 (74)" for line in found.facts)
    assert "expected a product of" in report(tiny / LORA).faults[0]


def test_a_lora_for_the_published_model_is_found_to_fit(tmp_path):
    names = ("patchify_proj", "transformer_blocks.47.attn1.to_gate_logits")
    sides = {"patchify_proj": (4096, 128), names[1]: (32, 4096)}
    tensors = {}
    for name, (rows, columns) in sides.items():
        rank = min(384, rows, columns)
        tensors[f"diffusion_model.{name}.lora_A.weight"] = torch.zeros(rank, columns, dtype=torch.bfloat16)
        tensors[f"diffusion_model.{name}.lora_B.weight"] = torch.zeros(rows, rank, dtype=torch.bfloat16)
    save_file(tensors, tmp_path / "lora.safetensors")
    found = report(tmp_path / "lora.safetensors")
    assert found.what == "a LoRA for LTX-2.3"
    assert found.facts[-2:] == ("2 targets of 1,660", "ranks: 128 (1), 32 (1)")


def test_the_shipped_configuration_is_that_of_the_published_files(published_layout):
    ours = release.published_transformer()
    assert ours == published_layout["transformer"]


def test_what_is_no_model_is_said_to_be_none(tmp_path):
    save_file({"a": torch.zeros(1)}, tmp_path / "a.safetensors")
    found = report(tmp_path / "a.safetensors")
    assert found.what == "no model that ltxd knows"
    assert found.faults
    with pytest.raises(WeightsFileError):
        report(tmp_path)
    with pytest.raises(WeightsFileError, match="no such file"):
        report(tmp_path / "b.safetensors")


def test_a_text_encoder_in_which_something_is_missing_is_faulted(tiny, tmp_path):
    shutil.copytree(tiny / "gemma", tmp_path / "gemma")
    tensors = load_file(tiny / "gemma" / "model.safetensors")
    tensors.popitem()
    save_file(tensors, tmp_path / "gemma" / "model.safetensors")
    assert "1 missing: " in report(tmp_path / "gemma").faults[0]


def test_a_size_other_than_published_is_a_fault(tiny, tmp_path):
    shutil.copy(tiny / UPSAMPLER, tmp_path / "ltx-2.3-spatial-upscaler-x2-1.1.safetensors")
    found = inspect(tmp_path / "ltx-2.3-spatial-upscaler-x2-1.1.safetensors", manifest=load_manifest())
    assert "expected 995,743,560, as Lightricks/LTX-2.3 has published it" in found.faults[0]


def test_a_sum_is_taken_once_and_remembered(tiny, tmp_path):
    path = tmp_path / LORA
    shutil.copy(tiny / LORA, path)
    known = PublishedFile(LORA, "r", "c", LORA, path.stat().st_size, sum_of(path), gated=False, terms="")
    assert take_sum(path, manifest=Manifest((known,))).endswith(f"that of {LORA}")
    assert stamp.is_current(path, known)
    assert take_sum(path, manifest=NOTHING).endswith("of no file that ltxd fetches; remembered")
    raw = bytearray(path.read_bytes())
    raw[-1] ^= 1
    path.write_bytes(raw)
    with pytest.raises(WeightsFileError, match=f"expected {known.sha256}, as r has published it"):
        take_sum(path, manifest=Manifest((known,)))
    assert not stamp.place(path).exists()
