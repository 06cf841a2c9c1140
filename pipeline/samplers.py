"""One step of each sampler, as pure functions of tensors. A step takes a state from `sigma` to `next_sigma`."""

import math
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

_SMALLEST_ALPHA = torch.finfo(torch.float32).eps
RES_2S_LAST_SIGMA: Final = 0.0011
"""res_2s cannot step to 0: it steps here, and takes the prediction from there."""
_ANCHOR_STEP: Final = 0.5
_ANCHOR_SIGMA: Final = 0.03
_ANCHOR_ROUNDS: Final = 100


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


@dataclass(frozen=True, slots=True)
class Res2s:
    """Coefficients of one step of res_2s, an exponential Runge-Kutta method with two predictions.

    Source: Lightricks/LTX-2 @400fd31, ltx_pipelines/utils/res2s.py and samplers.py (formulas).
    """

    sigma: float
    next_sigma: float

    @property
    def middle(self) -> float:
        """Sigma of the second prediction."""
        return math.sqrt(self.sigma * self.next_sigma)

    @property
    def length(self) -> float:
        """The step on the scale of -log(sigma)."""
        return math.log(self.sigma / self.next_sigma)

    def halfway(self, first: Tensor) -> Tensor:
        """The way to the middle along `first`, the first prediction less the anchor."""
        return self.length * _phi1(-self.length / 2) / 2 * first

    def whole(self, first: Tensor, second: Tensor) -> Tensor:
        """The way to the end along both predictions less the anchor."""
        of_second = 2 * _phi2(-self.length)
        return self.length * ((_phi1(-self.length) - of_second) * first + of_second * second)

    def anchored(self, anchor: Tensor, halfway: Tensor, denoised: Tensor) -> Tensor:
        """The anchor from which the way to `halfway` along the first prediction leads there, noise included.

        Only where the step is short and the noise not yet gone; else `anchor`.
        """
        if self.length >= _ANCHOR_STEP or self.sigma <= _ANCHOR_SIGMA:
            return anchor
        for _ in range(_ANCHOR_ROUNDS):
            anchor = halfway - self.halfway(denoised - anchor)
        return anchor


def noised_again(start: Tensor, end: Tensor, *, noise: Tensor, sigma: float, next_sigma: float) -> Tensor:
    """`end`, reached from `start` without noise, with half of `next_sigma` made of fresh `noise`.

    Source: Lightricks/LTX-2 @400fd31, components/diffusion_steps.py, the step of res_2s.
    """
    up = next_sigma / 2
    rest = math.sqrt(next_sigma * next_sigma - up * up)
    alpha = 1 - next_sigma + rest
    direction = (start - end) / (sigma - next_sigma)
    denoised = start - sigma * direction
    return alpha * (denoised + rest / alpha * direction) + up * noise


def _phi1(z: float) -> float:
    return math.expm1(z) / z


def _phi2(z: float) -> float:
    return (math.expm1(z) - z) / (z * z)
