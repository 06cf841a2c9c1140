"""A recipe and its models, from the files to the devices they work on."""

import contextlib
import functools
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import torch
from torch import nn

from pipeline import fitting, safety, selftest, text
from pipeline.device import work_on
from pipeline.errors import OperatorError, OutOfMemoryError, WeightsError
from pipeline.memory import Need, Residency, Writer, needs, smaller
from pipeline.plan import Plan
from pipeline.recipe import Recipe
from pipeline.residency import move, stream_blocks, to_fp8, visiting_connectors, visiting_text_encoder
from pipeline.safety import Safety
from pipeline.transformer import Context
from pipeline.types import DEFAULT_NEGATIVE_PROMPT, LoadedModel
from weights.checkpoint import Checkpoint, load_component
from weights.errors import WeightsFileError
from weights.lora import fuse_lora
from weights.pairs import check_files
from weights.text_encoder import TextEncoder, TextEncoderFiles, load_text_encoder

log = logging.getLogger(__name__)

Here = Callable[[], AbstractContextManager[None]]
"""Keeps what is used on the device for as long as it is."""
_DTYPES: Final = {"float32": torch.float32, "bfloat16": torch.bfloat16}


@dataclass(frozen=True)
class Pipeline:
    """A recipe and its models, loaded."""

    recipe: Recipe
    model: LoadedModel
    text_encoder: TextEncoder
    connectors: nn.Module
    transformers: Mapping[float, nn.Module]
    """By the strength of the LoRA fused into them."""
    vae: nn.Module
    audio_vae: nn.Module
    vocoder: nn.Module
    contexts: text.Contexts
    writer_here: Here | None = contextlib.nullcontext
    """Keeps the text encoder whole on the device while it writes a prompt; None where there is no room for it."""
    passes_per_call: int = 0
    """Passes that go through a transformer at once, at most; 0: all. Fewer where `room` has none for more."""
    room: fitting.Room | None = None
    """None where memory has no bound that is known."""
    upsampler: nn.Module | None = None
    safety: Safety = Safety()  # noqa: RUF009 frozen


def start(
    recipe: Recipe,
    *,
    models: Path,
    classifier: Path | None,
    threshold: float,
    forced: bool,
    device: str = "auto",
    dtype: str = "auto",
    residency: str = "auto",
    keep_fp8: bool = True,
    passes_per_call: int = 0,
    clip: Plan | None = None,
) -> Pipeline:
    """What `recipe` names, as `load` has it, and the safety checker, as `safety.load` has it. Raises: as `load`."""
    return replace(
        load(
            recipe,
            models=models,
            device=device,
            dtype=dtype,
            residency=residency,
            keep_fp8=keep_fp8,
            passes_per_call=passes_per_call,
            clip=clip,
        ),
        safety=safety.load(classifier=classifier, threshold=threshold, forced=forced),
    )


def load(
    recipe: Recipe,
    *,
    models: Path,
    device: str = "auto",
    dtype: str = "auto",
    residency: str = "auto",
    keep_fp8: bool = True,
    passes_per_call: int = 0,
    clip: Plan | None = None,
    memory: int | None = None,
) -> Pipeline:
    """Loads what `recipe` names from the folder `models`.

    `device` "auto" is CUDA where there is one, and becomes this thread's current device; for `dtype` see `dtype_on`.
    Weights that the checkpoint has in fp8 stay so with `keep_fp8`, and take `dtype` without. `residency` "auto" is the
    first with which `clip`, by default the recipe's ordinary one, fits `memory` bytes, by default what the CUDA device
    has; on the CPU there is no bound.
    Of the passes, as many as fit `memory` go through the transformer at once, at most `passes_per_call` if not 0.
    Raises: WeightsError if a file is missing or does not fit; OperatorError if residency or dtype cannot be had;
    OutOfMemoryError if the device runs out of memory nevertheless.
    """
    began = time.monotonic()
    place = work_on(device)
    kind = dtype_on(place, dtype)
    if place.type == "cuda" and (broken := selftest.failures(place, kind)):
        raise OperatorError(f"{place} or its driver computes wrongly: {'; '.join(broken)}. See ltxd selftest")
    if memory is None and place.type == "cuda":
        memory = torch.cuda.get_device_properties(place).total_memory
    try:
        check_files(
            checkpoint=models / recipe.checkpoint,
            text_encoder=models / recipe.text_encoder,
            lora=models / recipe.lora if recipe.lora else None,
            upsampler=models / recipe.upsampler if recipe.upsampler else None,
        )
        checkpoint = Checkpoint.open(models / recipe.checkpoint)
        upsampler = Checkpoint.open(models / recipe.upsampler) if recipe.upsampler else None
        strengths = sorted({stage.lora_strength for stage in recipe.stages})
        taken = fitting.weights_of(
            checkpoint,
            TextEncoderFiles.open(models / recipe.text_encoder),
            upsampler=upsampler,
            transformers=len(strengths),
            itemsize=kind.itemsize,
            keep_fp8=keep_fp8,
        )
        size = fitting.size_of(checkpoint)
        needed = needs(
            clip or fitting.ordinary(recipe), taken, memory=memory, passes_per_call=passes_per_call, size=size
        )
        need = fitting.choose(residency, needed, room=memory, clip=clip)
        home = need.residency
        transformers = {
            strength: _transformer(
                checkpoint,
                models / recipe.lora,
                strength=strength,
                dtype=kind,
                keep_fp8=keep_fp8,
                place=place,
                home=home,
            )
            for strength in strengths
        }
        connectors, connectors_here = _connectors(checkpoint, dtype=kind, place=place, home=home)
        parts: dict[str, Any] = {
            "transformers": transformers,
            "connectors": connectors,
            "vae": load_component(checkpoint, "vae", dtype=kind, device=place),
            "audio_vae": load_component(checkpoint, "audio_vae", dtype=kind, device=place),
            "vocoder": load_component(checkpoint, "vocoder", dtype=torch.float32, device=place),
        }
        if upsampler is not None:
            parts["upsampler"] = load_component(upsampler, "upsampler", dtype=kind, device=place)
        others = [*transformers.values(), *(part for part in parts.values() if isinstance(part, nn.Module))]
        text_encoder, reader_here, parts["writer_here"] = _text_encoder(
            models / recipe.text_encoder, dtype=kind, place=place, need=need, others=others
        )

        def encode(prompt: str) -> Context:
            with reader_here():
                states = text.read(prompt, text_encoder=text_encoder)
            with connectors_here():
                return text.context(states, connectors=connectors)

        contexts = text.Contexts(encode)
        contexts.keep(DEFAULT_NEGATIVE_PROMPT)
    except torch.OutOfMemoryError as error:
        raise OutOfMemoryError(
            f"the models do not fit with residency {home.name!r}: {error}", context={"smaller": smaller(taken, home)}
        ) from error
    except WeightsFileError as error:
        fix = "" if error.fix else f". To mend it: {recipe.setup}"
        raise WeightsError(f"recipe {recipe.name!r}: {error}{fix}") from error
    if memory is not None:
        parts["room"] = fitting.Room(
            memory=memory, weights=taken, residency=home, size=size, passes_per_call=passes_per_call
        )

    name = "demo weights" if checkpoint.is_demo else f"LTX-{checkpoint.model_version}"
    seconds = time.monotonic() - began
    log.info("recipe %s: %s from %s on %s in %.1f s", recipe.name, name, checkpoint.path.name, place, seconds)
    return Pipeline(
        recipe=recipe,
        model=LoadedModel(
            recipe=recipe.name,
            weights=name,
            demo=checkpoint.is_demo,
            device=str(place),
            seconds=seconds,
            residency=home.name,
            smaller=smaller(taken, home),
        ),
        text_encoder=text_encoder,
        contexts=contexts,
        passes_per_call=passes_per_call,
        **parts,
    )


def dtype_on(place: torch.device, name: str) -> torch.dtype:
    """The dtype called `name` if models can be in it on `place`; for "auto" bfloat16 on a GPU, float32 on the CPU.

    Raises: OperatorError.
    """
    if name == "float32" and place.type == "cuda":
        # why: activations are reckoned in bfloat16 when it is told what fits
        raise OperatorError("float32 is for the CPU: on a GPU it is bfloat16. Use --dtype auto, or --device cpu")
    return _DTYPES[("float32" if place.type == "cpu" else "bfloat16") if name == "auto" else name]


def _transformer(
    checkpoint: Checkpoint,
    lora: Path,
    *,
    strength: float,
    dtype: torch.dtype,
    keep_fp8: bool,
    place: torch.device,
    home: Residency,
) -> nn.Module:
    """A transformer with its LoRA, where and how `home` has it."""
    # what is going to be smaller on the device may not fit it as it is
    first = torch.device("cpu") if home.blocks_wait or home.transformer_fp8 else place
    transformer = load_component(checkpoint, "transformer", dtype=dtype, device=first, keep_fp8=keep_fp8)
    if strength:
        fuse_lora(transformer, lora, strength=strength)
    if home.transformer_fp8:
        to_fp8(transformer, "transformer_blocks")
    if home.blocks_wait:
        stream_blocks(transformer, device=place)
        return transformer
    move(transformer, place)
    return transformer


def _connectors(
    checkpoint: Checkpoint, *, dtype: torch.dtype, place: torch.device, home: Residency
) -> tuple[nn.Module, Here]:
    """The connectors, and what keeps them on the device while they are used."""
    if not home.blocks_wait:
        return load_component(checkpoint, "connectors", dtype=dtype, device=place), contextlib.nullcontext
    connectors = load_component(checkpoint, "connectors", dtype=dtype, device="cpu")
    return connectors, visiting_connectors(connectors, device=place).by_turns


def _text_encoder(
    path: Path, *, dtype: torch.dtype, place: torch.device, need: Need, others: Sequence[nn.Module]
) -> tuple[TextEncoder, Here, Here | None]:
    """The text encoder, what keeps it on the device while it reads, and while it writes where there is room for that.

    `others` may have to wait on the host meanwhile.
    """
    home = need.residency
    first = torch.device("cpu") if home.text_waits or home.text_fp8 else place
    encoder = load_text_encoder(path, dtype=dtype, device=first)
    if home.text_waits:
        visitor = visiting_text_encoder(encoder.model, device=place)
        writing: dict[Writer, Here] = {
            "visitor": visitor.whole,
            "alone": functools.partial(visitor.whole, instead_of=others),
        }
        return encoder, visitor.by_turns, writing.get(need.writer)
    if home.text_fp8:
        to_fp8(encoder.model, "model.language_model.layers")
    move(encoder.model, place)
    return encoder, contextlib.nullcontext, contextlib.nullcontext
