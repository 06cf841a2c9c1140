"""Gives one attention head of the demo transformer the task of telling each token where in the picture it lies.

Rotary positions tell two tokens how far apart they are, never how far either is from the middle, which is all that a
zoom depends on. The latents mark the edges of the picture (`latents.MARKS`). So the first block's first head attends
to the edges of the clean first frame with a score that falls by the same amount for each cell of distance. Its softmax
then weighs left against right and top against bottom, which is a smooth measure of the place, in cells from the
middle, at every size of picture. Training without it learned zooms hardly at all; see benchmarks/LOG.md.
"""

import math
from collections.abc import Callable, Iterable
from typing import Any, Final

import torch
from diffusers import LTX2VideoTransformer3DModel

from weights.demo import latents

BASE_PAIRS: Final = (0, 1)
"""Pairs of the first head that rotary positions leave alone."""
ROW_PAIRS: Final = (3, 6)
COLUMN_PAIRS: Final = (4, 7)
"""Pairs that turn by 0.05 to 0.06 radian from one row or column of cells to the next."""
BASE: Final = 1.5
SLOPE: Final = 5.0
"""Weights of the query and key norms: for being an edge, and for the distance to it."""
REST: Final = 0.3
CLEAN: Final = 2.0
"""How much being clean counts beside being an edge: noise on the other frames looks like edges."""
SHARE: Final = 0.5
"""Size of what the head writes, in parts of the hidden state's."""


def add_position_head(model: LTX2VideoTransformer3DModel, forwards: Iterable[Callable[[], torch.Tensor]]) -> None:
    """Rewrites the first head of the first video self-attention; the rest of `model` stays.

    Each of `forwards` runs `model` on one batch and gives the five numbers each of its tokens should be recognised
    by: the four edge marks, and 1 on the clean first frame. What the hidden state says of them is read off by ridge
    regression, so the head can be added to a model at any point of its training.

    Shapes: what `forwards` give [B * N, 5].
    """
    block: Any = model.transformer_blocks[0]
    attention = block.attn1
    seen: list[torch.Tensor] = []
    written: list[torch.Tensor] = []
    hooks = (
        attention.register_forward_pre_hook(
            lambda _, args, named: seen.append((args[0] if args else named["hidden_states"]).flatten(0, 1)),
            with_kwargs=True,
        ),
        block.register_forward_hook(lambda _, __, out: written.append(out[0].flatten(0, 1))),
    )
    with torch.no_grad():
        wanted = torch.cat([forward() for forward in forwards])
    for hook in hooks:
        hook.remove()
    features, hidden = torch.cat(seen), torch.cat(written)
    readout = _ridge(features, wanted)
    left, right, top, bottom, clean = readout.unbind(-1)
    edge = left + right + top + bottom + CLEAN * clean

    width = attention.to_q.out_features // attention.heads
    half = width // 2
    with torch.no_grad():
        scale_q, scale_k = (_rms(layer(features)) for layer in (attention.to_q, attention.to_k))
        for layer in (attention.to_q, attention.to_k, attention.to_v):
            layer.weight[:width] = 0
            layer.bias[:width] = 0
        for norm in (attention.norm_q, attention.norm_k):
            norm.weight[:width] = REST
        for pair in BASE_PAIRS:
            for dim in (pair, half + pair):
                attention.to_q.bias[dim] = scale_q
                _set_row(attention.to_k, dim, edge * scale_k)
                attention.norm_q.weight[dim] = attention.norm_k.weight[dim] = BASE
        # a quarter turn between query and key makes the score fall with the sine of the distance to either edge
        for pairs, side in ((COLUMN_PAIRS, right - left), (ROW_PAIRS, bottom - top)):
            for pair in pairs:
                attention.to_q.bias[pair] = scale_q
                _set_row(attention.to_k, half + pair, side * scale_k)
                attention.norm_q.weight[pair] = attention.norm_k.weight[half + pair] = SLOPE
        attention.to_gate_logits.weight[0] = 0
        attention.to_gate_logits.bias[0] = 0  # a gate of 1
        attention.to_out[0].weight[:, :width] = 0
        for dim, (side, place) in enumerate(zip((right - left, bottom - top), _unused(hidden, 2), strict=True)):
            _set_row(attention.to_v, dim, side)
            attention.to_out[0].weight[:, dim] = place * SHARE * _rms(hidden) * math.sqrt(hidden.shape[-1])


def _set_row(layer: Any, row: int, affine: torch.Tensor) -> None:
    layer.weight[row], layer.bias[row] = affine[:-1], affine[-1]


def _rms(x: torch.Tensor) -> float:
    return x.pow(2).mean().sqrt().item()


def _ridge(features: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
    """Affine readouts of `wanted`, the offset last. Shapes: [N, D], [N, K] -> [D + 1, K]."""
    x = torch.cat([features, torch.ones(len(features), 1)], 1).double()
    penalty = 10 * torch.eye(x.shape[1], dtype=x.dtype)
    readout: torch.Tensor = torch.linalg.solve(x.T @ x + penalty, x.T @ wanted.double())
    return readout.float()


def _unused(hidden: torch.Tensor, count: int) -> torch.Tensor:
    """Directions in which the hidden states hardly differ. Shapes: [N, D] -> [count, D]."""
    centred = (hidden - hidden.mean(0)).double()
    directions: torch.Tensor = torch.linalg.eigh(centred.T @ centred).eigenvectors
    return directions[:, :count].T.float()


def recognisable(noisy: torch.Tensor, grid: tuple[int, int, int]) -> torch.Tensor:
    """The edge marks as the tokens of a batch carry them, noise and all, and 1 on the first frame.

    Shapes: noisy [B, N, 128] -> [B * N, 5].
    """
    marks = noisy[..., latents.MARKS] * latents.std()[latents.MARKS]
    first = torch.zeros(*noisy.shape[:2], 1)
    first[:, : grid[1] * grid[2]] = 1
    return torch.cat([marks, first], -1).flatten(0, 1)
