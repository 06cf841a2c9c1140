"""One step of each sampler, as pure functions of tensors. A step takes a state from `sigma` to `next_sigma`."""

import math
from dataclasses import dataclass
from typing import Final

import numpy as np
from torch import Tensor

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
    The numbers before the tensors are float32 and in the reference's order. In the first of many steps they lose all
    their digits: what then remains of the state, up to 5e-4 of it, is what rounding leaves, not what the formula says.
    Source: CFG++ (arXiv 2406.08070); flow form as in Lightricks/LTX-2 @400fd31, components/diffusion_steps.py.
    """
    if next_sigma == 0:
        return denoised
    one, sigma_32, next_32 = np.float32(1), np.float32(sigma), np.float32(next_sigma)
    alpha, next_alpha = max(one - sigma_32, np.finfo(np.float32).eps), one - next_32
    s, q = sigma_32 / alpha, next_32 / next_alpha
    s2, q2 = s * s, q * q
    up = min(q, np.float32(eta) * np.sqrt(q2 * (s2 - q2) / s2))
    down = np.sqrt(q2 - up * up)
    direction = (state - float(alpha) * unconditional) / float(sigma_32)
    return float(next_alpha) * denoised + float(next_alpha * down) * direction + float(next_alpha * up) * noise


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
