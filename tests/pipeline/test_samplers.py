import itertools

import pytest
import torch

from pipeline import samplers


@pytest.fixture
def tensors():
    rng = torch.Generator().manual_seed(0)
    return [torch.randn(2, 5, generator=rng) for _ in range(4)]


def test_euler_ends_on_the_prediction(tensors):
    state, denoised, *_ = tensors
    torch.testing.assert_close(samplers.euler(state, denoised, sigma=0.4, next_sigma=0.0), denoised)


def test_cfg_pp_ends_on_the_prediction(tensors):
    state, denoised, unconditional, noise = tensors
    out = samplers.euler_ancestral_cfg_pp(
        state, denoised, unconditional=unconditional, noise=noise, sigma=0.4, next_sigma=0.0, eta=1.0
    )
    assert torch.equal(out, denoised)


def test_cfg_pp_without_fresh_noise_and_with_equal_predictions_is_euler(tensors):
    state, denoised, _, noise = tensors
    out = samplers.euler_ancestral_cfg_pp(
        state, denoised, unconditional=denoised, noise=noise, sigma=0.7, next_sigma=0.3, eta=0.0
    )
    torch.testing.assert_close(out, samplers.euler(state, denoised, sigma=0.7, next_sigma=0.3))


def test_from_pure_noise_a_full_ancestral_step_forgets_the_state(tensors):
    state, denoised, unconditional, noise = tensors
    out = samplers.euler_ancestral_cfg_pp(
        state, denoised, unconditional=unconditional, noise=noise, sigma=1.0, next_sigma=0.8, eta=1.0
    )
    torch.testing.assert_close(out, 0.2 * denoised + 0.8 * noise, atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    ("next_sigma", "share"),
    [
        (0.6292275, 0.0),
        (0.99375, 0.0),
        (0.99881806, 0.0),
        # 40 steps at 14,080 tokens: two roundings that do not meet
        (0.9993251, 3.374517e-4),
    ],
)
def test_of_the_state_as_much_remains_after_the_first_step_as_float32_leaves(next_sigma, share):
    """In double precision it would be 2e-7, 2e-5, 1e-4 and 2e-4; the reference, in float32, has these."""
    out = samplers.euler_ancestral_cfg_pp(
        torch.ones(1, dtype=torch.float64),
        torch.zeros(1),
        unconditional=torch.zeros(1),
        noise=torch.zeros(1),
        sigma=1.0,
        next_sigma=next_sigma,
        eta=1.0,
    )
    assert out.item() == pytest.approx(share, rel=1e-6)


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
@pytest.mark.parametrize(("sigma", "next_sigma"), [(1.0, 0.99), (0.9, 0.5), (0.4, 0.1)])
def test_cfg_pp_keeps_the_noise_level_that_the_schedule_asks_for(eta, sigma, next_sigma):
    rng = torch.Generator().manual_seed(1)
    clean = torch.zeros(200_000)
    state = (1 - sigma) * clean + sigma * torch.randn(clean.shape, generator=rng)
    out = samplers.euler_ancestral_cfg_pp(
        state,
        clean,
        unconditional=clean,
        noise=torch.randn(clean.shape, generator=rng),
        sigma=sigma,
        next_sigma=next_sigma,
        eta=eta,
    )
    assert out.std().item() == pytest.approx(next_sigma, rel=0.01)


@pytest.mark.parametrize(("sigma", "next_sigma"), [(1.0, 0.9), (0.5, 0.1), (0.1, 0.0011)])
def test_res_2s_ends_where_a_prediction_that_never_changes_leads(sigma, next_sigma):
    """With one and the same prediction the exponential integrator is exact, with or without its middle."""
    rng = torch.Generator().manual_seed(0)
    state, denoised = torch.randn(2, 7, generator=rng, dtype=torch.float64)
    way = samplers.Res2s(sigma, next_sigma)
    end = state + way.whole(denoised - state, denoised - state)
    torch.testing.assert_close(end, denoised + (state - denoised) * next_sigma / sigma)
    middle = state + way.halfway(denoised - state)
    torch.testing.assert_close(middle, denoised + (state - denoised) * way.middle / sigma)


def test_res_2s_is_of_second_order():
    """Halving the step on a prediction that bends quarters the error, or better."""

    def solved(steps):
        x = torch.ones((), dtype=torch.float64)
        sigmas = torch.logspace(0, -1, steps + 1, dtype=torch.float64).tolist()
        for sigma, next_sigma in itertools.pairwise(sigmas):
            way = samplers.Res2s(sigma, next_sigma)
            first = (x * sigma).sin() - x
            second = ((x + way.halfway(first)) * way.middle).sin() - x
            x = x + way.whole(first, second)
        return x.item()

    exact = solved(512)
    errors = [abs(solved(steps) - exact) for steps in (16, 32, 64)]
    assert errors[0] > 3.5 * errors[1] > 3.5 * 3.5 * errors[2]


def test_the_anchor_leads_to_the_middle_that_noise_has_moved():
    rng = torch.Generator().manual_seed(0)
    state, denoised, noise = torch.randn(3, 7, generator=rng, dtype=torch.float64)
    way = samplers.Res2s(0.5, 0.4)
    middle = state + way.halfway(denoised - state) + 0.01 * noise
    anchor = way.anchored(state, middle, denoised)
    torch.testing.assert_close(anchor + way.halfway(denoised - anchor), middle)
    for long_or_late in (samplers.Res2s(0.9, 0.4), samplers.Res2s(0.03, 0.025)):
        assert long_or_late.anchored(state, middle, denoised) is state


@pytest.mark.parametrize(("sigma", "next_sigma"), [(1.0, 0.9), (0.6, 0.2)])
def test_noising_again_keeps_the_level_and_makes_half_of_it_fresh(sigma, next_sigma):
    rng = torch.Generator().manual_seed(0)
    old, fresh = torch.randn(2, 200_000, generator=rng, dtype=torch.float64)
    clean = 3.0
    start, end = (1 - sigma) * clean + sigma * old, (1 - next_sigma) * clean + next_sigma * old
    out = samplers.noised_again(start, end, noise=fresh, sigma=sigma, next_sigma=next_sigma)
    assert out.mean().item() == pytest.approx((1 - next_sigma) * clean, abs=0.01)
    assert out.std().item() == pytest.approx(next_sigma, rel=0.01)
    assert ((out - out.mean()) * fresh).mean().item() == pytest.approx(next_sigma / 2, rel=0.02)
