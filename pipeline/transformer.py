"""One forward of the joint audio-video transformer: our arithmetic over diffusers' modules and their weights.

Differs from diffusers' own forward in one rule and in cost. The rule: audio-video cross-attention is scaled and
shifted by a stream's *own* per-token timestep and gated by the *other* stream's sigma (Lightricks/LTX-2 since
203d484). The cost: modulation is computed once for each run of tokens that share a timestep (the pinned first frame,
the rest), not per token; there is no text mask; RoPE tables are made once per shape.
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


@dataclass(frozen=True, slots=True)
class Omission:
    """What one row of a batch leaves out of the forward, for guidance away from what the model makes without it.

    A block in `video_blocks` or `audio_blocks` does not mix that stream's tokens: its self-attention puts out its
    values. `None` stands for every block. `exchange` keeps the streams from seeing each other, in every block.
    Source: Lightricks/LTX-2 1.2.0, perturbations (STG: arXiv 2411.18664).
    """

    video_blocks: tuple[int, ...] | None = ()
    audio_blocks: tuple[int, ...] | None = ()
    exchange: bool = False


@dataclass(frozen=True, slots=True)
class Runs:
    """Neighbouring tokens that share a timestep: how many, and their denoise mask, in order."""

    lengths: tuple[int, ...]
    masks: tuple[float, ...]


@dataclass(frozen=True)
class Geometry:
    """Positions of a shape, turned into RoPE tables.

    Shapes: each table is (cos, sin), [1, heads, tokens, head_dim / 2].
    """

    video: Rope
    audio: Rope
    video_time: Rope
    audio_time: Rope


@dataclass(frozen=True)
class Modulation:
    """AdaLN rows of every table at one sigma, one for each run of tokens. Shapes: [1, runs, rows * dim]."""

    video_runs: tuple[int, ...]
    audio_runs: tuple[int, ...]
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
    )


def runs(mask: Tensor) -> Runs:
    """The runs of equal values in a denoise mask. Shapes: `mask` [1, N, 1], on the CPU."""
    values, lengths = torch.unique_consecutive(mask.flatten(), return_counts=True)
    return Runs(tuple(lengths.tolist()), tuple(values.tolist()))


def modulation(model: Any, sigma: float, *, video: Runs, audio: Runs, dtype: torch.dtype) -> Modulation:
    """AdaLN rows at `sigma`; a token's timestep is its denoise mask times `sigma`."""
    device = model.proj_in.weight.device
    scale = 1000.0
    one = torch.tensor([sigma], device=device) * scale
    of_video = torch.tensor(video.masks, device=device) * sigma * scale
    of_audio = torch.tensor(audio.masks, device=device) * sigma * scale

    def rows(adaln: nn.Module, timestep: Tensor) -> tuple[Tensor, Tensor]:
        out, embedded = adaln(timestep, batch_size=1, hidden_dtype=dtype)
        return out[None], embedded[None]

    video_rows, video_embedded = rows(model.time_embed, of_video)
    audio_rows, audio_embedded = rows(model.audio_time_embed, of_audio)
    return Modulation(
        video_runs=video.lengths,
        audio_runs=audio.lengths,
        video=video_rows,
        video_embedded=video_embedded,
        audio=audio_rows,
        audio_embedded=audio_embedded,
        prompt=rows(model.prompt_adaln, one)[0],
        audio_prompt=rows(model.audio_prompt_adaln, one)[0],
        cross_video=rows(model.av_cross_attn_video_scale_shift, of_video)[0],
        cross_audio=rows(model.av_cross_attn_audio_scale_shift, of_audio)[0],
        gate_video=rows(model.av_cross_attn_video_a2v_gate, one)[0],
        gate_audio=rows(model.av_cross_attn_audio_v2a_gate, one)[0],
    )


def velocity(
    model: Any,
    video: Tensor,
    audio: Tensor,
    *,
    context: Context,
    geometry: Geometry,
    modulation: Modulation,
    omissions: Sequence[Omission] = (),
) -> tuple[Tensor, Tensor]:
    """Velocities of both streams; `omissions` has one entry per row, or none where no row leaves anything out.

    Shapes: video [B, N, 128] -> same, audio [B, A, 128] -> same.
    """
    x = model.proj_in(video)
    a = model.audio_proj_in(audio)
    for index, block in enumerate(model.transformer_blocks):
        x, a = _block(block, x, a, context, geometry, modulation, _kept(omissions, index))
    shift, scale = _rows(model.scale_shift_table, modulation.video_embedded.repeat(1, 1, 2))
    x = model.proj_out(_modulated(_layer_norm(x), shift, scale, modulation.video_runs))
    shift, scale = _rows(model.audio_scale_shift_table, modulation.audio_embedded.repeat(1, 1, 2))
    a = model.audio_proj_out(_modulated(_layer_norm(a), shift, scale, modulation.audio_runs))
    return x, a


@dataclass(frozen=True, slots=True)
class _Kept:
    """What each row of a batch does in one block; empty where every row does it."""

    mixes_video: tuple[bool, ...]
    mixes_audio: tuple[bool, ...]
    exchanges: tuple[bool, ...]


def _kept(omissions: Sequence[Omission], index: int) -> _Kept:
    def unless_all(rows: tuple[bool, ...]) -> tuple[bool, ...]:
        return () if all(rows) else rows

    return _Kept(
        mixes_video=unless_all(tuple(o.video_blocks is not None and index not in o.video_blocks for o in omissions)),
        mixes_audio=unless_all(tuple(o.audio_blocks is not None and index not in o.audio_blocks for o in omissions)),
        exchanges=unless_all(tuple(not o.exchange for o in omissions)),
    )


def _where(rows: tuple[bool, ...], yes: Tensor, no: Tensor) -> Tensor:
    """Rows of `yes` or of `no`. Slices, since an index made on the host would have the device wait for it."""
    return torch.cat([(yes if row else no)[i : i + 1] for i, row in enumerate(rows)]) if rows else yes


def _block(
    block: Any, x: Tensor, a: Tensor, context: Context, geo: Geometry, mod: Modulation, kept: _Kept
) -> tuple[Tensor, Tensor]:
    runs_v, runs_a = mod.video_runs, mod.audio_runs
    # rows of a table: shift, scale, gate of self-attention, of the MLP, of text cross-attention
    v = _rows(block.scale_shift_table, mod.video)
    u = _rows(block.audio_scale_shift_table, mod.audio)

    normed = _modulated(_norm(x), v[0], v[1], runs_v)
    x = _added(x, _attend(block.attn1, normed, rope=geo.video, mixes=kept.mixes_video), v[2], runs_v)
    shift, scale = _rows(block.prompt_scale_shift_table, mod.prompt)
    text = _attend(block.attn2, _modulated(_norm(x), v[6], v[7], runs_v), keys=context.video * (1 + scale) + shift)
    x = _added(x, text, v[8], runs_v)

    normed = _modulated(_norm(a), u[0], u[1], runs_a)
    a = _added(a, _attend(block.audio_attn1, normed, rope=geo.audio, mixes=kept.mixes_audio), u[2], runs_a)
    shift, scale = _rows(block.audio_prompt_scale_shift_table, mod.audio_prompt)
    text = _attend(
        block.audio_attn2, _modulated(_norm(a), u[6], u[7], runs_a), keys=context.audio * (1 + scale) + shift
    )
    a = _added(a, text, u[8], runs_a)

    if not kept.exchanges or any(kept.exchanges):
        seen_x, seen_a = _exchange(block, x, a, geo, mod)
        x, a = _where(kept.exchanges, seen_x, x), _where(kept.exchanges, seen_a, a)
    a = _added(a, block.audio_ff(_modulated(_norm(a), u[3], u[4], runs_a)), u[5], runs_a)
    x = _added(x, block.ff(_modulated(_norm(x), v[3], v[4], runs_v)), v[5], runs_v)
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
        _modulated(normed_x, v[1], v[0], mod.video_runs),
        keys=_modulated(normed_a, u[1], u[0], mod.audio_runs),
        rope=geo.video_time,
        key_rope=geo.audio_time,
    )
    to_audio = _attend(
        block.video_to_audio_attn,
        _modulated(normed_a, u[3], u[2], mod.audio_runs),
        keys=_modulated(normed_x, v[3], v[2], mod.video_runs),
        rope=geo.audio_time,
        key_rope=geo.video_time,
    )
    return torch.addcmul(x, to_video, gate_video), torch.addcmul(a, to_audio, gate_audio)


def _attend(
    attn: Any,
    queries: Tensor,
    *,
    keys: Tensor | None = None,
    rope: Rope | None = None,
    key_rope: Rope | None = None,
    mixes: tuple[bool, ...] = (),
) -> Tensor:
    """Gated multi-head attention: each head's output times 2 * sigmoid of a projection of its query.

    Rows that `mixes` rules out put out their values as they are, which only self-attention can.
    """
    keys = queries if keys is None else keys
    heads = attn.heads
    v = attn.to_v(keys).unflatten(-1, (heads, -1)).transpose(1, 2)
    if mixes and not any(mixes):
        out = v
    else:
        q, k = attn.norm_q(attn.to_q(queries)), attn.norm_k(attn.to_k(keys))
        if rope is None:
            q, k = (t.unflatten(-1, (heads, -1)).transpose(1, 2) for t in (q, k))
        else:
            q, k = _rotated(q, rope), _rotated(k, key_rope or rope)
        out = _where(mixes, F.scaled_dot_product_attention(q, k, v), v)
    out = out.transpose(1, 2)
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


def _modulated(x: Tensor, shift: Tensor, scale: Tensor, lengths: tuple[int, ...]) -> Tensor:
    if len(lengths) == 1:
        return torch.addcmul(shift, x, scale + 1)
    parts = x.split(lengths, 1)
    return torch.cat([torch.addcmul(shift[:, i : i + 1], p, scale[:, i : i + 1] + 1) for i, p in enumerate(parts)], 1)


def _added(x: Tensor, update: Tensor, gate: Tensor, lengths: tuple[int, ...]) -> Tensor:
    if len(lengths) == 1:
        return torch.addcmul(x, update, gate)
    out = torch.empty_like(x)
    parts = zip(x.split(lengths, 1), update.split(lengths, 1), out.split(lengths, 1), strict=True)
    for i, (part, change, into) in enumerate(parts):
        torch.addcmul(part, change, gate[:, i : i + 1], out=into)
    return out


def _norm(x: Tensor) -> Tensor:
    return F.rms_norm(x, (x.shape[-1],), eps=EPS)


def _layer_norm(x: Tensor) -> Tensor:
    return F.layer_norm(x, (x.shape[-1],), eps=EPS)
