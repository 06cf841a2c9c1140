"""A LoRA adds its product at any strength, with and without an alpha, or is refused before anything changes."""

import pytest
import torch
from safetensors.torch import load_file, save_file

from weights.checkpoint import Checkpoint, load_component
from weights.errors import WeightsFileError
from weights.lora import Lora, fuse_lora

NAME = "ltx-2.3-tiny.safetensors"
MODULE = "transformer_blocks.0.attn1.to_q"
WEIGHT = f"model.diffusion_model.{MODULE}.weight"
PREFIXES = ("", "diffusion_model.", "model.diffusion_model.")


@pytest.fixture
def transformer(tiny):
    return load_component(Checkpoint.open(tiny / NAME), "transformer", dtype=torch.float32, device="cpu")


@pytest.fixture(scope="module")
def shapes(tiny):
    return Checkpoint.open(tiny / NAME).shapes


@pytest.fixture(scope="module")
def pair():
    rng = torch.Generator().manual_seed(1)
    return torch.randn(4, 32, generator=rng).bfloat16(), torch.randn(32, 4, generator=rng).bfloat16()


def write(path, pair, *, prefix="diffusion_model.", alpha=None):
    down, up = pair
    tensors = {f"{prefix}{MODULE}.lora_A.weight": down, f"{prefix}{MODULE}.lora_B.weight": up}
    if alpha is not None:
        tensors[f"{prefix}{MODULE}.alpha"] = alpha
    save_file(tensors, path)
    return path


@pytest.mark.parametrize("prefix", PREFIXES)
@pytest.mark.parametrize("strength", [0.0, 0.25, 1.0, -3.0])
def test_strength_times_the_product_is_added_in_bfloat16(transformer, pair, tmp_path, prefix, strength):
    before = transformer.get_submodule(MODULE).weight.clone()
    assert fuse_lora(transformer, write(tmp_path / "lora.safetensors", pair, prefix=prefix), strength=strength) == 1
    down, up = pair
    expected = ((up * strength) @ down + before).bfloat16().float()
    assert torch.equal(transformer.get_submodule(MODULE).weight, expected)
    if strength:
        assert not torch.equal(expected, before.bfloat16().float())


@pytest.mark.parametrize("alpha", [torch.tensor(2.0), torch.tensor([2.0], dtype=torch.bfloat16)])
def test_an_alpha_counts_over_the_rank(tiny, transformer, pair, tmp_path, alpha):
    fuse_lora(transformer, write(tmp_path / "alpha.safetensors", pair, alpha=alpha), strength=0.5)
    other = load_component(Checkpoint.open(tiny / NAME), "transformer", dtype=torch.float32, device="cpu")
    fuse_lora(other, write(tmp_path / "none.safetensors", pair), strength=0.5 * 2 / 4)
    assert torch.equal(transformer.get_submodule(MODULE).weight, other.get_submodule(MODULE).weight)


def test_a_lora_is_found_to_fit_from_headers_alone(tiny, shapes):
    lora = Lora.open(tiny / "ltx-2.3-tiny-distilled-lora.safetensors", shapes=shapes)
    assert len(lora.targets) == 74
    assert WEIGHT in lora.targets


def test_a_lora_of_another_model_is_refused_from_headers_alone(tiny, shapes, tmp_path):
    tensors = load_file(tiny / "ltx-2.3-tiny-distilled-lora.safetensors")
    other = {name.replace("transformer_blocks", "double_blocks"): value for name, value in tensors.items()}
    save_file(other, tmp_path / "other.safetensors")
    with pytest.raises(
        WeightsFileError, match=r"74 targets, \d+ of which name no matrix .*double_blocks\.0"
    ) as caught:
        Lora.open(tmp_path / "other.safetensors", shapes=shapes)
    assert str(tmp_path / "other.safetensors") in str(caught.value)
    assert "expected a LoRA for the transformer of LTX-2.3" in str(caught.value)


def test_a_lora_of_another_width_is_refused_from_headers_alone(shapes, tmp_path):
    wide = torch.zeros(4, 48), torch.zeros(48, 4)
    with pytest.raises(WeightsFileError, match=r"\[48, 4\] by \[4, 48\]; expected a product of \[32, 32\]"):
        Lora.open(write(tmp_path / "wide.safetensors", wide), shapes=shapes)


def test_an_alpha_that_is_no_number_is_refused(shapes, pair, tmp_path):
    with pytest.raises(WeightsFileError, match=r"alpha of shape \[4\]; expected a single number"):
        Lora.open(write(tmp_path / "many.safetensors", pair, alpha=torch.ones(4)), shapes=shapes)
