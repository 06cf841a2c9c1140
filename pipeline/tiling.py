"""Decoding a clip tile by tile, blended where tiles overlap: for clips whose decoding does not fit the device.

What it makes is close to the clip decoded whole, not equal to it: a tile does not see what lies beyond its edge.
"""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import product

import torch
from torch import Tensor

from pipeline.plan import CELL, CELL_FRAMES

Decode = Callable[[Tensor], Tensor]
"""From latents [1, 128, f, h, w] to pixels [1, 3, 8f-7, 32h, 32w]."""


@dataclass(frozen=True, slots=True)
class Tiles:
    """Length of a tile along one axis, and of what it shares with the next. Units: latent frames or cells."""

    length: int
    overlap: int


@dataclass(frozen=True, slots=True)
class _Tile:
    """One tile along one axis: its latents from `start` to `end`, its pixels from `first` on, and their weights."""

    start: int
    end: int
    first: int
    weights: Tensor


def decode_tiled(decode: Decode, latents: Tensor, *, frames: Tiles, height: Tiles, width: Tiles) -> Tensor:
    """Pixels of normalised latents, `decode` being called once for each tile.

    Shapes: [1, 128, F, H, W] -> [1, 3, 8F-7, 32H, 32W].
    Source: Lightricks/LTX-2 1.2.0, tiled decoding (golden conventions, section 9).
    """
    _, _, f, h, w = latents.shape
    total: Tensor | None = None
    weight = latents.new_zeros(1, 1, (f - 1) * CELL_FRAMES + 1, h * CELL, w * CELL)
    for t, y, x in product(_in_time(f, frames), _in_space(h, height), _in_space(w, width)):
        pixels = decode(latents[:, :, t.start : t.end, y.start : y.end, x.start : x.end])
        share = (t.weights.view(-1, 1, 1) * y.weights.view(-1, 1) * x.weights).to(pixels)
        place = (
            ...,
            slice(t.first, t.first + len(t.weights)),
            slice(y.first, y.first + len(y.weights)),
            slice(x.first, x.first + len(x.weights)),
        )
        if total is None:
            total = pixels.new_zeros(1, pixels.shape[1], *weight.shape[2:])
        total[place] += pixels * share
        weight[place] += share
    if total is None:
        raise ValueError("latents have at least one frame, row and column")
    return total / weight.to(total)


def _starts(n: int, tiles: Tiles) -> list[tuple[int, int]]:
    """Where tiles begin and end: as many as cover `n`."""
    stride = tiles.length - tiles.overlap
    count = max(1, (n + tiles.length - 2 * tiles.overlap - 1) // stride)
    return [(i * stride, n if i == count - 1 else i * stride + tiles.length) for i in range(count)]


def _in_space(n: int, tiles: Tiles) -> list[_Tile]:
    """Tiles along a side; each fades in and out over the pixels that it shares."""
    ramp = torch.arange(1, tiles.overlap * CELL + 1) / (tiles.overlap * CELL + 1)
    found = []
    for start, end in _starts(n, tiles):
        weights = torch.ones((end - start) * CELL)
        if start > 0:
            weights[: len(ramp)] *= ramp
        if end < n:
            weights[len(weights) - len(ramp) :] *= 1 - ramp
        found.append(_Tile(start, end, start * CELL, weights))
    return found


def _in_time(n: int, tiles: Tiles) -> list[_Tile]:
    """Tiles along time; all but the first begin a latent frame earlier, whose one frame has no weight."""
    shared = tiles.overlap * CELL_FRAMES
    rising, falling = torch.arange(shared + 1) / (shared + 1), 1 - torch.arange(1, shared + 1) / (shared + 1)
    found = []
    for begin, end in _starts(n, tiles):
        start = max(0, begin - 1)
        weights = torch.ones((end - start - 1) * CELL_FRAMES + 1)
        if begin > 0:
            weights[: len(rising)] *= rising
        if end < n:
            weights[len(weights) - len(falling) :] *= falling
        found.append(_Tile(start, end, start * CELL_FRAMES, weights))
    return found
