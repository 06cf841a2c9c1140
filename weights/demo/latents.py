"""The latent space of the hand-set video VAE, in closed form.

A latent cell (32x32 pixels, 8 frames) holds, in this order of channels:
0-63 luma at 8x8, 64-95 Cb and Cr at 4x4, 96-111 luma of the second half minus the first half in time at 4x4,
112-115 marks that are 1 on cells at the left, right, top and bottom edge of the picture, 116-127 nothing.
Training uses this closed form, so it needs no VAE; `video_vae.py` sets the same numbers as weights.
"""

from typing import Final

import torch
import torch.nn.functional as F

CHANNELS: Final = 128
LUMA: Final = slice(0, 64)
CHROMA: Final = slice(64, 96)
HALVES: Final = slice(96, 112)
MARKS: Final = slice(112, 116)

RGB_TO_YCC: Final = torch.tensor([[0.299, 0.587, 0.114], [-0.1687, -0.3313, 0.5], [0.5, -0.4187, -0.0813]])
"""JFIF luma and colour differences (ITU-T T.871)."""


def std() -> torch.Tensor:
    """Per-channel scale that normalises the latents; the mean is zero. Shapes: [128]."""
    out = torch.ones(CHANNELS)
    out[LUMA], out[CHROMA], out[HALVES], out[MARKS] = 0.35, 0.2, 0.12, 0.35
    return out


def encode(quarter: torch.Tensor) -> torch.Tensor:
    """Normalised latents of a clip whose every 4x4 block of pixels has been averaged.

    Shapes: `quarter` [B, 3, 8k+1, h, w] RGB in [-1, 1] at a quarter of the size, h and w multiples of 8 ->
    [B, 128, k+1, h/8, w/8].
    """
    batch, _, _, h, w = quarter.shape
    ycc = torch.einsum("oc,bcthw->bothw", RGB_TO_YCC.to(quarter), quarter)
    ycc = torch.cat([ycc[:, :, :1].expand(-1, -1, 7, -1, -1), ycc], 2)
    k = ycc.shape[2] // 8
    cells = (h // 8, w // 8)
    luma = ycc[:, 0].unflatten(1, (k, 8)).mean(2)
    luma = luma.reshape(batch, k, cells[0], 2, 2, 2, cells[1], 2, 2, 2).permute(0, 1, 2, 6, 5, 9, 4, 8, 3, 7)
    luma = luma.reshape(batch, k, *cells, 64)
    colour = F.avg_pool3d(ycc[:, 1:], (8, 2, 2)).reshape(batch, 2, k, cells[0], 2, 2, cells[1], 2, 2)
    colour = colour.permute(0, 2, 3, 6, 1, 5, 8, 4, 7).reshape(batch, k, *cells, 32)
    half = F.avg_pool3d(ycc[:, :1], (4, 2, 2)).reshape(batch, k, 2, h // 2, w // 2)
    halves = (half[:, :, 1] - half[:, :, 0]).reshape(batch, k, cells[0], 2, 2, cells[1], 2, 2)
    halves = halves.permute(0, 1, 2, 5, 4, 7, 3, 6).reshape(batch, k, *cells, 16)
    marks = edge_marks(*cells).to(quarter).expand(batch, k, -1, -1, -1)
    nothing = quarter.new_zeros(batch, k, *cells, 12)
    out = torch.cat([luma, colour, halves, marks, nothing], -1).movedim(-1, 1)
    return out / std().to(out).view(1, -1, 1, 1, 1)


def edge_marks(height: int, width: int) -> torch.Tensor:
    """1 on cells at the left, right, top and bottom edge. Shapes: [height, width, 4]."""
    marks = torch.zeros(height, width, 4)
    marks[:, 0, 0] = 1
    marks[:, -1, 1] = 1
    marks[0, :, 2] = 1
    marks[-1, :, 3] = 1
    return marks


def luma_picture(normalised: torch.Tensor) -> torch.Tensor:
    """Luma of normalised latents as a quarter-size picture.

    Shapes: [B, 128, F, H, W] -> [B, F, 8H, 8W].
    """
    batch, _, k, height, width = normalised.shape
    x = (normalised[:, LUMA] * 0.35).reshape(batch, 2, 2, 2, 2, 2, 2, k, height, width)
    return x.permute(0, 7, 8, 5, 3, 1, 9, 6, 4, 2).reshape(batch, k, 8 * height, 8 * width)
