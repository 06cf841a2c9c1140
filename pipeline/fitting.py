"""What of a recipe's models fits a device, told from the headers of its files."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final

from pipeline import memory
from pipeline.errors import OperatorError, OutOfMemoryError
from pipeline.flops import TransformerSize
from pipeline.memory import Need, Part, Residency, Weights
from pipeline.plan import Plan, make_plan
from pipeline.recipe import Recipe
from pipeline.types import GenerationRequest, Size
from weights import fp8
from weights.checkpoint import Checkpoint
from weights.header import Stored
from weights.text_encoder import TextEncoderFiles

_CLIP_FRAMES: Final = 121


@dataclass(frozen=True, slots=True)
class Room:
    """A device's memory, and what the loaded models take of it. Units: bytes."""

    memory: int
    weights: Weights
    residency: Residency
    size: TransformerSize
    passes_per_call: int
    """At most; 0: all."""

    def passes_at_once(self, plan: Plan) -> int:
        """Passes that go through the transformer at once: as many as the device has room for beside this residency.

        Raises: OutOfMemoryError before anything is computed, if it has no room for one.
        """
        [need] = [
            need
            for need in memory.needs(
                plan, self.weights, memory=self.memory, passes_per_call=self.passes_per_call, size=self.size
            )
            if need.residency == self.residency
        ]
        if not need.fits(self.memory):
            raise OutOfMemoryError(
                f"{plan.size} at {plan.num_frames} frames needs {_gb(need.peak + memory.RESERVE)} with residency "
                f"{self.residency.name!r}; the device has {_gb(self.memory)}. A smaller or shorter clip needs less: "
                "see ltxd plan"
            )
        return need.passes_per_call


def weights_of(
    checkpoint: Checkpoint,
    text: TextEncoderFiles,
    *,
    upsampler: Checkpoint | None,
    transformers: int,
    itemsize: int,
    keep_fp8: bool = True,
) -> Weights:
    """Bytes of every model once loaded, with floats of `itemsize` bytes but for what stays in fp8."""
    others = {
        kind: sum(_bytes(checkpoint.tensors[name], itemsize) for name in checkpoint.tensor_names(kind))
        for kind in ("vae", "audio_vae")
    }
    others["vocoder"] = sum(_bytes(checkpoint.tensors[n], memory.FLOAT32) for n in checkpoint.tensor_names("vocoder"))
    if upsampler is not None:
        others["upsampler"] = sum(_bytes(stored, itemsize) for stored in upsampler.tensors.values())
    transformer, connectors = (
        {name: checkpoint.tensors[name] for name in checkpoint.tensor_names(kind)}
        for kind in ("transformer", "connectors")
    )
    return Weights(
        transformer=_part(
            transformer, within=".transformer_blocks.", itemsize=itemsize, copies=transformers, keep_fp8=keep_fp8
        ),
        text_encoder=_part(
            text.tensors, within=".language_model.layers.", itemsize=itemsize, copies=1, keep_fp8=False
        ),
        connectors=_part(connectors, within=".transformer_1d_blocks.", itemsize=itemsize, copies=1, keep_fp8=keep_fp8),
        others=others,
    )


def size_of(checkpoint: Checkpoint) -> TransformerSize:
    """Widths of the transformer."""
    shapes = checkpoint.shapes
    layers = {name.split(".transformer_blocks.")[1].split(".")[0] for name in shapes if ".transformer_blocks." in name}
    video, channels = shapes["model.diffusion_model.patchify_proj.weight"]
    audio, _ = shapes["model.diffusion_model.audio_patchify_proj.weight"]
    heads, _ = shapes["model.diffusion_model.transformer_blocks.0.attn1.to_gate_logits.weight"]
    return TransformerSize(
        layers=len(layers), video=video, audio=audio, heads=heads, channels=channels, context_tokens=1024
    )


def choose(name: str, needed: Iterable[Need], *, room: int | None) -> Need:
    """What the residency called `name` needs; for "auto" what the first needs that fits.

    Units: `room` bytes, None standing for no bound.
    Raises: OperatorError if what is asked for, or anything at all, does not fit.
    """
    needed = tuple(needed)
    if name != "auto":
        needed = tuple(need for need in needed if need.residency.name == name)
    fitting = [need for need in needed if room is None or need.fits(room)]
    if not fitting:
        least = min(need.peak for need in needed) + memory.RESERVE
        raise OperatorError(
            f"the recipe's ordinary clip needs {_gb(least)} of memory"
            f"{'' if name == 'auto' else f' with residency {name!r}'}, and the device has {_gb(room or 0)}: "
            "use LTX_RESIDENCY=auto, another recipe, or a larger device; see ltxd plan"
        )
    return fitting[0]


def ordinary(recipe: Recipe) -> Plan:
    """The clip that a request without a size gets: the recipe's area at 16:9, as long as fal's default, or its cap."""
    request = GenerationRequest(
        prompt="",
        image=None,
        image_size=Size(16, 9),
        seed=0,
        negative_prompt="",
        size=None,
        num_frames=_CLIP_FRAMES,
        fps=24.0,
        steps=recipe.defaults.steps,
        guidance_scale=recipe.defaults.guidance_scale,
        strength=recipe.defaults.strength,
        audio=True,
        expand_prompt=False,
        check_safety=False,
        quality="high",
        write_mode="fast",
    )
    return make_plan(request, recipe)


def _part(tensors: Mapping[str, Stored], *, within: str, itemsize: int, copies: int, keep_fp8: bool) -> Part:
    whole = linears = 0
    blocks: dict[str, int] = {}
    for name, stored in tensors.items():
        size = _bytes(stored, itemsize, keep_fp8=keep_fp8)
        whole += size
        if within not in name:
            continue
        if name.endswith(".weight") and len(stored.shape) == 2 and not (keep_fp8 and stored.dtype == fp8.DTYPE):
            linears += size
        if size >= memory.LARGE:
            block = name.split(within)[1].split(".")[0]
            blocks[block] = blocks.get(block, 0) + size
    return Part(
        copies * whole,
        linears=copies * linears,
        blocks=copies * sum(blocks.values()),
        block=copies * max(blocks.values(), default=0),
    )


def _bytes(stored: Stored, itemsize: int, *, keep_fp8: bool = True) -> int:
    return math.prod(stored.shape) * (1 if keep_fp8 and stored.dtype == fp8.DTYPE else itemsize)


def _gb(size: int) -> str:
    return f"{size / memory.GB:.1f} GB"
