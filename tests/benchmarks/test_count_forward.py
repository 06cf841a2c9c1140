"""What one forward costs at real size, without weights: the limits that our own forward was written for."""

import pytest
import torch

from benchmarks import count_forward
from pipeline import flops

GRID = (16, 22, 40)  # 1280x704, 121 frames
TOKENS, AUDIO_TOKENS = 14_080, 126


@pytest.fixture(scope="module")
def ours():
    return count_forward.count_ours(count_forward.build(), grid=GRID, audio_tokens=AUDIO_TOKENS)


def test_pointwise_operators_move_at_most_450_gb(ours):
    assert ours.pointwise <= 450e9


def test_no_activation_is_larger_than_450_mib(ours):
    assert ours.largest <= 450 * 2**20


def test_a_forward_is_at_most_8000_kernels(ours):
    assert ours.kernels.total() <= 8_000


def test_the_operations_are_those_of_the_closed_form(ours):
    assert ours.flops == pytest.approx(flops.transformer_forward(TOKENS, AUDIO_TOKENS), rel=0.01)


def test_the_host_never_waits_for_the_device(ours):
    assert ours.syncs == []


def test_a_second_pass_in_the_same_call_adds_operations_but_no_kernel():
    model = count_forward.build(layers=1)
    one, two = (count_forward.count_ours(model, grid=(2, 4, 4), audio_tokens=9, passes=passes) for passes in (1, 2))
    assert two.kernels == one.kernels
    assert two.flops > 1.9 * one.flops


@pytest.mark.slow
def test_the_rules_of_counting_give_the_known_figures_of_stock_diffusers():
    """Measured by others with rules of their own, written before ours."""
    stock = count_forward.count_stock(count_forward.build(), grid=GRID, audio_tokens=AUDIO_TOKENS)
    assert round(stock.pointwise / 1e9) == 1215
    assert round(stock.largest / 2**20) == 990
    assert stock.kernels.total() == 11_349


@pytest.mark.parametrize(
    "slow",
    [
        lambda x: x + torch.tensor([1.0], device="meta"),
        lambda x: torch.ones(3, device="cpu").to("meta") + x,
    ],
    ids=["a tensor of Python numbers", "a blocking copy"],
)
def test_a_forward_that_waits_for_the_device_is_found(slow):
    tally = count_forward.Tally()
    with count_forward.counting(tally):
        slow(torch.empty(3, device="meta"))
    assert len(tally.syncs) == 1
