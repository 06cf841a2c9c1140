"""Names of tensors: as the published files spell them, and as the modules of diffusers do."""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final, Literal, get_args

Kind = Literal["transformer", "connectors", "vae", "audio_vae", "vocoder", "upsampler"]
KINDS: Final[tuple[Kind, ...]] = get_args(Kind)


@dataclass(frozen=True)
class _Table:
    """How the names of one component translate.

    `prefixes` are (published, diffusers) beginnings, of which the first that fits is exchanged; `segments` are
    (published, diffusers) dotted parts, exchanged wherever they stand after it.
    """

    prefixes: tuple[tuple[str, str], ...]
    segments: tuple[tuple[str, str], ...] = ()


_DIT: Final = "model.diffusion_model."
_NORMS: Final = (("q_norm", "norm_q"), ("k_norm", "norm_k"))
_STAGES: Final = range(4)
"""Resolutions of the video VAE below the first. Its file counts blocks and resamplers in one list."""

_TABLES: Final[Mapping[Kind, _Table]] = MappingProxyType(
    {
        "connectors": _Table(
            prefixes=(
                ("text_embedding_projection.video_aggregate_embed.", "video_text_proj_in."),
                ("text_embedding_projection.audio_aggregate_embed.", "audio_text_proj_in."),
                (f"{_DIT}video_embeddings_connector.", "video_connector."),
                (f"{_DIT}audio_embeddings_connector.", "audio_connector."),
            ),
            segments=(("transformer_1d_blocks", "transformer_blocks"), *_NORMS),
        ),
        "transformer": _Table(
            prefixes=((_DIT, ""),),
            segments=(
                ("patchify_proj", "proj_in"),
                ("audio_patchify_proj", "audio_proj_in"),
                ("adaln_single", "time_embed"),
                ("audio_adaln_single", "audio_time_embed"),
                ("prompt_adaln_single", "prompt_adaln"),
                ("audio_prompt_adaln_single", "audio_prompt_adaln"),
                ("av_ca_video_scale_shift_adaln_single", "av_cross_attn_video_scale_shift"),
                ("av_ca_audio_scale_shift_adaln_single", "av_cross_attn_audio_scale_shift"),
                ("av_ca_a2v_gate_adaln_single", "av_cross_attn_video_a2v_gate"),
                ("av_ca_v2a_gate_adaln_single", "av_cross_attn_audio_v2a_gate"),
                ("scale_shift_table_a2v_ca_video", "video_a2v_cross_attn_scale_shift_table"),
                ("scale_shift_table_a2v_ca_audio", "audio_a2v_cross_attn_scale_shift_table"),
                *_NORMS,
            ),
        ),
        "vae": _Table(
            prefixes=(
                ("vae.per_channel_statistics.mean-of-means", "latents_mean"),
                ("vae.per_channel_statistics.std-of-means", "latents_std"),
                *(
                    (f"vae.encoder.down_blocks.{2 * i}.res_blocks.", f"encoder.down_blocks.{i}.resnets.")
                    for i in _STAGES
                ),
                *(
                    (f"vae.encoder.down_blocks.{2 * i + 1}.", f"encoder.down_blocks.{i}.downsamplers.0.")
                    for i in _STAGES
                ),
                (f"vae.encoder.down_blocks.{2 * len(_STAGES)}.res_blocks.", "encoder.mid_block.resnets."),
                ("vae.decoder.up_blocks.0.res_blocks.", "decoder.mid_block.resnets."),
                *((f"vae.decoder.up_blocks.{2 * i + 1}.", f"decoder.up_blocks.{i}.upsamplers.0.") for i in _STAGES),
                *(
                    (f"vae.decoder.up_blocks.{2 * i + 2}.res_blocks.", f"decoder.up_blocks.{i}.resnets.")
                    for i in _STAGES
                ),
                ("vae.", ""),
            ),
        ),
        "audio_vae": _Table(
            prefixes=(
                ("audio_vae.per_channel_statistics.mean-of-means", "latents_mean"),
                ("audio_vae.per_channel_statistics.std-of-means", "latents_std"),
                ("audio_vae.", ""),
            ),
        ),
        "vocoder": _Table(
            prefixes=(("vocoder.", ""),),
            segments=(
                ("ups", "upsamplers"),
                ("resblocks", "resnets"),
                ("conv_pre", "conv_in"),
                ("conv_post", "conv_out"),
                ("act_post", "act_out"),
                ("downsample.lowpass", "downsample"),
            ),
        ),
        "upsampler": _Table(prefixes=(("", ""),)),
    }
)


def kind_of(published: str) -> Kind | None:
    """The component that a tensor of the single checkpoint file belongs to, or None if it is of none we know."""
    for kind, table in _TABLES.items():
        if kind != "upsampler" and any(published.startswith(prefix) for prefix, _ in table.prefixes):
            return kind
    return None


def to_diffusers(published: str, kind: Kind) -> str:
    """The name in the module's state dict. Raises: ValueError for a name that is not of `kind`."""
    return _exchange(published, _TABLES[kind], forward=True)


def to_published(name: str, kind: Kind) -> str:
    """The name in the published file. Raises: ValueError for a name that is not of `kind`."""
    return _exchange(name, _TABLES[kind], forward=False)


def _exchange(name: str, table: _Table, *, forward: bool) -> str:
    for published, diffusers in table.prefixes:
        old, new = (published, diffusers) if forward else (diffusers, published)
        if name.startswith(old):
            rest = f".{name.removeprefix(old)}."
            break
    else:
        raise ValueError(f"{name!r} begins with none of {[p[not forward] for p in table.prefixes]}")
    for published, diffusers in table.segments:
        old, new_part = (published, diffusers) if forward else (diffusers, published)
        rest = rest.replace(f".{old}.", f".{new_part}.")
    return new + rest[1:-1]
