"""Floating-point operations of the model, in closed form: what a matrix product or an attention costs, added up.

A multiplication and an addition count as two. Norms, activations and modulation are left out: well under 1 %.
"""

from dataclasses import dataclass
from typing import Final

from pipeline.decoding import CELL
from pipeline.plan import Plan


@dataclass(frozen=True, slots=True)
class TransformerSize:
    """Widths of the transformer.

    Source: `config` in the metadata of ltx-2.3-22b-dev.safetensors.
    """

    layers: int
    video: int
    audio: int
    heads: int
    channels: int
    """Of a token of latents, in both streams."""
    context_tokens: int


PUBLISHED: Final = TransformerSize(layers=48, video=4096, audio=2048, heads=32, channels=128, context_tokens=1024)


def transformer_forward(video_tokens: int, audio_tokens: int, *, size: TransformerSize = PUBLISHED) -> int:
    """One forward of one pass."""
    n, m, t = video_tokens, audio_tokens, size.context_tokens
    d, a = size.video, size.audio
    block = (
        _attention(size, queries=n, keys=n, query_dim=d, key_dim=d, inner=d)
        + _attention(size, queries=n, keys=t, query_dim=d, key_dim=d, inner=d)
        + _attention(size, queries=m, keys=m, query_dim=a, key_dim=a, inner=a)
        + _attention(size, queries=m, keys=t, query_dim=a, key_dim=a, inner=a)
        + _attention(size, queries=n, keys=m, query_dim=d, key_dim=a, inner=a)
        + _attention(size, queries=m, keys=n, query_dim=a, key_dim=d, inner=a)
        + 2 * (_linear(n, d, 4 * d) + _linear(m, a, 4 * a))
    )
    ends = 2 * (_linear(n, size.channels, d) + _linear(m, size.channels, a))
    return size.layers * block + ends


def _linear(rows: int, inside: int, outside: int) -> int:
    return 2 * rows * inside * outside


def _attention(size: TransformerSize, *, queries: int, keys: int, query_dim: int, key_dim: int, inner: int) -> int:
    """Projections of queries, keys, values and the output, the gate, and the two products of the attention."""
    return (
        2 * _linear(queries, query_dim, inner)
        + 2 * _linear(keys, key_dim, inner)
        + _linear(queries, query_dim, size.heads)
        + 4 * queries * keys * inner
    )


def request(plan: Plan, *, size: TransformerSize = PUBLISHED) -> dict[str, int]:
    """Every phase of one request whose prompts have not been read before.

    Source of what is counted for other sizes than the transformer's: operators on the meta device, at 1280x704 with
    121 frames and 1,024 tokens of text, each grown with the clip's pixels, frames or seconds.
    """
    stages = plan.stages
    pixels = stages[-1].height * stages[-1].width * CELL**2
    found = {
        "text": prompts(plan) * (_GEMMA + _CONNECTORS),
        "image_encode": sum(_ENCODE_PIXEL * stage.height * stage.width * CELL**2 for stage in stages),
        "denoise": sum(
            stage.calls
            * len(stage.passes)
            * transformer_forward(plan.latent_frames * stage.height * stage.width, plan.audio_tokens, size=size)
            for stage in stages
        ),
    }
    if len(stages) > 1:
        found["upsample"] = _UPSAMPLE_TOKEN * plan.latent_frames * pixels // CELL**2
    return found | {
        "sound": _SOUND_TOKEN * plan.audio_tokens,
        "decode": _DECODE_PIXEL * pixels * plan.num_frames,
    }


def prompts(plan: Plan) -> int:
    """Prompts that are read for one request, if none of them was before."""
    return 2 if any("uncond" in stage.passes for stage in plan.stages) else 1


_GEMMA: Final = 24_000_000_000_000
_CONNECTORS: Final = 6_700_000_000_000
_ENCODE_PIXEL: Final = 3_900_000_000_000 // (1280 * 704)
_UPSAMPLE_TOKEN: Final = 8_400_000_000_000 // 14_080
_SOUND_TOKEN: Final = 1_400_000_000_000 // 126
_DECODE_PIXEL: Final = 269_000_000_000_000 // (1280 * 704 * 121)
