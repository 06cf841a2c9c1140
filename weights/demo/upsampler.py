"""Hand-set weights for the latent upsampler: bilinear enlargement of the picture, done on latents.

Group norms are made linear: each group of 8 channels holds 5 signals, their negative sum, and a large constant with
both signs. The group's mean is then zero and its deviation fixed.
Enlarging a picture and describing it by latents are both linear, so the weights follow from one least-squares fit.
"""

from itertools import product
from typing import Any, Final

import torch
import torch.nn.functional as F
from diffusers.pipelines.ltx2 import LTX2LatentUpsamplerModel
from torch import nn

from weights import config
from weights.demo import latents, seeded

CONFIG: Final = (
    ("in_channels", latents.CHANNELS),
    ("mid_channels", 256),
    ("num_blocks_per_stage", 1),
    ("dims", 3),
    ("spatial_upsample", True),
    ("temporal_upsample", False),
    ("spatial_scale", 2.0),
    ("rational_resampler", False),
)
"""The configuration in the upsampler file's metadata."""

CONSTANT: Final = 2.0**12
GROUPS: Final = 32
SIGNALS: Final = 5
"""Per group of 8: after them come the balance, the constant, and its negative."""
STILL: Final = latents.HALVES.start
"""Channels that a still picture fills: luma and chroma."""
EXAMPLES: Final = 96


def build_upsampler() -> nn.Module:
    """The upsampler, in float32. It reads and writes latents that are not normalised."""
    arguments: dict[str, Any] = config.upsampler_arguments(dict(CONFIG))
    upsampler: nn.Module = LTX2LatentUpsamplerModel(**arguments)
    with torch.no_grad():
        for parameter in upsampler.parameters():
            parameter.zero_()
        _set(upsampler)
    return upsampler.eval().requires_grad_(False)


def _set(upsampler: Any) -> None:
    middle = upsampler.mid_channels
    size = middle // GROUPS
    place = [group * size + i for group in range(GROUPS) for i in range(SIGNALS)][: latents.CHANNELS]
    first = upsampler.initial_conv.weight
    for channel, at in enumerate(place):
        group = at // size * size
        first[at, channel, 1, 1, 1] = 1
        first[group + SIGNALS, channel, 1, 1, 1] = -1
    upsampler.initial_conv.bias[SIGNALS + 1 :: size] = CONSTANT
    upsampler.initial_conv.bias[SIGNALS + 2 :: size] = -CONSTANT
    upsampler.initial_norm.weight.fill_(1)
    # the norm divides by the deviation, SiLU by 2, and SiLU after the residual block by 2 again
    deviation = CONSTANT * (2 / size) ** 0.5
    shrunk = 1 / deviation / 4
    signals = torch.tensor(place)
    enlarge = upsampler.upsampler[0].weight
    fitted = _fit()
    for channel, phase in product(range(STILL), range(4)):
        enlarge[place[channel] * 4 + phase, signals[:STILL]] = fitted[channel, phase]
    for channel, phase in product(range(latents.HALVES.start, latents.HALVES.stop), range(4)):
        enlarge[place[channel] * 4 + phase, place[channel], 1, 1] = 1
    # a mark belongs to the new cells on its own side only
    for mark, phases in zip(
        range(latents.MARKS.start, latents.MARKS.stop), ((0, 2), (1, 3), (0, 1), (2, 3)), strict=True
    ):
        for phase in phases:
            enlarge[place[mark] * 4 + phase, place[mark], 1, 1] = 1
    # no norm changes the signals from here on; SiLU after the second block halves them once more
    used = latents.MARKS.stop
    upsampler.final_conv.weight[torch.arange(used), signals[:used], 1, 1, 1] = 2 / shrunk


def _fit() -> torch.Tensor:
    """Latents of the enlarged picture from 3x3 cells of the picture.

    Shapes: [96 out, 4 phases, 96 in, 3, 3].
    """
    grey = seeded.normal("upsampler/luma", (EXAMPLES, 1, 64, 64)).float() / 3
    colour = seeded.normal("upsampler/chroma", (EXAMPLES, 2, 32, 32)).float() / 3
    ycc = torch.cat([grey, F.interpolate(colour, scale_factor=2, mode="bilinear", align_corners=False)], 1)
    picture = torch.einsum("oc,bchw->bohw", torch.linalg.inv(latents.RGB_TO_YCC), ycc)
    large = F.interpolate(picture, scale_factor=2, mode="bilinear", align_corners=False)
    before, after = (_describe(image) for image in (picture, large))
    side = before.shape[-1]
    inputs = F.unfold(before, 3).transpose(1, 2).flatten(0, 1).double()
    cells = after.reshape(EXAMPLES, STILL, side, 2, side, 2).permute(0, 2, 4, 1, 3, 5)[:, 1:-1, 1:-1]
    outputs = cells.reshape(-1, STILL * 4).double()
    ridge = 1e-4 * torch.eye(inputs.shape[1], dtype=torch.double)
    solution: torch.Tensor = torch.linalg.solve(inputs.T @ inputs + ridge, inputs.T @ outputs)
    return solution.T.reshape(STILL, 4, STILL, 3, 3).float()


def _describe(picture: torch.Tensor) -> torch.Tensor:
    """Latents of a still, not normalised. Shapes: [B, 3, h, w] -> [B, 96, h/8, w/8]."""
    scaled = latents.encode(picture[:, :, None]) * latents.std().view(1, -1, 1, 1, 1)
    still: torch.Tensor = scaled[:, :STILL, 0]
    return still
