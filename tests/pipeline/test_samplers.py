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
