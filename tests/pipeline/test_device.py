import pytest
import torch

from pipeline.device import work_on
from pipeline.errors import OperatorError


class Cuda:
    """So many devices, and the one that is current."""

    def __init__(self, count):
        self.count, self.current = count, 0

    def is_available(self):
        return self.count > 0

    def device_count(self):
        return self.count

    def current_device(self):
        return self.current

    def set_device(self, device):
        self.current = device.index


@pytest.mark.parametrize(
    ("name", "count", "device", "current"),
    [
        ("auto", 0, "cpu", 0),
        ("auto", 2, "cuda:0", 0),
        ("cpu", 2, "cpu", 0),
        ("cuda", 2, "cuda:0", 0),
        ("cuda:1", 2, "cuda:1", 1),
        ("meta", 0, "meta", 0),
    ],
)
def test_the_device_that_is_named_is_the_current_one(name, count, device, current):
    cuda = Cuda(count)
    assert work_on(name, cuda=cuda) == torch.device(device)
    assert cuda.current == current


@pytest.mark.parametrize(
    ("name", "count", "told"),
    [
        ("cuda:2", 2, r"no device 'cuda:2': torch .* finds cuda:0, cuda:1"),
        ("cuda", 0, r"no device 'cuda': torch .* finds no CUDA device"),
        ("gpu", 1, r"no device 'gpu': it is auto, cpu, cuda or cuda:N"),
        ("cuda:x", 1, r"no device 'cuda:x'"),
    ],
)
def test_a_device_that_is_not_there_is_named_with_those_that_are(name, count, told):
    with pytest.raises(OperatorError, match=told):
        work_on(name, cuda=Cuda(count))


@pytest.mark.gpu
def test_memory_streams_and_events_are_made_for_the_last_gpu_when_it_is_named():
    last = torch.cuda.device_count() - 1
    device = work_on(f"cuda:{last}")
    assert torch.cuda.current_device() == last
    assert torch.cuda.current_stream().device == device
    assert torch.ones(4).pin_memory().to(device, non_blocking=True).device == device
