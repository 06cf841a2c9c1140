"""The denoising loop over both streams: noise in, latents out, one `Progress` per transformer call."""

import math
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Final

import torch
from torch import Tensor

from pipeline import samplers
from pipeline.guard import Guard
from pipeline.plan import Plan, Stage
from pipeline.predict import NAMES, Predictor, State, Stream, omissions
from pipeline.recipe import Semantics
from pipeline.trace import Record
from pipeline.transformer import Context, Runs, geometry, positions
from pipeline.types import Progress

STEP_NOISE_SEED: Final = 10_000
"""Added to the request's seed for the noise of ancestral steps, so that it differs from the noise they start from."""
RES_2S_STEP_SEED: Final = -1
RES_2S_MIDDLE_SEED: Final = 9_999
"""Of the noise of res_2s, whatever the request's seed: as the model's authors have it."""
CHANNELS: Final = 128
AUDIO_CHANNELS: Final = 8


@dataclass(frozen=True)
class Conditions:
    """What steers a stage.

    Shapes: `image_latents` [1, 128, 1, H, W]; `latents` and `audio_latents` as `denoise` returns them, at this
    stage's size. Units: `strength` 0 to 1.
    """

    positive: Context
    negative: Context | None
    """None where the stage never looks at it."""
    strength: float
    seed: int
    image_latents: Tensor | None = None
    """None: from the prompt alone."""
    latents: Tensor | None = None
    """What the stage before made; None in the first, which begins with noise alone."""
    audio_latents: Tensor | None = None


def patchify(latents: Tensor) -> Tensor:
    """Tokens of latents. Shapes: [B, C, F, H, W] -> [B, F*H*W, C]."""
    return latents.flatten(2).transpose(1, 2)


def unpatchify(tokens: Tensor, grid: tuple[int, int, int]) -> Tensor:
    """Latents of tokens. Shapes: [B, F*H*W, C] -> [B, C, F, H, W]."""
    return tokens.transpose(1, 2).reshape(tokens.shape[0], tokens.shape[2], *grid)


def patchify_audio(latents: Tensor) -> Tensor:
    """Tokens of audio latents. Shapes: [B, 8, A, 16] -> [B, A, 128]."""
    return latents.transpose(1, 2).flatten(2)


def unpatchify_audio(tokens: Tensor) -> Tensor:
    """Audio latents of tokens. Shapes: [B, A, 128] -> [B, 8, A, 16]."""
    latents: Tensor = tokens.unflatten(2, (AUDIO_CHANNELS, -1)).transpose(1, 2)
    return latents


@torch.inference_mode()
def denoise(
    model: Any,
    stage: Stage,
    *,
    plan: Plan,
    semantics: Semantics,
    conditions: Conditions,
    rng: torch.Generator,
    record: Record,
    passes_per_call: int = 0,
) -> Generator[Progress, None, tuple[Tensor, Tensor]]:
    """Runs one stage, beginning with noise from `rng`, which the next stage goes on with.

    Passes go through the transformer `passes_per_call` at a time, 0: all at once.
    The host waits once after every call, for the call before: the device always has one to work on.

    Returns latents, normalised. Shapes: video [1, 128, F, H, W], audio [1, 8, A, 16].
    All sampling is float32; the transformer runs in its own dtype.
    Noise is drawn on the CPU in float32, so a seed means the same clip on every device.
    Raises: NumericalError.
    """
    weight = model.proj_in.weight
    grid = (plan.latent_frames, stage.height, stage.width)
    fps, audio_tokens = plan.conditioning_fps, plan.audio_tokens
    streams = _streams(conditions, stage, grid=grid, audio_tokens=audio_tokens, device=weight.device)
    predict = Predictor(
        model=model,
        geometry=geometry(model, grid=grid, fps=fps, audio_tokens=audio_tokens, dtype=weight.dtype),
        passes=stage.passes,
        context=_context(conditions, stage, dtype=weight.dtype),
        omissions=omissions(stage),
        streams=streams,
        semantics=semantics,
        record=record,
        passes_per_call=passes_per_call or len(stage.passes),
    )
    noise = _draw(rng, streams)
    placed = positions(model, grid=grid, fps=fps, audio_tokens=audio_tokens)
    for name, position, drawn in zip(NAMES, placed, noise, strict=True):
        record(f"{name}_positions", position)
        record(f"noise_{name}", drawn)
    record("video_denoise_mask", streams[0].mask)
    record("sigmas", torch.tensor(stage.sigmas))

    state = _begun(conditions, noise, predict, sigma=stage.sigmas[0])
    guard = Guard()
    given = [t for t in (conditions.image_latents, conditions.latents) if t is not None]
    place = f"stage {1 + plan.stages.index(stage)} of {len(plan.stages)}, denoise at {grid[2]}x{grid[1]} latents"
    guard.watch(f"{place}, before its first call, from the image or the stage before", *state, *given)
    for done, reached in enumerate(_loop(predict, state, stage, seed=conditions.seed), 1):
        state = reached
        guard.watch(f"{place}, call {done} of {stage.calls}", *state)
        yield Progress("denoise", done, stage.calls)
    guard.close()

    latents, audio_latents = unpatchify(state[0], grid), unpatchify_audio(state[1])
    record("video_latent", latents)
    record("audio_latent", audio_latents)
    return latents, audio_latents


def _streams(
    conditions: Conditions, stage: Stage, *, grid: tuple[int, int, int], audio_tokens: int, device: torch.device
) -> tuple[Stream, Stream]:
    """Both streams. Only the picture has clean tokens, and only its first frame is pinned to any."""
    tokens = math.prod(grid)
    of_video, of_audio = Runs((tokens,), (1.0,)), Runs((audio_tokens,), (1.0,))
    clean = torch.zeros(1, 1, CHANNELS, device=device).expand(-1, tokens, -1)
    if conditions.latents is not None:
        clean = patchify(conditions.latents.float())
    if conditions.image_latents is not None:
        image = patchify(conditions.image_latents.float()).to(device)
        first = image.shape[1]
        clean = torch.cat([image, clean[:, first:]], 1)
        of_video = Runs((first, tokens - first), (1 - conditions.strength, 1.0))
    return (
        Stream(clean=clean, mask=of_video.mask(device), runs=of_video, guidance=stage.video),
        Stream(
            clean=torch.zeros(1, audio_tokens, CHANNELS, device=device),
            mask=of_audio.mask(device),
            runs=of_audio,
            guidance=stage.audio,
        ),
    )


def _context(conditions: Conditions, stage: Stage, *, dtype: torch.dtype) -> Context:
    """What each pass reads, a row for each.

    Raises: ValueError if a pass needs the negative prompt and there is none.
    """
    contexts = [conditions.negative if name == "uncond" else conditions.positive for name in stage.passes]
    read = [context for context in contexts if context is not None]
    if len(read) < len(contexts):
        raise ValueError("the stage has a pass with the negative prompt, and there is none")
    return Context(
        video=torch.cat([context.video for context in read]).to(dtype),
        audio=torch.cat([context.audio for context in read]).to(dtype),
    )


def _begun(conditions: Conditions, noise: State, predict: Predictor, *, sigma: float) -> State:
    """Noise to the share of `sigma`, the rest from the stage before.

    Under comfy semantics the image stands in what the stage before made, as it does in ComfyUI's latents.
    """
    if conditions.latents is None or conditions.audio_latents is None:
        return predict.kept((noise[0] * sigma, noise[1] * sigma))
    before = patchify(conditions.latents.float()), patchify_audio(conditions.audio_latents.float())
    if predict.semantics == "comfy":
        before = predict.streams[0].clean, before[1]
    return predict.kept((torch.lerp(before[0], noise[0], sigma), torch.lerp(before[1], noise[1], sigma)))


def _loop(predict: Predictor, state: State, stage: Stage, *, seed: int) -> Iterator[State]:
    """The state after every transformer call."""
    match stage.sampler:
        case "euler":
            return _euler(predict, state, stage)
        case "euler_ancestral_cfg_pp":
            return _euler_ancestral_cfg_pp(predict, state, stage, _rng(seed + STEP_NOISE_SEED))
        case "res_2s":
            return _res_2s(predict, state, stage)


def _euler(predict: Predictor, state: State, stage: Stage) -> Iterator[State]:
    for call, (sigma, next_sigma) in enumerate(pairwise(stage.sigmas)):
        video, audio = (
            samplers.euler(tokens, prediction.denoised, sigma=sigma, next_sigma=next_sigma)
            for tokens, prediction in zip(state, predict(state, sigma=sigma, call=call), strict=True)
        )
        state = video, audio
        yield state


def _euler_ancestral_cfg_pp(predict: Predictor, state: State, stage: Stage, rng: torch.Generator) -> Iterator[State]:
    for call, (sigma, next_sigma) in enumerate(pairwise(stage.sigmas)):
        if next_sigma == 0:
            predictions = predict(state, sigma=sigma, call=call)
            yield predictions[0].denoised, predictions[1].denoised
            return
        fresh = _draw(rng, predict.streams)
        predictions = predict(state, sigma=sigma, call=call)
        _record_noise(predict.record, fresh, first=2 * call)
        video, audio = (
            samplers.euler_ancestral_cfg_pp(
                tokens,
                prediction.denoised,
                unconditional=prediction.unconditional,
                noise=noise,
                sigma=sigma,
                next_sigma=next_sigma,
                eta=stage.eta,
            )
            for tokens, prediction, noise in zip(state, predictions, fresh, strict=True)
        )
        state = predict.kept((video, audio))
        yield state


def _res_2s(predict: Predictor, state: State, stage: Stage) -> Iterator[State]:
    """Steps in double precision; each with noise of its own in the middle and at the end."""
    step_rng, middle_rng = _rng(RES_2S_STEP_SEED), _rng(RES_2S_MIDDLE_SEED)
    sigmas = (*stage.sigmas[:-1], samplers.RES_2S_LAST_SIGMA)
    for step, (sigma, next_sigma) in enumerate(pairwise(sigmas)):
        way = samplers.Res2s(sigma, next_sigma)
        fresh = _draw_normal(middle_rng, predict.streams)
        first = predict(state, sigma=sigma, call=2 * step)
        _record_noise(predict.record, fresh, first=4 * step)
        video, audio = (
            samplers.noised_again(
                tokens.double(),
                tokens.double() + way.halfway(prediction.denoised - tokens.double()),
                noise=noise,
                sigma=sigma,
                next_sigma=way.middle,
            )
            for tokens, prediction, noise in zip(state, first, fresh, strict=True)
        )
        middle = predict.kept((video, audio))
        yield middle

        fresh = _draw_normal(step_rng, predict.streams)
        second = predict((middle[0].float(), middle[1].float()), sigma=way.middle, call=2 * step + 1)
        _record_noise(predict.record, fresh, first=4 * step + 2)
        video, audio = (
            _res_2s_end(way, tokens.double(), halfway, of_first.denoised, of_second.denoised, noise=noise)
            for tokens, halfway, of_first, of_second, noise in zip(state, middle, first, second, fresh, strict=True)
        )
        video, audio = predict.kept((video, audio))
        state = video.float(), audio.float()
        yield state
    last = predict(state, sigma=sigmas[-1], call=2 * (len(sigmas) - 1))
    yield last[0].denoised, last[1].denoised


def _res_2s_end(
    way: samplers.Res2s, state: Tensor, halfway: Tensor, first: Tensor, second: Tensor, *, noise: Tensor
) -> Tensor:
    anchor = way.anchored(state, halfway, first)
    end = anchor + way.whole(first - anchor, second - anchor)
    return samplers.noised_again(anchor, end, noise=noise, sigma=way.sigma, next_sigma=way.next_sigma)


def _rng(seed: int) -> torch.Generator:
    return torch.Generator("cpu").manual_seed(seed)


def _draw(rng: torch.Generator, streams: tuple[Stream, Stream]) -> State:
    """Video noise, then audio noise, on its way to the device: drawn before the call that it is used after."""
    video, audio = (_sent(torch.randn(s.clean.shape, generator=rng), s.clean.device) for s in streams)
    return video, audio


def _sent(drawn: Tensor, device: torch.device) -> Tensor:
    """From pinned memory, which the host need not wait for."""
    return (drawn.pin_memory() if device.type == "cuda" else drawn).to(device, non_blocking=True)


def _draw_normal(rng: torch.Generator, streams: tuple[Stream, Stream]) -> State:
    """Video noise, then audio noise, in double precision, each with a mean of 0 and a spread of 1.

    Normalised twice, over all and over the last two axes: the second time changes the last bits alone, and is there
    for the noise to be the reference's bit by bit.
    Source: Lightricks/LTX-2 @400fd31, ltx_pipelines/utils/samplers.py.
    """
    drawn = []
    for stream in streams:
        noise = torch.randn(stream.clean.shape, generator=rng, dtype=torch.float64)
        noise = (noise - noise.mean()) / noise.std()
        noise = (noise - noise.mean((-2, -1), keepdim=True)) / noise.std((-2, -1), keepdim=True)
        drawn.append(_sent(noise, stream.clean.device))
    return drawn[0], drawn[1]


def _record_noise(record: Record, noise: State, *, first: int) -> None:
    for place, drawn in enumerate(noise):
        record(f"step_noise.{first + place:02d}", drawn)
