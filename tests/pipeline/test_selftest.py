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
    assert len(found) == 6
    assert all(finding.passed for finding in found)


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
    assert not selftest.failures(CPU, torch.float32)
    with Broken(torch._scaled_mm, change):
        assert [words.partition(" is ")[0] for words in selftest.failures(CPU, torch.float32)] == ["product in fp8"]


class Broken(TorchFunctionMode):
    """A device whose kernel of one function is off."""

    def __init__(self, function, change):
        super().__init__()
        self.function, self.change = function, change

    def __torch_function__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        return self.change(result) if func is self.function else result


@pytest.mark.parametrize(
    ("function", "change", "component"),
    [
        (F.scaled_dot_product_attention, lambda x: x.roll(1, 1), "transformer"),
        (F.conv3d, lambda x: x * 1.05, "vae decoder"),
        (F.conv1d, lambda x: x * float("nan"), "audio vae and vocoder"),
    ],
    ids=["attention", "conv3d", "conv1d"],
)
def test_a_broken_kernel_is_found(function, change, component):
    with Broken(function, change):
        failed = selftest.failures(CPU, torch.float32)
    assert any(words.startswith(f"{component} is ") for words in failed)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_this_gpu_passes(dtype):
    assert not selftest.failures(torch.device("cuda"), dtype)
