"""How much memory of the device a clip takes, in closed form: weights by part, activations by phase, what fits.

The closed forms are those of eager PyTorch on CUDA with fused RMSNorm and attention. They are held equal to what a
whole request is seen to take at the real size (`benchmarks/fake_request.py`).
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Final, Literal

from pipeline.decoding import CELL, fitting
from pipeline.flops import PUBLISHED, TransformerSize
from pipeline.plan import Plan

GB: Final = 10**9
RESERVE: Final = 2 * GB
"""Kept free for what no tensor accounts for: the CUDA context, the libraries' workspaces, fragmentation."""
SLOTS: Final = 2
"""Blocks on the device at once where they are streamed: one computes while the next arrives."""
LARGE: Final = 2**18
"""Bytes from which a block's tensor waits on the host. The small ones, such as tables and biases, stay."""
Writer = Literal["resident", "visitor", "alone", "none"]
"""How the text encoder comes to write a prompt: it is on the device; it comes over whole; so it does, while all else
waits on the host; it stays there, and the template engine writes."""
BFLOAT16: Final = 2
FLOAT32: Final = 4


@dataclass(frozen=True, slots=True)
class Part:
    """Weights of one model. Units: bytes."""

    whole: int
    linears: int = 0
    """Of the Linears in its blocks, which fp8 halves."""
    blocks: int = 0
    """Of the tensors in its blocks that wait on the host where blocks are streamed."""
    block: int = 0
    """Of those in its largest block."""

    def streamed(self) -> int:
        """On the device while its blocks are brought over in turns."""
        return self.whole - self.blocks + SLOTS * self.block

    def in_fp8(self) -> int:
        """With its Linears in eight bits."""
        return self.whole - self.linears // 2


@dataclass(frozen=True, slots=True)
class Weights:
    """Every model that a recipe loads, as it is when all of it is resident."""

    transformer: Part
    """All of them, where a recipe needs more than one."""
    text_encoder: Part
    connectors: Part
    others: Mapping[str, int]
    """Bytes of what always stays on the device."""
    fp8: bool = False
    """Whether Linears of the transformer are in fp8 whatever the residency: its file has them so."""


PUBLISHED_WEIGHTS: Final = Weights(
    transformer=Part(37_977_676_288, linears=37_100_716_032, blocks=37_081_841_664, block=772_538_368),
    text_encoder=Part(24_374_683_874, linears=21_516_779_520, blocks=21_516_779_520, block=448_266_240),
    connectors=Part(6_344_455_168, blocks=4_028_628_992, block=503_578_624),
    others={
        "vae": 1_452_212_450,
        "audio_vae": 106_496_804,
        "vocoder": 516_340_300,
    },
)
"""LTX-2.3 and Gemma 3 12B in bfloat16, the vocoder in float32."""
UPSAMPLER: Final = 995_735_808


@dataclass(frozen=True, slots=True)
class Residency:
    """What stays on the device while it denoises."""

    name: str
    text_waits: bool = False
    """The text encoder waits on the host; to read, it comes over layer by layer."""
    blocks_wait: bool = False
    """So do the transformer's blocks, and the connectors, which are there only while a prompt is read."""
    transformer_fp8: bool = False
    text_fp8: bool = False


RESIDENCIES: Final = (
    Residency("resident"),
    Residency("evict-text", text_waits=True),
    Residency("fp8", transformer_fp8=True, text_fp8=True),
    Residency("fp8-evict-text", transformer_fp8=True, text_waits=True),
    Residency("stream", text_waits=True, blocks_wait=True),
)
"""In the order of preference: by how little each slows a clip down. What takes less memory depends on the files."""


def named(name: str) -> Residency:
    """The residency called `name`. Raises: KeyError."""
    return {residency.name: residency for residency in RESIDENCIES}[name]


def on_device(weights: Weights, residency: Residency) -> dict[str, int]:
    """Bytes of weights on the device while it denoises, by part."""
    transformer, text = weights.transformer, weights.text_encoder
    if residency.blocks_wait:
        held = transformer.streamed()
    else:
        held = transformer.in_fp8() if residency.transformer_fp8 else transformer.whole
    reading = text.in_fp8() if residency.text_fp8 else text.whole
    return {
        "transformer": held,
        "text_encoder": 0 if residency.text_waits else reading,
        "connectors": 0 if residency.blocks_wait else weights.connectors.whole,
        **weights.others,
    }


def smaller(weights: Weights, residency: Residency) -> tuple[str, ...]:
    """Names of the residencies that keep fewer bytes of `weights` on the device, from most to least."""
    held = {other.name: sum(on_device(weights, other).values()) for other in RESIDENCIES}
    fewer = (name for name, size in held.items() if size < held[residency.name])
    return tuple(sorted(fewer, key=lambda name: -held[name]))


def activations(
    plan: Plan, weights: Weights, *, passes_per_call: int, residency: Residency, size: TransformerSize = PUBLISHED
) -> dict[str, int]:
    """Most bytes that live at once beside the weights that stay, by phase; that of writing the prompt is not here."""
    stages = plan.stages
    cells = max(stage.height * stage.width for stage in stages)
    pixels = cells * CELL**2
    latents = plan.latent_frames * cells * size.channels * FLOAT32
    context = size.context_tokens * (size.video + size.audio) * BFLOAT16
    return {
        "text": _text(size.context_tokens, weights, residency),
        "image_encode": 182 * pixels + context + (latents if len(stages) > 1 else 0),
        "denoise": _denoise(plan, weights, passes_per_call=passes_per_call, residency=residency, size=size),
        **({"upsample": 8_384 * plan.latent_frames * cells + context} if len(stages) > 1 else {}),
        "sound": 1_731_000 * plan.audio_tokens + latents,
        "decode": plan.decoding.peak(plan.size, value_bytes=BFLOAT16),
    }


_LAYERS_OF_GEMMA: Final = 49
_WIDTH_OF_GEMMA: Final = 3_840
_LAYER_OF_GEMMA: Final = 100_000_000
"""What a layer works in while it reads 1,024 tokens."""
_WRITING: Final = 1_150_000_000
"""What Gemma works in while it writes: its cache, of the longest prompt and answer, and the first of its forwards."""


def _text(tokens: int, weights: Weights, residency: Residency) -> int:
    """Gemma's: states of all its layers. The connectors', after it: these, normalised, and side by side."""
    states = tokens * _LAYERS_OF_GEMMA * _WIDTH_OF_GEMMA * BFLOAT16
    gemma = states + _LAYER_OF_GEMMA + (SLOTS * weights.text_encoder.block if residency.text_waits else 0)
    visiting = weights.connectors.streamed() if residency.blocks_wait else 0
    return max(gemma, int(2.9 * states) + 50_000_000 + visiting)


def _written(weights: Weights, residency: Residency, *, beside: int, left: int | None) -> tuple[Writer, int]:
    """How the text encoder writes a prompt in the `left` bytes beside the weights that stay, and what it adds to them.

    Units: `beside` bytes of those weights; None stands for no bound.
    """
    if not residency.text_waits:
        return "resident", _WRITING
    visitor = weights.text_encoder.whole + _WRITING
    if not residency.blocks_wait and (left is None or visitor <= left):
        return "visitor", visitor
    if not residency.blocks_wait and left is not None and visitor - beside <= left:
        return "alone", visitor - beside
    return "none", 0


def _denoise(
    plan: Plan, weights: Weights, *, passes_per_call: int, residency: Residency, size: TransformerSize
) -> int:
    """Of the stage that takes most."""
    return max(
        _denoise_stage(
            plan.latent_frames * stage.height * stage.width,
            min(passes_per_call, len(stage.passes)),
            all_passes=len(stage.passes),
            file_fp8=weights.fp8,
            fp8=weights.fp8 or residency.transformer_fp8,
            size=size,
        )
        for stage in plan.stages
    )


def _denoise_stage(
    tokens: int, rows: int, *, all_passes: int, file_fp8: bool, fp8: bool, size: TransformerSize
) -> int:
    """Seven times the video's tokens at the model's width in each pass of a call: the MLP, or attention with RoPE.

    With Linears in fp8 what the MLP's second one takes is the most of what it takes on any device.
    """
    context = size.context_tokens * (size.video + size.audio) * BFLOAT16
    rope = tokens * (size.video + size.audio) * BFLOAT16
    states = 4 * tokens * size.channels * FLOAT32
    modulation = size.layers * 303_000
    widest = 4 * size.video**2
    # without eight-bit products, or scales for inputs, the weight is float32 and bfloat16 for a moment
    dequantised = widest * (FLOAT32 + BFLOAT16) if fp8 else 0
    wide = rows * tokens * size.video * BFLOAT16
    # with both, which the published files have, there is a copy of the input in eight bits: four times as many values
    quantised = 2 * wide if file_fp8 else 0
    return 6 * wide + max(wide + quantised, dequantised) + (all_passes + 1) * context + rope + states + modulation


@dataclass(frozen=True, slots=True)
class Need:
    """What one residency takes. Units: bytes."""

    residency: Residency
    weights: Mapping[str, int]
    phases: Mapping[str, int]
    """Activations, and what visits the device for the phase."""
    passes_per_call: int
    """Passes that go through the transformer at once."""
    writer: Writer

    @property
    def stays(self) -> int:
        """Weights on the device while it denoises."""
        return sum(self.weights.values())

    @property
    def peak(self) -> int:
        """Most at any time."""
        return self.stays + max(self.phases.values())

    def fits(self, memory: int) -> bool:
        """Whether a device with so many bytes can hold it, with some to spare."""
        return self.peak + RESERVE <= memory


def needs(
    plan: Plan,
    weights: Weights,
    *,
    memory: int | None,
    passes_per_call: int = 0,
    size: TransformerSize = PUBLISHED,
) -> Iterator[Need]:
    """What each residency takes, in the order of preference, with what it leaves of `memory` made use of.

    In that it decodes, and sends as many passes through the transformer at once as have room, but no more than
    `passes_per_call`, of which 0 is all.
    Units: `memory` bytes of the device, None standing for no bound.
    """
    most = max(len(stage.passes) for stage in plan.stages)
    at_most = min(passes_per_call or most, most)
    for residency in RESIDENCIES:
        held = on_device(weights, residency)
        left = None if memory is None else memory - sum(held.values()) - RESERVE
        decoded = replace(plan, decoding=fitting(plan.size, memory=left, value_bytes=BFLOAT16))
        at_once = next(
            (
                count
                for count in range(at_most, 1, -1)
                if left is None
                or _denoise(plan, weights, passes_per_call=count, residency=residency, size=size) <= left
            ),
            1,
        )
        phases = activations(decoded, weights, passes_per_call=at_once, residency=residency, size=size)
        writer, writing = _written(weights, residency, beside=sum(held.values()), left=left)
        yield Need(residency, held, {"expand": writing, **phases}, at_once, writer)


def chosen(needed: Iterator[Need], *, memory: int) -> Need | None:
    """The first that fits a device with so many bytes, or None."""
    return next((need for need in needed if need.fits(memory)), None)
