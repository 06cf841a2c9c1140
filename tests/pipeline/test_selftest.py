import pytest
import torch
import torch.nn.functional as F
from torch.overrides import TorchFunctionMode

from pipeline import selftest

CPU = torch.device("cpu")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_sound_device_passes(dtype):
    found = list(selftest.run(CPU, dtype))
    assert len(found) == 5
    assert all(finding.passed for finding in found)


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
