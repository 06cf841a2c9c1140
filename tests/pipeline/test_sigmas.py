import itertools

import pytest

from pipeline import sigmas

# spec of the schedule at 960x544x121 (8,160 tokens) and at 4,096 tokens, 15 steps, to the four digits published
AT_8160 = "1 .9935 .9860 .9773 .9672 .9550 .9403 .9221 .8991 .8689 .8277 .7680 .6739 .5034 .1 0"
DISTILLED = (1.0, 0.99375, 0.9875, 0.98125, 0.975, 0.909375, 0.725, 0.421875, 0.0)
AT_4096 = "1 .9872 .9728 .9564 .9374 .9154 .8894 .8583 .8205 .7735 .7135 .6341 .5243 .3625 .1 0"


@pytest.mark.parametrize(("tokens", "expected"), [(8160, AT_8160), (4096, AT_4096)])
def test_the_shifted_schedule_is_the_published_one(tokens, expected):
    assert sigmas.shifted(15, tokens=tokens, terminal=0.1) == pytest.approx(
        [float(x) for x in expected.split()], abs=5.1e-5
    )


@pytest.mark.parametrize("steps", [8, 15, 30])
@pytest.mark.parametrize("tokens", [2, 1024, 20_000, 53_680, 1_000_000])
def test_a_schedule_falls_from_one_over_a_tenth_to_zero_however_many_tokens(steps, tokens):
    found = sigmas.shifted(steps, tokens=tokens, terminal=0.1)
    assert len(found) == steps + 1
    assert found[0] == 1
    assert found[-2] == pytest.approx(0.1)
    assert found[-1] == 0
    assert all(a > b for a, b in itertools.pairwise(found))


def test_the_distilled_curve_at_its_own_length_is_itself():
    assert sigmas.resampled(DISTILLED, 8) == pytest.approx(DISTILLED)


@pytest.mark.parametrize("steps", [9, 15, 30])
def test_the_distilled_curve_resampled_keeps_its_ends_and_falls(steps):
    found = sigmas.resampled(DISTILLED, steps)
    assert len(found) == steps + 1
    assert (found[0], found[-1]) == (1, 0)
    assert all(a > b for a, b in itertools.pairwise(found))


def test_the_terminal_is_the_last_sigma_before_zero():
    assert sigmas.shifted(15, tokens=256, terminal=0.9)[-2:] == pytest.approx((0.9, 0))
