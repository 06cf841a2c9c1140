"""Decoding a clip tile by tile, blended where tiles overlap: for clips whose decoding does not fit the device.

What it makes is close to the clip decoded whole, not equal to it: a tile does not see what lies beyond its edge.
"""

from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from itertools import product

import torch
from torch import Tensor

from pipeline.decoding import CELL, Tiles
from pipeline.plan import CELL_FRAMES
from pipeline.types import Progress

Stream = Callable[[Tensor], Iterator[Tensor]]
"""From latents [1, 128, f, h, w] to chunks of pixels [1, 3, n, 32h, 32w], all of their frames in order."""


@dataclass(frozen=True, slots=True)
class _Tile:
    """One tile along one axis: its latents from `start` to `end`, its pixels from `first` on, and their weights."""

    start: int
    end: int
    first: int
    weights: Tensor


@dataclass(frozen=True)
class Mosaic:
    """Decoded tiles, on the host. Shapes: each [1, 3, F, h, w]."""

    height: int
    width: int
    parts: list[tuple[_Tile, _Tile, Tensor]]
    """Down, across, pixels."""

    def frames(self, begin: int, end: int, *, device: torch.device | str) -> Tensor:
        """Frames of the whole picture, put together on `device`. Shapes: [1, 3, end - begin, H, W], float32."""
        total = torch.zeros(1, 3, end - begin, self.height, self.width, device=device)
        weight = torch.zeros(self.height, self.width, device=device)
        for y, x, pixels in self.parts:
            share = (y.weights.view(-1, 1) * x.weights).to(device)
            place = (..., slice(y.first, y.first + len(y.weights)), slice(x.first, x.first + len(x.weights)))
            total[place] += pixels[:, :, begin:end].to(device) * share
            weight[place] += share
        return total.div_(weight)


def decode_tiles(decode: Stream, latents: Tensor, *, height: Tiles, width: Tiles) -> Generator[Progress, None, Mosaic]:
    """Decodes tile after tile, each from its first frame to its last, so that the device never holds more than one.

    What layers keep between chunks is most of what decoding takes: tiles side by side, in step, would save nothing.
    Source: Lightricks/LTX-2 1.2.0, tiled decoding (golden conventions, section 9).
    """
    places = list(product(_in_space(latents.shape[3], height), _in_space(latents.shape[4], width)))
    frames = (latents.shape[2] - 1) * CELL_FRAMES + 1
    parts = []
    for index, (y, x) in enumerate(places):
        chunks = []
        for chunk in decode(latents[..., y.start : y.end, x.start : x.end]):
            chunks.append(chunk.cpu())
            done = sum(c.shape[2] for c in chunks)
            yield Progress("decode_tiles", index * frames + done, len(places) * frames)
        parts.append((y, x, torch.cat(chunks, 2)))
    return Mosaic(latents.shape[3] * CELL, latents.shape[4] * CELL, parts)


def decode_tiled(decode: Stream, latents: Tensor, *, frames: Tiles, height: Tiles, width: Tiles) -> Tensor:
    """Pixels of latents in tiles of time as well, as the model's authors decode; ours need none in time.

    Shapes: [1, 128, F, H, W] -> [1, 3, 8F-7, 32H, 32W].
    Source: Lightricks/LTX-2 1.2.0, tiled decoding (golden conventions, section 9).
    """
    _, _, f, h, w = latents.shape
    total = latents.new_zeros(1, 3, (f - 1) * CELL_FRAMES + 1, h * CELL, w * CELL)
    weight = latents.new_zeros(total.shape[2], 1, 1)
    for t in _in_time(f, frames):
        mosaic = finished(decode_tiles(decode, latents[:, :, t.start : t.end], height=height, width=width))
        pixels = mosaic.frames(0, len(t.weights), device=latents.device)
        share = t.weights.view(-1, 1, 1)
        total[:, :, t.first : t.first + len(t.weights)] += pixels * share
        weight[t.first : t.first + len(t.weights)] += share
    return total / weight


def finished(work: Generator[Progress, None, Mosaic]) -> Mosaic:
    """What `work` gives at its end, for those who need no progress."""
    while True:
        try:
            next(work)
        except StopIteration as end:
            mosaic: Mosaic = end.value
            return mosaic


def _in_space(n: int, tiles: Tiles) -> list[_Tile]:
    """Tiles along a side; each fades in and out over the pixels that it shares."""
    ramp = torch.arange(1, tiles.overlap * CELL + 1) / (tiles.overlap * CELL + 1)
    found = []
    for start, end in tiles.places(n):
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
    for begin, end in tiles.places(n):
        start = max(0, begin - 1)
        weights = torch.ones((end - start - 1) * CELL_FRAMES + 1)
        if begin > 0:
            weights[: len(rising)] *= rising
        if end < n:
            weights[len(weights) - len(falling) :] *= falling
        found.append(_Tile(start, end, start * CELL_FRAMES, weights))
    return found
