"""One forward of the joint audio-video transformer: our arithmetic over diffusers' modules and their weights.

Differs from diffusers' own forward in one rule and in cost. The rule: audio-video cross-attention is scaled and
shifted by a stream's *own* per-token timestep and gated by the *other* stream's sigma (Lightricks/LTX-2 since
203d484). The cost: modulation is computed for all blocks at once, and once for each run of tokens that share a
timestep (the pinned first frame, the rest), not per block and token; there is no text mask; RoPE tables are made once
per shape; what a kernel has just written is changed in place, so no gradient flows through.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

EPS: Final = 1e-6
TIMESTEP_SCALE: Final = 1000.0
"""`timestep_scale_multiplier` and `av_ca_timestep_scale_multiplier` of the published configuration."""
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

    def mask(self, device: torch.device) -> Tensor:
        """The denoise mask of every token. Shapes: [1, N, 1]."""
        mask = torch.empty(1, sum(self.lengths), 1, device=device)
        for run, value in zip(mask.split(self.lengths, 1), self.masks, strict=True):
            run.fill_(value)
        return mask


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
    """AdaLN rows of every block at one sigma, and of the output layers; 1 is added to those that scale.

    Shapes: [blocks, runs, rows, dim], with one run where only sigma counts; of the output layers [1, runs, rows, dim].
    """

    video_runs: tuple[int, ...]
    audio_runs: tuple[int, ...]
    video: Tensor
    audio: Tensor
    """Rows: shift, scale and gate of self-attention, of the MLP, of text cross-attention."""
    prompt: Tensor
    audio_prompt: Tensor
    """Rows: shift and scale of the context."""
    cross_video: Tensor
    cross_audio: Tensor
    """Rows: scale and shift of audio-to-video attention, scale and shift of video-to-audio attention."""
    gate_video: Tensor
    gate_audio: Tensor
    """One row."""
    video_out: Tensor
    audio_out: Tensor
    """Rows: shift and scale."""


def positions(model: Any, *, grid: tuple[int, int, int], fps: float, audio_tokens: int) -> tuple[Tensor, Tensor]:
    """Where each token begins and ends.

    Shapes: video [1, 3, N, 2], audio [1, 1, A, 2]. Units: seconds, pixels down, pixels across.
    """
    device = model.proj_in.weight.device
    video: Tensor = model.rope.prepare_video_coords(1, *grid, device, fps=fps)
    audio: Tensor = model.audio_rope.prepare_audio_coords(1, audio_tokens, device)
    return video, audio


def geometry(model: Any, *, grid: tuple[int, int, int], fps: float, audio_tokens: int, dtype: torch.dtype) -> Geometry:
    """RoPE tables for `grid` (latent frames, height, width) and `audio_tokens`."""
    video, audio = positions(model, grid=grid, fps=fps, audio_tokens=audio_tokens)

    def table(rope: nn.Module, coords: Tensor) -> Rope:
        cos, sin = rope(coords)
        return cos.to(dtype), sin.to(dtype)

    return Geometry(
        video=table(model.rope, video),
        audio=table(model.audio_rope, audio),
        video_time=table(model.cross_attn_rope, video[:, :1]),
        audio_time=table(model.cross_attn_audio_rope, audio[:, :1]),
    )


def modulation(model: Any, sigma: float, *, video: Runs, audio: Runs, dtype: torch.dtype) -> Modulation:
    """AdaLN rows at `sigma`; a token's timestep is its denoise mask times `sigma`."""
    device = model.proj_in.weight.device
    of_video, of_audio, one = (_timesteps(masks, sigma, device) for masks in (video.masks, audio.masks, (1.0,)))
    every_third, first_and_third, second = slice(1, None, 3), slice(0, None, 2), slice(1, 2)
    towards_video, towards_audio = "video_a2v_cross_attn_scale_shift_table", "audio_a2v_cross_attn_scale_shift_table"

    def share(adaln: nn.Module, timesteps: Tensor) -> tuple[Tensor, Tensor]:
        rows, embedding = adaln(timesteps, batch_size=1, hidden_dtype=dtype)
        return rows, embedding

    def rows(table: str, share: Tensor, *, of: slice = slice(None), scales: slice = slice(0)) -> Tensor:
        tables = torch.stack([getattr(block, table)[of] for block in model.transformer_blocks.children()])
        return _rows(tables, share, scales=scales)

    of_blocks, of_output = share(model.time_embed, of_video)
    audio_of_blocks, audio_of_output = share(model.audio_time_embed, of_audio)
    prompt, _ = share(model.prompt_adaln, one)
    audio_prompt, _ = share(model.audio_prompt_adaln, one)
    cross_video, _ = share(model.av_cross_attn_video_scale_shift, of_video)
    cross_audio, _ = share(model.av_cross_attn_audio_scale_shift, of_audio)
    gate_video, _ = share(model.av_cross_attn_video_a2v_gate, one)
    gate_audio, _ = share(model.av_cross_attn_audio_v2a_gate, one)
    return Modulation(
        video_runs=video.lengths,
        audio_runs=audio.lengths,
        video=rows("scale_shift_table", of_blocks, scales=every_third),
        audio=rows("audio_scale_shift_table", audio_of_blocks, scales=every_third),
        prompt=rows("prompt_scale_shift_table", prompt, scales=second),
        audio_prompt=rows("audio_prompt_scale_shift_table", audio_prompt, scales=second),
        cross_video=rows(towards_video, cross_video, of=slice(4), scales=first_and_third),
        cross_audio=rows(towards_audio, cross_audio, of=slice(4), scales=first_and_third),
        gate_video=rows(towards_video, gate_video, of=slice(4, 5)),
        gate_audio=rows(towards_audio, gate_audio, of=slice(4, 5)),
        video_out=_rows(model.scale_shift_table[None], of_output.repeat(1, 2), scales=second),
        audio_out=_rows(model.audio_scale_shift_table[None], audio_of_output.repeat(1, 2), scales=second),
    )


def _timesteps(masks: tuple[float, ...], sigma: float, device: torch.device) -> Tensor:
    """Filled on the device: a tensor made of Python numbers would be a copy that the host waits for."""
    timesteps = torch.empty(len(masks), device=device)
    for index, mask in enumerate(masks):
        timesteps[index : index + 1].fill_(mask)
    return timesteps.mul_(sigma).mul_(TIMESTEP_SCALE)


def _rows(tables: Tensor, share: Tensor, *, scales: slice) -> Tensor:
    """Scale-shift tables plus the timestep's share. Shapes: [L, R, D], [runs, R * D] -> [L, runs, R, D]."""
    rows: Tensor = tables[:, None].to(share.dtype) + share.unflatten(-1, (tables.shape[1], -1))
    rows[:, :, scales] += 1
    return rows


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
        _block(block, index, x, a, context, geometry, modulation, _kept(omissions, index))
    shift, scale = modulation.video_out[0].unbind(1)
    x = model.proj_out(_modulated(_layer_norm(x), shift, scale, modulation.video_runs))
    shift, scale = modulation.audio_out[0].unbind(1)
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


def _block(
    block: Any, index: int, x: Tensor, a: Tensor, context: Context, geo: Geometry, mod: Modulation, kept: _Kept
) -> None:
    """One block; changes `x` and `a`."""
    of_x, of_a = mod.video_runs, mod.audio_runs
    v = mod.video[index].unbind(1)
    u = mod.audio[index].unbind(1)

    normed = _modulated(_norm(x), v[0], v[1], of_x)
    _add(x, _attend(block.attn1, normed, rope=geo.video, mixes=kept.mixes_video), v[2], of_x)
    normed = _modulated(_norm(x), v[6], v[7], of_x)
    _add(x, _attend(block.attn2, normed, keys=_scaled(context.video, mod.prompt[index])), v[8], of_x)

    normed = _modulated(_norm(a), u[0], u[1], of_a)
    _add(a, _attend(block.audio_attn1, normed, rope=geo.audio, mixes=kept.mixes_audio), u[2], of_a)
    normed = _modulated(_norm(a), u[6], u[7], of_a)
    _add(a, _attend(block.audio_attn2, normed, keys=_scaled(context.audio, mod.audio_prompt[index])), u[8], of_a)

    if not kept.exchanges or any(kept.exchanges):
        _exchange(block, index, x, a, geo, mod, kept.exchanges)
    _add(a, _feed_forward(block.audio_ff, _modulated(_norm(a), u[3], u[4], of_a)), u[5], of_a)
    _add(x, _feed_forward(block.ff, _modulated(_norm(x), v[3], v[4], of_x)), v[5], of_x)


def _exchange(
    block: Any, index: int, x: Tensor, a: Tensor, geo: Geometry, mod: Modulation, rows: tuple[bool, ...]
) -> None:
    """Audio-video cross-attention, both ways from the same snapshot; changes those `rows` of `x` and `a`, or all."""
    v = mod.cross_video[index].unbind(1)
    u = mod.cross_audio[index].unbind(1)
    normed_x, normed_a = _norm(x), _norm(a)
    to_audio = _attend(
        block.video_to_audio_attn,
        _modulated(normed_a, u[3], u[2], mod.audio_runs, out=torch.empty_like(normed_a)),
        keys=_modulated(normed_x, v[3], v[2], mod.video_runs, out=torch.empty_like(normed_x)),
        rope=geo.audio_time,
        key_rope=geo.video_time,
    )
    to_video = _attend(
        block.audio_to_video_attn,
        _modulated(normed_x, v[1], v[0], mod.video_runs),
        keys=_modulated(normed_a, u[1], u[0], mod.audio_runs),
        rope=geo.video_time,
        key_rope=geo.audio_time,
    )
    # slices, since an index made on the host would have the device wait for it
    for row in [slice(i, i + 1) for i, does in enumerate(rows) if does] or [slice(None)]:
        x[row].addcmul_(to_video[row], mod.gate_video[index, 0])
        a[row].addcmul_(to_audio[row], mod.gate_audio[index, 0])


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
        out = F.scaled_dot_product_attention(q, k, v)
        for row in (i for i, does in enumerate(mixes) if not does):
            out[row].copy_(v[row])
    out = out.transpose(1, 2)
    out.mul_(attn.to_gate_logits(queries).sigmoid_().mul_(2).unsqueeze(-1))
    projected: Tensor = attn.to_out[0](out.flatten(2))
    return projected


def _feed_forward(ff: Any, x: Tensor) -> Tensor:
    """The MLP, its activation in place: the widest tensor of the model exists once."""
    widen, _, narrow = ff.net
    hidden = torch.ops.aten.gelu_(widen.proj(x), approximate=widen.approximate)
    out: Tensor = narrow(hidden)
    return out


def _rotated(x: Tensor, rope: Rope) -> Tensor:
    """`x` split into heads and rotated, the halves of a head being the two coordinates of a plane.

    Shapes: [B, N, heads * d] -> [B, heads, N, d].
    """
    cos, sin = rope
    halves = x.unflatten(-1, (cos.shape[1], 2, -1)).permute(0, 2, 1, 3, 4)
    out: Tensor = halves * cos.unsqueeze(-2)
    out[..., 0, :].addcmul_(halves[..., 1, :], sin, value=-1)
    out[..., 1, :].addcmul_(halves[..., 0, :], sin)
    return out.flatten(-2)


def _modulated(
    x: Tensor, shift: Tensor, scale: Tensor, lengths: tuple[int, ...], *, out: Tensor | None = None
) -> Tensor:
    """Run by run `x * scale + shift`, written over `x` or into `out`."""
    out = x if out is None else out
    for run, (part, into) in enumerate(_runs(lengths, x, out)):
        torch.addcmul(shift[run], part, scale[run], out=into)
    return out


def _add(x: Tensor, update: Tensor, gate: Tensor, lengths: tuple[int, ...]) -> None:
    """Adds to `x`, run by run, `update * gate`."""
    for run, (part, change) in enumerate(_runs(lengths, x, update)):
        part.addcmul_(change, gate[run])


def _runs(lengths: tuple[int, ...], x: Tensor, y: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    return zip(x.split(lengths, 1), y.split(lengths, 1), strict=True)


def _scaled(context: Tensor, rows: Tensor) -> Tensor:
    """Shapes: context [B, T, D], rows [1, 2, D]."""
    return torch.addcmul(rows[0, 0], context, rows[0, 1])


def _norm(x: Tensor) -> Tensor:
    return F.rms_norm(x, (x.shape[-1],), eps=EPS)


def _layer_norm(x: Tensor) -> Tensor:
    return F.layer_norm(x, (x.shape[-1],), eps=EPS)
