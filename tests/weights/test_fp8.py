"""A file in fp8 runs in fp8 or as the weights it stands for, and a LoRA goes onto it."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from weights import fp8
from weights.checkpoint import Checkpoint, layout, load_component
from weights.errors import WeightsFileError
from weights.fp8 import Fp8Linear
from weights.lora import fuse_lora
from weights.names import to_diffusers

NAME = "ltx-2.3-tiny.safetensors"
LORA = "ltx-2.3-tiny-distilled-lora.safetensors"
BLOCK = "model.diffusion_model.transformer_blocks.1."
LINEARS = 34
"""Of a block, the gate projections among them."""


@pytest.fixture(scope="module")
def source(tiny):
    return {name: value for name, value in load_file(tiny / NAME).items() if name.startswith("model.diffusion_model.")}


@pytest.fixture(scope="module")
def quantised(source):
    """The same, one block of two in fp8 as the published files have it."""
    out = dict(source)
    for name, value in source.items():
        if name.startswith(BLOCK) and name.endswith(".weight") and value.dim() == 2:
            scale = fp8.fresh_scale(value)
            out[name] = fp8.quantise(value, scale)
            out[f"{name}_scale"] = scale
            out[name.replace(".weight", ".input_scale")] = torch.tensor(0.0157)
    return out


@pytest.fixture(scope="module")
def write(tiny):
    config = json.dumps(Checkpoint.open(tiny / NAME).config)

    def write(path, tensors):
        save_file(tensors, path, metadata={"config": config, "model_version": "2.3.0"})
        return Checkpoint.open(path)

    return write


@pytest.fixture(scope="module")
def checkpoint(quantised, write, tmp_path_factory):
    return write(tmp_path_factory.mktemp("fp8") / "tiny-fp8.safetensors", quantised)


@pytest.fixture
def transformer(checkpoint):
    return load_component(checkpoint, "transformer", dtype=torch.float32, device="cpu")


def linears(module):
    return {name: part for name, part in module.named_modules() if isinstance(part, Fp8Linear)}


def test_the_linears_with_a_scale_stay_in_fp8_and_no_other(transformer, quantised):
    found = linears(transformer)
    assert len(found) == LINEARS
    assert all(name.startswith("transformer_blocks.1.") for name in found)
    assert "transformer_blocks.1.attn1.to_gate_logits" in found
    for name, value in quantised.items():
        ours = transformer.state_dict().get(to_diffusers(name, "transformer"))
        if ours is not None:
            assert ours.dtype is (torch.float8_e4m3fn if f"{name}_scale" in quantised else torch.float32)
            assert torch.equal(ours.float(), value.float()), name


def test_scales_stay_in_float32_where_the_rest_is_bfloat16(checkpoint):
    module = load_component(checkpoint, "transformer", dtype=torch.bfloat16, device="cpu")
    linear = linears(module)["transformer_blocks.1.attn1.to_q"]
    assert (linear.weight_scale.dtype, linear.input_scale.dtype, linear.bias.dtype) == (
        torch.float32,
        torch.float32,
        torch.bfloat16,
    )


def test_dequantised_on_request_there_are_only_plain_linears(checkpoint, transformer):
    plain = load_component(checkpoint, "transformer", dtype=torch.float32, device="cpu", keep_fp8=False)
    assert not linears(plain)
    for name, linear in linears(transformer).items():
        assert type(plain.get_submodule(name)) is nn.Linear
        stands_for = linear.weight.float() * linear.weight_scale
        assert torch.equal(plain.get_submodule(name).weight, stands_for)
        assert linear.weight.float().abs().max() == fp8.LARGEST


@torch.no_grad()
def test_on_the_cpu_an_fp8_linear_computes_what_its_weights_stand_for(checkpoint, transformer):
    plain = load_component(checkpoint, "transformer", dtype=torch.float32, device="cpu", keep_fp8=False)
    name = "transformer_blocks.1.ff.net.2"
    x = torch.randn(2, 5, plain.get_submodule(name).in_features, generator=torch.Generator().manual_seed(0))
    assert torch.equal(transformer.get_submodule(name)(x), plain.get_submodule(name)(x))
    half = transformer.get_submodule(name).weight_scale
    half.mul_(2)
    assert not torch.equal(transformer.get_submodule(name)(x), plain.get_submodule(name)(x))


def test_values_beyond_the_range_are_clamped_and_never_nan():
    values = torch.tensor([-1e6, -448.0, 0.3, 1e6])
    out = fp8.quantise(values, torch.tensor(1.0)).float()
    assert out.tolist() == [-448.0, -448.0, 0.3125, 448.0]
    zero = torch.zeros(2, 2)
    assert torch.equal(
        fp8.dequantise(fp8.quantise(zero, fp8.fresh_scale(zero)), fp8.fresh_scale(zero), dtype=torch.float32), zero
    )


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_many_values_are_put_into_fp8_as_one_by_one_and_left_as_they_were(dtype):
    """More than go at a time, with some beyond the range."""
    values = 9 * torch.randn(1025, 8192, generator=torch.Generator().manual_seed(0)).to(dtype)
    scale, before = torch.tensor(0.0157), values.clone()
    expected = (values.float() / scale).clamp(-fp8.LARGEST, fp8.LARGEST).to(fp8.E4M3)
    assert torch.equal(fp8.quantise(values, scale).view(torch.uint8), expected.view(torch.uint8))
    assert torch.equal(values, before)


@pytest.mark.parametrize("strength", [0.5, -2.0])
def test_a_lora_is_fused_onto_fp8_with_a_fresh_scale(tiny, checkpoint, transformer, strength):
    plain = load_component(checkpoint, "transformer", dtype=torch.float32, device="cpu", keep_fp8=False)
    before = {name: linear.weight_scale.clone() for name, linear in linears(transformer).items()}
    assert fuse_lora(transformer, tiny / LORA, strength=strength) == fuse_lora(plain, tiny / LORA, strength=strength)
    changed = 0
    for name, linear in linears(transformer).items():
        expected = plain.get_submodule(name).weight
        assert torch.equal(linear.weight_scale, fp8.fresh_scale(expected))
        assert linear.weight.float().abs().max() == fp8.LARGEST
        ours = linear.weight.float() * linear.weight_scale
        # e4m3 keeps three bits after the leading one, and steps of 2**-9 near zero
        assert torch.all((ours - expected).abs() <= expected.abs() / 16 + linear.weight_scale * 2**-10)
        changed += not torch.equal(linear.weight_scale, before[name])
    assert changed > LINEARS / 2
    assert torch.equal(
        transformer.transformer_blocks[0].attn1.to_q.weight, plain.transformer_blocks[0].attn1.to_q.weight
    )


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        ({f"{BLOCK}attn1.to_q.weight_scale": None}, r"attn1\.to_q\.weight in fp8 without its scale"),
        ({f"{BLOCK}attn1.to_q.weight_scale": torch.ones(32)}, r"weight_scale, F32 of shape \[32\]"),
        ({f"{BLOCK}attn1.to_q.input_scale": torch.ones((), dtype=torch.float16)}, r"input_scale, F16"),
        ({f"{BLOCK}attn1.to_q.weight": torch.zeros(32, 32)}, r"to_q\.\w+_scale beside a weight in F32"),
        ({f"{BLOCK}odd.weight_scale": torch.ones(())}, r"odd\.weight_scale beside no weight"),
        ({f"{BLOCK}attn1.to_q.weight": torch.zeros(32, 16, dtype=torch.uint8)}, r"in U8, as in nvfp4"),
        (
            {
                f"{BLOCK}attn1.q_norm.weight": torch.ones(32).to(torch.float8_e4m3fn),
                f"{BLOCK}attn1.q_norm.weight_scale": torch.ones(()),
            },
            r"norm_q is a RMSNorm; only a Linear can be in fp8",
        ),
    ],
)
def test_scales_and_types_that_do_not_fit_are_refused(quantised, write, tmp_path, spoil, says):
    tensors = {name: value for name, value in (quantised | spoil).items() if value is not None}
    if f"{BLOCK}attn1.to_q.weight" in spoil and spoil[f"{BLOCK}attn1.to_q.weight"].dtype is torch.uint8:
        del tensors[f"{BLOCK}attn1.to_q.weight_scale"], tensors[f"{BLOCK}attn1.to_q.input_scale"]
    checkpoint = write(tmp_path / "spoilt.safetensors", tensors)
    with pytest.raises(WeightsFileError, match=says):
        layout(checkpoint, "transformer")


@pytest.mark.gpu
@torch.no_grad()
@pytest.mark.parametrize("shape", [(1, 7, 64), (300, 64)])
def test_on_a_gpu_the_product_is_taken_in_fp8_and_stays_near(shape):
    rng = torch.Generator().manual_seed(0)
    weight = torch.randn(96, 64, generator=rng)
    linear = Fp8Linear(64, 96, bias=True, has_input_scale=True)
    linear.weight_scale.copy_(fp8.fresh_scale(weight))
    linear.weight.copy_(fp8.quantise(weight, linear.weight_scale))
    linear.bias.data = torch.randn(96, generator=rng).bfloat16()
    x = torch.randn(shape, generator=rng).bfloat16()
    linear.input_scale.copy_(fp8.fresh_scale(x))
    exact = linear(x).float()
    linear.cuda()
    assert fp8.multiplies_in_fp8(x.cuda(), linear.weight)
    ours = linear(x.cuda())
    assert ours.dtype is torch.bfloat16
    assert ours.shape == (*shape[:-1], 96)
    assert ((ours.cpu().float() - exact).norm() / exact.norm()).item() < 0.05
