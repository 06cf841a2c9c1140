"""What of a recipe's models fits a device, told from the headers of its files."""

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Final

from pipeline import memory
from pipeline.errors import NoRoomError, OperatorError, OverMemoryError
from pipeline.flops import TransformerSize
from pipeline.memory import Need, Part, Residency, Weights
from pipeline.offers import Offers, offers
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

    def passes_at_once(self, plan: Plan, request: GenerationRequest, *, recipe: Recipe) -> int:
        """Passes that go through the transformer at once: as many as the device has room for beside this residency.

        `plan` is that of `request`.
        Raises: NoRoomError if it has room for none, but with another residency; OverMemoryError if with none; before
        anything is computed.
        """
        needed = {need.residency.name: need for need in self._needs(plan, room=self.memory)}
        here = needed[self.residency.name]
        if here.fits(self.memory):
            return here.passes_per_call
        clip, has = _clip(plan), f"the device has {_gb(self.memory)}"
        if (fitting := memory.chosen(iter(needed.values()), memory=self.memory)) is not None:
            raise NoRoomError(
                f"{clip} needs {_gb(here.peak + memory.RESERVE)} with residency {self.residency.name!r}; {has}. "
                f"It fits with residency {fitting.residency.name!r}",
                context={"residency": fitting.residency.name},
            )
        found = offers(request, recipe, fits=self.can_make)
        # why: what the models were loaded for fits, and something must be said
        words = " or ".join(found.words) or _clip(ordinary(recipe))
        least = min(need.peak for need in needed.values()) + memory.RESERVE
        raise OverMemoryError(
            f"{clip} needs at least {_gb(least)} of memory; {has}: {words} would fit",
            field="num_frames" if request.size is None else "size",
            context={"max_num_frames": found.num_frames or 0},
        )

    def can_make(self, plan: Plan, *, of: int | None = None) -> bool:
        """Whether the device can make a clip with some residency, in all of its memory, or `of` so many bytes."""
        room = self.memory if of is None else of
        return memory.chosen(self._needs(plan, room=room), memory=room) is not None

    def _needs(self, plan: Plan, *, room: int) -> Iterator[Need]:
        return memory.needs(plan, self.weights, memory=room, passes_per_call=self.passes_per_call, size=self.size)


def half(
    plan: Plan, request: GenerationRequest, *, recipe: Recipe, room: Room | None, obtainable: int | None
) -> Offers:
    """Clips of at most half the latent tokens of `plan` that are reckoned to fit what the device has for them.

    Units: `obtainable` bytes that others leave of the device, None where that is not known.
    """
    most = plan.latent_tokens // 2
    return offers(
        request,
        recipe,
        fits=lambda it: it.latent_tokens <= most and (room is None or room.can_make(it, of=obtainable)),
    )


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
        fp8=keep_fp8 and any(stored.dtype == fp8.DTYPE for stored in transformer.values()),
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


def choose(name: str, needed: Iterable[Need], *, room: int | None, clip: Plan | None = None) -> Need:
    """What the residency called `name` needs; for "auto" what the first needs that fits.

    `needed` is for `clip`, by default the recipe's ordinary one. Units: `room` bytes, None standing for no bound.
    Raises: OperatorError if what is asked for, or anything at all, does not fit.
    """
    needed = tuple(needed)
    asked = [need for need in needed if name in {"auto", need.residency.name}]
    if room is None:
        return asked[0]
    if (fitting := memory.chosen(iter(asked), memory=room)) is not None:
        return fitting
    other = memory.chosen(iter(needed), memory=room)
    ways = (
        *(() if other is None else (f"LTX_RESIDENCY={other.residency.name}",)),
        *(() if clip is None else ("a smaller or shorter clip",)),
        "another recipe or a larger device",
    )
    made = "the recipe's ordinary clip" if clip is None else _clip(clip)
    least = min(need.peak for need in asked) + memory.RESERVE
    raise OperatorError(
        f"{made} needs {_gb(least)} of memory"
        f"{'' if name == 'auto' else f' with residency {name!r}'}, and the device has {_gb(room)}: "
        f"use {', '.join(ways)}; see ltxd plan"
    )


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


def _clip(plan: Plan) -> str:
    return f"{plan.size} with {plan.num_frames} frames"


def _gb(size: int) -> str:
    return f"{size / memory.GB:.1f} GB"
