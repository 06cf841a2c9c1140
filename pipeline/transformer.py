"""One forward of the joint audio-video transformer: our arithmetic over diffusers' modules and their weights.

Differs from diffusers' own forward in one rule and in cost. The rule: audio-video cross-attention is scaled and
shifted by a stream's *own* per-token timestep and gated by the *other* stream's sigma (Lightricks/LTX-2 since
203d484). The cost: modulation is computed once per distinct timestep (the pinned first frame, the rest), not per
token; there is no text mask; RoPE tables are made once per shape.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

EPS = 1e-6
Rope = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Context:
    """What a prompt says to the model, after the connectors.

    Shapes: video [B, 1024, D], audio [B, 1024, D_audio].
    """

    video: Tensor
    audio: Tensor


@dataclass(frozen=True)
class Geometry:
    """Positions of a shape, turned into RoPE tables, and the length of the two groups of video tokens.

    Shapes: each table is (cos, sin), [1, heads, tokens, head_dim / 2].
    """

    video: Rope
    audio: Rope
    video_time: Rope
    audio_time: Rope
    pinned: int
    """Video tokens of the first latent frame: they have a timestep of their own."""


@dataclass(frozen=True)
class Modulation:
    """AdaLN rows of every table at one sigma. Shapes: [1, groups, rows * dim]."""

    video: Tensor
    video_embedded: Tensor
    audio: Tensor
    audio_embedded: Tensor
    prompt: Tensor
    audio_prompt: Tensor
    cross_video: Tensor
    cross_audio: Tensor
    gate_video: Tensor
    gate_audio: Tensor


def geometry(model: Any, *, grid: tuple[int, int, int], fps: float, audio_tokens: int, dtype: torch.dtype) -> Geometry:
    """RoPE tables for `grid` (latent frames, height, width) and `audio_tokens`."""
    device = model.proj_in.weight.device
    video = model.rope.prepare_video_coords(1, *grid, device, fps=fps)
    audio = model.audio_rope.prepare_audio_coords(1, audio_tokens, device)

    def table(rope: nn.Module, coords: Tensor) -> Rope:
        cos, sin = rope(coords)
        return cos.to(dtype), sin.to(dtype)

    return Geometry(
        video=table(model.rope, video),
        audio=table(model.audio_rope, audio),
        video_time=table(model.cross_attn_rope, video[:, :1]),
        audio_time=table(model.cross_attn_audio_rope, audio[:, :1]),
        pinned=grid[1] * grid[2],
    )


def modulation(model: Any, sigma: float, *, pinned_mask: float, dtype: torch.dtype) -> Modulation:
    """AdaLN rows at `sigma`; the pinned frame's timestep is `pinned_mask` (its denoise mask) times `sigma`."""
    device = model.proj_in.weight.device
    scale = 1000.0
    groups = torch.tensor([pinned_mask * sigma, sigma], device=device) * scale
    one = torch.tensor([sigma], device=device) * scale

    def rows(adaln: nn.Module, timestep: Tensor) -> tuple[Tensor, Tensor]:
        out, embedded = adaln(timestep, batch_size=1, hidden_dtype=dtype)
        return out[None], embedded[None]

    video, video_embedded = rows(model.time_embed, groups)
    audio, audio_embedded = rows(model.audio_time_embed, one)
    return Modulation(
        video=video,
        video_embedded=video_embedded,
        audio=audio,
        audio_embedded=audio_embedded,
        prompt=rows(model.prompt_adaln, one)[0],
        audio_prompt=rows(model.audio_prompt_adaln, one)[0],
        cross_video=rows(model.av_cross_attn_video_scale_shift, groups)[0],
        cross_audio=rows(model.av_cross_attn_audio_scale_shift, one)[0],
        gate_video=rows(model.av_cross_attn_video_a2v_gate, one)[0],
        gate_audio=rows(model.av_cross_attn_audio_v2a_gate, one)[0],
    )


def velocity(
    model: Any, video: Tensor, audio: Tensor, *, context: Context, geometry: Geometry, modulation: Modulation
) -> tuple[Tensor, Tensor]:
    """Velocities of both streams.

    Shapes: video [B, N, 128] -> same, audio [B, A, 128] -> same.
    """
    x = model.proj_in(video)
    a = model.audio_proj_in(audio)
    for block in model.transformer_blocks:
        x, a = _block(block, x, a, context, geometry, modulation)
    shift, scale = _rows(model.scale_shift_table, modulation.video_embedded.repeat(1, 1, 2))
    x = model.proj_out(_modulated(_layer_norm(x), shift, scale, geometry.pinned))
    shift, scale = _rows(model.audio_scale_shift_table, modulation.audio_embedded.repeat(1, 1, 2))
    a = model.audio_proj_out(_modulated(_layer_norm(a), shift, scale, 0))
    return x, a


def _block(
    block: Any, x: Tensor, a: Tensor, context: Context, geo: Geometry, mod: Modulation
) -> tuple[Tensor, Tensor]:
    pin = geo.pinned
    # rows of a table: shift, scale, gate of self-attention, of the MLP, of text cross-attention
    v = _rows(block.scale_shift_table, mod.video)
    u = _rows(block.audio_scale_shift_table, mod.audio)

    x = _added(x, _attend(block.attn1, _modulated(_norm(x), v[0], v[1], pin), rope=geo.video), v[2], pin)
    shift, scale = _rows(block.prompt_scale_shift_table, mod.prompt)
    text = _attend(block.attn2, _modulated(_norm(x), v[6], v[7], pin), keys=context.video * (1 + scale) + shift)
    x = _added(x, text, v[8], pin)

    a = _added(a, _attend(block.audio_attn1, _modulated(_norm(a), u[0], u[1], 0), rope=geo.audio), u[2], 0)
    shift, scale = _rows(block.audio_prompt_scale_shift_table, mod.audio_prompt)
    text = _attend(block.audio_attn2, _modulated(_norm(a), u[6], u[7], 0), keys=context.audio * (1 + scale) + shift)
    a = _added(a, text, u[8], 0)

    x, a = _exchange(block, x, a, geo, mod)
    a = _added(a, block.audio_ff(_modulated(_norm(a), u[3], u[4], 0)), u[5], 0)
    x = _added(x, block.ff(_modulated(_norm(x), v[3], v[4], pin)), v[5], pin)
    return x, a


def _exchange(block: Any, x: Tensor, a: Tensor, geo: Geometry, mod: Modulation) -> tuple[Tensor, Tensor]:
    """Audio-video cross-attention, both ways from the same snapshot.

    Rows of the tables: scale and shift towards the video stream, scale and shift towards the audio stream, gate.
    """
    of_video, of_audio = block.video_a2v_cross_attn_scale_shift_table, block.audio_a2v_cross_attn_scale_shift_table
    v = _rows(of_video[:4], mod.cross_video)
    u = _rows(of_audio[:4], mod.cross_audio)
    gate_video = _rows(of_video[4:], mod.gate_video)[0]
    gate_audio = _rows(of_audio[4:], mod.gate_audio)[0]
    normed_x, normed_a = _norm(x), _norm(a)
    to_video = _attend(
        block.audio_to_video_attn,
        _modulated(normed_x, v[1], v[0], geo.pinned),
        keys=_modulated(normed_a, u[1], u[0], 0),
        rope=geo.video_time,
        key_rope=geo.audio_time,
    )
    to_audio = _attend(
        block.video_to_audio_attn,
        _modulated(normed_a, u[3], u[2], 0),
        keys=_modulated(normed_x, v[3], v[2], geo.pinned),
        rope=geo.audio_time,
        key_rope=geo.video_time,
    )
    return torch.addcmul(x, to_video, gate_video), torch.addcmul(a, to_audio, gate_audio)


def _attend(
    attn: Any, queries: Tensor, *, keys: Tensor | None = None, rope: Rope | None = None, key_rope: Rope | None = None
) -> Tensor:
    """Gated multi-head attention: each head's output times 2 * sigmoid of a projection of its query."""
    keys = queries if keys is None else keys
    heads = attn.heads
    q, k = attn.norm_q(attn.to_q(queries)), attn.norm_k(attn.to_k(keys))
    v = attn.to_v(keys).unflatten(-1, (heads, -1)).transpose(1, 2)
    if rope is None:
        q, k = (t.unflatten(-1, (heads, -1)).transpose(1, 2) for t in (q, k))
    else:
        q, k = _rotated(q, rope), _rotated(k, key_rope or rope)
    out = F.scaled_dot_product_attention(q, k, v).transpose(1, 2)
    gate = torch.sigmoid(attn.to_gate_logits(queries)) * 2
    projected: Tensor = attn.to_out[0]((out * gate.unsqueeze(-1)).flatten(2))
    return projected


def _rotated(x: Tensor, rope: Rope) -> Tensor:
    """`x` split into heads and rotated, the halves of a head being the two coordinates of a plane.

    Shapes: [B, N, heads * d] -> [B, heads, N, d].
    """
    cos, sin = rope
    first, second = x.unflatten(-1, (cos.shape[1], 2, -1)).permute(0, 2, 1, 3, 4).unbind(-2)
    return torch.cat([first * cos - second * sin, second * cos + first * sin], -1)


def _rows(table: Tensor, embedded: Tensor) -> Sequence[Tensor]:
    """Rows of a scale-shift table plus the timestep's share. Shapes: [R, D], [1, G, R * D] -> R of [1, G, D]."""
    rows: tuple[Tensor, ...] = (table.to(embedded.dtype) + embedded.unflatten(-1, (table.shape[0], -1))).unbind(2)
    return rows


def _modulated(x: Tensor, shift: Tensor, scale: Tensor, pinned: int) -> Tensor:
    if not pinned:
        return torch.addcmul(shift, x, scale + 1)
    parts = (x[:, :pinned], x[:, pinned:])
    return torch.cat([torch.addcmul(shift[:, g : g + 1], p, scale[:, g : g + 1] + 1) for g, p in enumerate(parts)], 1)


def _added(x: Tensor, update: Tensor, gate: Tensor, pinned: int) -> Tensor:
    if not pinned:
        return torch.addcmul(x, update, gate)
    out = torch.empty_like(x)
    torch.addcmul(x[:, :pinned], update[:, :pinned], gate[:, :1], out=out[:, :pinned])
    torch.addcmul(x[:, pinned:], update[:, pinned:], gate[:, 1:], out=out[:, pinned:])
    return out


def _norm(x: Tensor) -> Tensor:
    return F.rms_norm(x, (x.shape[-1],), eps=EPS)


def _layer_norm(x: Tensor) -> Tensor:
    return F.layer_norm(x, (x.shape[-1],), eps=EPS)
