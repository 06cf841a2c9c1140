"""One generation from top to bottom, as a generator: it yields Progress, and returns what it made."""

import contextlib
import functools
import logging
import time
from collections.abc import Generator, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Final, TypeVar

import torch
from torch import Tensor

from pipeline import conditioning, decode, expansion, fitting, gemma, text
from pipeline.decoding import CELL
from pipeline.denoise import Conditions, denoise
from pipeline.errors import OutOfMemoryError
from pipeline.loading import Pipeline
from pipeline.mux import FADE_SECONDS, Mp4Writer, padded, provenance
from pipeline.plan import Plan, Stage
from pipeline.safety import Watch
from pipeline.trace import Record, discard
from pipeline.transformer import Context
from pipeline.types import Generated, GenerationRequest, Progress, Size

log = logging.getLogger(__name__)

SAMPLE_RATE: Final = 48_000
DECODE_SHARE: Final = 0.8
"""Of the device's free memory. The rest is for what cuDNN works in and for gaps between tensors."""
T = TypeVar("T")


def generate(
    pipeline: Pipeline, request: GenerationRequest, plan: Plan, *, output: Path, record: Record = discard
) -> Generator[Progress, None, Generated]:
    """Makes one clip and writes it to `output`.

    Closing the generator gives up and leaves no file. `record` takes the intermediate tensors.
    Raises: GenerationError, CallerError.
    """
    seconds: dict[str, float] = {}
    at_once = (
        pipeline.passes_per_call
        if pipeline.room is None
        else pipeline.room.passes_at_once(plan, request, recipe=pipeline.recipe)
    )
    yield from (Progress("plan", 1, 1, message=note) for note in plan.notes)
    if pipeline.model.demo:
        yield Progress("plan", 1, 1, message="made with demo weights: they know camera moves and nothing else")

    watch = Watch(pipeline.safety, asked=request.check_safety, num_frames=plan.num_frames)
    try:
        yield from watch.begin()
        yield from watch.prompt(request.prompt)
        if request.image is not None:
            yield from watch.image(request.image)
        yield Progress("safety", 1, 1)

        words = request.prompt
        if request.expand_prompt:
            began = time.monotonic()
            words = yield from _expanded(pipeline, request)
            seconds["expand"] = time.monotonic() - began
            yield from watch.prompt(words)
        yield Progress("expand", 1, 1)
        if unread := text.surplus(words, text_encoder=pipeline.text_encoder):
            yield Progress("expand", 1, 1, message=f"the prompt is too long: its last {unread} tokens are not read")
        with _timed(seconds, "text_encode"):
            negative = any("uncond" in stage.passes for stage in plan.stages)
            positive_context = _context(pipeline, words)
            negative_context = _context(pipeline, request.negative_prompt) if negative else None
        yield Progress("text_encode", 1, 1)

        latents, audio_latents = yield from _stages(
            pipeline,
            request,
            plan,
            positive=positive_context,
            negative=negative_context,
            record=record,
            seconds=seconds,
            passes_per_call=at_once,
        )
        # nothing that is done with stays on the device while the rest is made
        del positive_context, negative_context

        began = time.monotonic()
        comment = provenance(weights=pipeline.model.weights, seed=request.seed)
        with Mp4Writer(output, size=plan.size, fps=plan.fps, encoding=plan.encoding, comment=comment) as mp4:
            if plan.has_audio:
                waveform = decode.decode_audio(pipeline.audio_vae, pipeline.vocoder, audio_latents)
                record("wave", waveform)
                sound = waveform.float().cpu().numpy()
                if plan.is_slowed:
                    samples = int(plan.num_frames / plan.fps * SAMPLE_RATE)
                    sound = padded(sound, samples=samples, fade=round(FADE_SECONDS * SAMPLE_RATE))
                mp4.audio(sound, sample_rate=SAMPLE_RATE)
            yield from _with_eta(_write_frames(pipeline, latents, plan, mp4, watch=watch, record=record))
        seconds["decode"] = time.monotonic() - began
    except (torch.OutOfMemoryError, MemoryError) as error:
        less = fitting.half(
            plan,
            request,
            recipe=pipeline.recipe,
            room=pipeline.room,
            obtainable=_obtainable(pipeline.model.device),
        )
        raise OutOfMemoryError(
            f"{plan.size} with {plan.num_frames} frames does not fit the device: {error}",
            context={"offers": less.words},
        ) from error

    return Generated(
        path=output,
        prompt=words,
        seed=request.seed,
        size=plan.size,
        num_frames=plan.num_frames,
        fps=float(plan.fps),
        has_audio=plan.has_audio,
        seconds=seconds,
    )


def _expanded(pipeline: Pipeline, request: GenerationRequest) -> Generator[Progress, None, str]:
    """The prompt made of the request's words; by the template where Gemma cannot come to the device to write it."""
    engine, here, reason = pipeline.recipe.expansion, pipeline.writer_here, ""
    with contextlib.ExitStack() as visit:
        if engine == "gemma" and here is None:
            reason = f"with residency {pipeline.model.residency!r} it stays on the host here"
        elif engine == "gemma" and here is not None:
            try:
                visit.enter_context(here())
            except torch.OutOfMemoryError as error:
                # why: the clip can be made without it
                log.warning("gemma found no room on the device", exc_info=error)
                reason = "others leave it no room on the device now"
        if reason:
            engine = "template"
            yield Progress("expand", 1, 1, message=f"gemma writes no prompt: {reason}")
        return (
            yield from expansion.expand(
                request.prompt,
                engine=engine,
                write=functools.partial(gemma.write, pipeline.text_encoder),
                image=request.image,
                seed=request.seed,
            )
        )


def _stages(
    pipeline: Pipeline,
    request: GenerationRequest,
    plan: Plan,
    *,
    positive: Context,
    negative: Context | None,
    record: Record,
    seconds: dict[str, float],
    passes_per_call: int,
) -> Generator[Progress, None, tuple[Tensor, Tensor]]:
    """Latents of picture and sound, from every stage in turn."""
    rng = torch.Generator("cpu").manual_seed(request.seed)
    latents: Tensor | None = None
    made: list[Tensor] = []
    for index, stage in enumerate(plan.stages):
        named = functools.partial(_under, record, f"stage{index + 1}." if len(plan.stages) > 1 else "")
        with _timed(seconds, "image_encode"):
            image_latents = _image_latents(pipeline, request, stage, record=named)
        yield Progress("image_encode", 1, 1)
        conditions = Conditions(
            positive=positive,
            negative=negative,
            strength=request.strength,
            seed=request.seed,
            image_latents=image_latents,
            latents=latents,
            audio_latents=made[-1] if made else None,
        )
        began = time.monotonic()
        latents, audio_latents = yield from _with_eta(
            denoise(
                pipeline.transformers[stage.lora_strength],
                stage,
                plan=plan,
                semantics=pipeline.recipe.semantics,
                conditions=conditions,
                rng=rng,
                record=named,
                passes_per_call=passes_per_call,
            )
        )
        seconds["denoise"] = seconds.get("denoise", 0) + time.monotonic() - began
        made.append(audio_latents)
        if stage is not plan.stages[-1]:
            with _timed(seconds, "upsample"):
                latents = decode.upsampled(pipeline.upsampler, pipeline.vae, latents)
            record("upsampled", latents)
            yield Progress("upsample", 1, 1)
    if latents is None:
        raise ValueError("a plan has at least one stage")
    audio_latents = made[0] if pipeline.recipe.sound == "first" else made[-1]
    record("video_latent", latents)
    record("audio_latent", audio_latents)
    return latents, audio_latents


def _image_latents(pipeline: Pipeline, request: GenerationRequest, stage: Stage, *, record: Record) -> Tensor | None:
    if request.image is None:
        return None
    size = Size(stage.width * CELL, stage.height * CELL)
    recipe = pipeline.recipe
    picture = conditioning.pixels(
        request.image, size=size, crf=recipe.image_crf, fit=recipe.image_fit, longest=recipe.image_longest
    )
    latents = decode.encode(pipeline.vae, picture)
    record("image_pixels", picture)
    record("image_latent", latents)
    return latents


def _under(record: Record, prefix: str, name: str, tensor: Tensor) -> None:
    record(prefix + name, tensor)


def decode_memory(device: torch.device | str) -> int | None:
    """Bytes that decoding may take on `device`; None where it may take what it likes, on the host."""
    obtainable = _obtainable(device)
    return None if obtainable is None else int((obtainable - torch.cuda.memory_allocated(device)) * DECODE_SHARE)


def held(device: torch.device | str) -> int:
    """Bytes of `device` that this process holds for tensors; 0 of the host."""
    return torch.cuda.memory_reserved(device) if torch.device(device).type == "cuda" else 0


def _obtainable(device: torch.device | str) -> int | None:
    """Bytes of `device` that this process holds or could have; None on the host."""
    if torch.device(device).type != "cuda":
        return None
    free, _ = torch.cuda.mem_get_info(device)
    return int(free + held(device))


def _write_frames(
    pipeline: Pipeline,
    latents: Tensor,
    plan: Plan,
    mp4: Mp4Writer,
    *,
    watch: Watch,
    record: Record,
) -> Generator[Progress, None, None]:
    kept = []
    done = 0
    how = plan.decoding
    if how.tiles is None:
        chunks = decode.decode(pipeline.vae, latents, latent_frames=how.latent_frames)
    else:
        chunks = yield from decode.decode_in_tiles(pipeline.vae, latents, tiles=how.tiles)
    for chunk in chunks:
        if record is not discard:
            kept.append(chunk.float())
        pixels = decode.to_bytes(chunk).cpu().numpy()
        yield from watch.frames(pixels, first=done)
        mp4.frames(pixels)
        done += len(chunk)
        yield Progress("decode", done, plan.num_frames)
    yield from watch.end()
    if kept:
        record("frames", torch.cat(kept))


def _context(pipeline: Pipeline, words: str) -> Context:
    return pipeline.contexts.of(words, device=pipeline.model.device)


def _with_eta(steps: Generator[Progress, None, T]) -> Generator[Progress, None, T]:
    """The same progress, each with the seconds that the rest of its stage will take at the pace so far."""
    began = time.monotonic()
    try:
        while True:
            progress = next(steps)
            left = (time.monotonic() - began) / progress.step * (progress.total - progress.step)
            yield replace(progress, eta=left)
    except StopIteration as end:
        made: T = end.value
        return made
    finally:
        steps.close()


@contextlib.contextmanager
def _timed(seconds: dict[str, float], stage: str) -> Iterator[None]:
    began = time.monotonic()
    yield
    seconds[stage] = seconds.get(stage, 0) + time.monotonic() - began
