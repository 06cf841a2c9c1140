import pytest
import torch

from pipeline.errors import NumericalError
from pipeline.guard import Guard

GOOD = torch.zeros(1, 4, 8)
NAN, INFINITE = GOOD.clone(), GOOD.clone()
NAN[0, 2, 3] = float("nan")
INFINITE[0, 0, 0] = float("-inf")


@pytest.mark.parametrize("bad", [NAN, INFINITE], ids=["nan", "infinity"])
def test_what_is_no_number_is_told_one_step_late_with_its_place(bad):
    guard = Guard()
    guard.watch("call 1", GOOD, GOOD)
    guard.watch("call 2", GOOD, bad)
    with pytest.raises(NumericalError, match="call 2: the latents hold NaN or infinity"):
        guard.watch("call 3", GOOD)


def test_the_last_place_is_told_at_the_end():
    guard = Guard()
    guard.watch("call 8", NAN)
    with pytest.raises(NumericalError, match="call 8"):
        guard.close()


def test_numbers_pass():
    guard = Guard()
    for place in ("call 1", "call 2"):
        guard.watch(place, GOOD, GOOD * 1e30)
    guard.close()
