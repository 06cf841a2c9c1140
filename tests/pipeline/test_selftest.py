from importlib import resources

import pytest
import torch
import torch.nn.functional as F
from torch.overrides import TorchFunctionMode

from pipeline import selftest
from weights import fp8

CPU = torch.device("cpu")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_sound_device_passes(dtype):
    found = list(selftest.run(CPU, dtype))
    assert [finding.component for finding in found] == list(selftest.FORWARDS)
    assert all(finding.passed for finding in found)


def test_the_stored_numbers_are_those_that_the_command_writes():
    stored, written = (
        {line.split(":")[0]: [float(value) for value in line.split("[")[1].rstrip("],").split(",")] for line in lines}
        for lines in (
            text.splitlines()[1:-1]
            for text in ((resources.files("pipeline") / "selftest.json").read_text(), selftest.document())
        )
    )
    assert list(written) == list(stored)
    for name, values in written.items():
        assert values == pytest.approx(stored[name], abs=1e-4), name


class Seen(TorchFunctionMode):
    """Whether cuDNN may round what each convolution takes."""

    def __init__(self):
        super().__init__()
        self.rounded = set()

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func in {F.conv1d, F.conv2d, F.conv3d}:
            self.rounded.add(torch.backends.cudnn.allow_tf32)
        return func(*args, **(kwargs or {}))


def test_convolutions_take_what_they_are_given():
    before = torch.backends.cudnn.allow_tf32
    with Seen() as seen:
        assert not selftest.failures(CPU, torch.float32)
    assert seen.rounded == {False}
    assert torch.backends.cudnn.allow_tf32 == before


@pytest.mark.parametrize("change", [lambda x: x * 1.2, lambda x: x.roll(1, 0)], ids=["scale", "order"])
def test_a_product_in_eight_bits_is_taken_and_a_broken_one_found(monkeypatch, change):
    monkeypatch.setattr(fp8, "multiplies_in_fp8", lambda x, _: x.dtype is torch.bfloat16)
    assert not failing("product in fp8", dtype=torch.float32)
    with Broken(torch._scaled_mm, change):
        assert failing("product in fp8", dtype=torch.float32)


def failing(*components, dtype=torch.bfloat16):
    forwards = {name: selftest.FORWARDS[name] for name in components}
    return {found.component for found in selftest.run(CPU, dtype, forwards=forwards) if not found.passed}


class Broken(TorchFunctionMode):
    """A device whose kernel of one function is off."""

    def __init__(self, function, change):
        super().__init__()
        self.function, self.change = function, change

    def __torch_function__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        return self.change(result) if func is self.function else result


@pytest.mark.parametrize(
    ("function", "change", "components"),
    [
        (F.embedding, lambda x: x.roll(1, 1), {"text encoder"}),
        (F.scaled_dot_product_attention, lambda x: x.roll(1, 1), {"text encoder", "connectors", "transformer"}),
        (F.linear, lambda x: x * 1.1, {"text encoder", "connectors", "transformer"}),
        (F.rms_norm, lambda x: x * 1.1, {"connectors", "transformer"}),
        (F.conv3d, lambda x: x * 1.05, {"upsampler", "vae decoder", "vae encoder"}),
        (F.conv2d, lambda x: x.roll(1, -1), {"text encoder", "upsampler", "audio vae and vocoder"}),
        (F.group_norm, lambda x: -x, {"upsampler"}),
        (F.conv1d, lambda x: x * float("nan"), {"audio vae and vocoder"}),
        (F.conv_transpose1d, lambda x: x.roll(1, -1), {"audio vae and vocoder"}),
    ],
    ids=["embedding", "attention", "linear", "rms", "conv3d", "conv2d", "group", "conv1d", "transposed"],
)
def test_a_broken_kernel_is_found_in_every_component_that_uses_it(function, change, components):
    with Broken(function, change):
        assert failing(*components) == components


@pytest.mark.parametrize(
    ("component", "tensor"),
    [
        ("text encoder", "model.language_model.layers.2.mlp.down_proj.weight"),
        ("text encoder", "model.vision_tower.encoder.layers.0.mlp.fc1.weight"),
        ("text encoder in fp8", "model.language_model.layers.0.self_attn.v_proj.weight"),
        ("connectors", "audio_connector.transformer_blocks.1.attn1.to_v.weight"),
        ("transformer", "transformer_blocks.3.ff.net.2.weight"),
        ("transformer in fp8", "transformer_blocks.1.attn1.to_out.0.weight"),
        ("upsampler", "post_upsample_res_blocks.0.conv1.weight"),
        ("vae decoder", "decoder.up_blocks.0.resnets.0.conv1.conv.weight"),
        ("vae encoder", "encoder.down_blocks.0.resnets.0.conv1.conv.weight"),
        ("audio vae and vocoder", "bwe_generator.conv_in.weight"),
    ],
)
def test_one_tensor_that_reaches_the_device_wrong_is_found(monkeypatch, component, tensor):
    altered = []
    fill = selftest._fill

    def filled(module):
        fill(module)
        if (value := dict(module.named_parameters()).get(tensor)) is not None:
            altered.append(tensor)
            value.neg_()

    monkeypatch.setattr(selftest, "_fill", filled)
    assert failing(component) == {component}
    assert altered == [tensor]


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_this_gpu_passes(dtype):
    assert not selftest.failures(torch.device("cuda"), dtype)
