"""One step of each sampler, as pure functions of tensors. A step takes a state from `sigma` to `next_sigma`."""

import math

import torch
from torch import Tensor

_SMALLEST_ALPHA = torch.finfo(torch.float32).eps


def euler(state: Tensor, denoised: Tensor, *, sigma: float, next_sigma: float) -> Tensor:
    """The state moved along its velocity.

    Source: Lightricks/LTX-2 @400fd31, components/diffusion_steps.py (formula).
    """
    return state + (next_sigma - sigma) * (state - denoised) / sigma


def euler_ancestral_cfg_pp(
    state: Tensor,
    denoised: Tensor,
    *,
    unconditional: Tensor,
    noise: Tensor,
    sigma: float,
    next_sigma: float,
    eta: float,
) -> Tensor:
    """The guided prediction, noised again along the *unconditional* direction plus fresh `noise`.

    With alpha = 1 - sigma and S = sigma / alpha the step is the ancestral Euler step of a variance-exploding process
    in S. `eta` is the share of fresh noise.
    Source: CFG++ (arXiv 2406.08070); flow form as in Lightricks/LTX-2 @400fd31, components/diffusion_steps.py.
    """
    if next_sigma == 0:
        return denoised
    alpha, next_alpha = max(1 - sigma, _SMALLEST_ALPHA), 1 - next_sigma
    s, q = sigma / alpha, next_sigma / next_alpha
    up = min(q, eta * math.sqrt(q * q * (s * s - q * q) / (s * s)))
    down = math.sqrt(q * q - up * up)
    direction = (state - alpha * unconditional) / sigma
    return next_alpha * denoised + next_alpha * down * direction + next_alpha * up * noise
