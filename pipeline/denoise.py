"""The denoising loop over both streams: noise in, latents out, one `Progress` per transformer call."""

from collections.abc import Generator
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor

from pipeline import samplers
from pipeline.plan import Plan, Stage
from pipeline.recipe import Recipe
from pipeline.trace import Record
from pipeline.transformer import Context, Geometry, Runs, geometry, modulation, runs, velocity
from pipeline.types import Progress

STEP_NOISE_SEED: Final = 10_000
"""Added to the request's seed for the noise of ancestral steps, so that it differs from the noise they start from."""
AUDIO_CHANNELS: Final = 8


@dataclass(frozen=True)
class Conditions:
    """What steers a generation.

    Shapes: `image_latents` [1, 128, 1, H, W]. Units: `strength` 0 to 1.
    """

    positive: Context
    negative: Context | None
    """None where the recipe never looks at it."""
    image_latents: Tensor
    strength: float
    guidance_scale: float
    seed: int


def patchify(latents: Tensor) -> Tensor:
    """Tokens of latents. Shapes: [B, C, F, H, W] -> [B, F*H*W, C]."""
    return latents.flatten(2).transpose(1, 2)


def unpatchify(tokens: Tensor, grid: tuple[int, int, int]) -> Tensor:
    """Latents of tokens. Shapes: [B, F*H*W, C] -> [B, C, F, H, W]."""
    return tokens.transpose(1, 2).reshape(tokens.shape[0], tokens.shape[2], *grid)


def needs_negative(recipe: Recipe, guidance_scale: float) -> bool:
    """Whether the negative prompt has any effect: CFG++ steps along it even at guidance 1."""
    return recipe.sampler == "euler_ancestral_cfg_pp" or guidance_scale != 1


@torch.inference_mode()
def denoise(
    model: Any, stage: Stage, *, plan: Plan, recipe: Recipe, conditions: Conditions, record: Record
) -> Generator[Progress, None, tuple[Tensor, Tensor]]:
    """Runs one stage from pure noise.

    Returns latents, normalised. Shapes: video [1, 128, F, H, W], audio [1, 8, A, 16].
    All sampling is float32; the transformer runs in its own dtype.
    Noise is drawn on the CPU in float32, so a seed means the same clip on every device.
    """
    weight = model.proj_in.weight
    grid = (plan.latent_frames, stage.height, stage.width)
    geo = geometry(model, grid=grid, fps=plan.conditioning_fps, audio_tokens=plan.audio_tokens, dtype=weight.dtype)
    clean, mask = _pinned(conditions, grid)
    timesteps = runs(mask), runs(torch.ones(1, plan.audio_tokens, 1))
    clean, mask = clean.to(weight.device), mask.to(weight.device)
    rng = torch.Generator("cpu").manual_seed(conditions.seed)
    video, audio = (n.to(weight.device) for n in _draw(rng, mask.shape[1], plan.audio_tokens))
    step_rng = torch.Generator("cpu").manual_seed(conditions.seed + STEP_NOISE_SEED)
    record("noise_video", video)
    record("noise_audio", audio)
    record("video_denoise_mask", mask)
    record("sigmas", torch.tensor(stage.sigmas))
    video = torch.lerp(clean, video, mask)

    steps = len(stage.sigmas) - 1
    for step in range(steps):
        sigma, next_sigma = stage.sigmas[step], stage.sigmas[step + 1]
        call = f"call{step:02d}."
        record(call + "sigma", torch.tensor([sigma]))
        record(call + "video_in", video)
        record(call + "audio_in", audio)
        predictions = _predict(
            model, video, audio, sigma, mask=mask, timesteps=timesteps, geo=geo, conditions=conditions
        )
        (video_x0, video_uncond), (audio_x0, audio_uncond) = (
            _guided(p, conditions.guidance_scale, record=record, name=call + stream)
            for p, stream in zip(predictions, ("video_", "audio_"), strict=True)
        )
        video_x0 = torch.lerp(clean, video_x0, mask)
        if recipe.sampler == "euler":
            video = samplers.euler(video, video_x0, sigma=sigma, next_sigma=next_sigma)
            audio = samplers.euler(audio, audio_x0, sigma=sigma, next_sigma=next_sigma)
        else:
            noise = (torch.zeros(()), torch.zeros(()))
            if next_sigma > 0:
                noise = _draw(step_rng, mask.shape[1], plan.audio_tokens)
                record(f"step_noise.{2 * step:02d}", noise[0])
                record(f"step_noise.{2 * step + 1:02d}", noise[1])
            video, audio = (
                samplers.euler_ancestral_cfg_pp(
                    state,
                    x0,
                    unconditional=uncond,
                    noise=fresh.to(state.device),
                    sigma=sigma,
                    next_sigma=next_sigma,
                    eta=recipe.eta,
                )
                for state, x0, uncond, fresh in (
                    (video, video_x0, video_uncond, noise[0]),
                    (audio, audio_x0, audio_uncond, noise[1]),
                )
            )
            if next_sigma > 0:
                video = torch.lerp(clean, video, mask)
        yield Progress("denoise", step + 1, steps)

    latents = unpatchify(video, grid)
    audio_latents = audio.unflatten(2, (AUDIO_CHANNELS, -1)).transpose(1, 2)
    record("video_latent", latents)
    record("audio_latent", audio_latents)
    return latents, audio_latents


def _draw(rng: torch.Generator, video_tokens: int, audio_tokens: int) -> tuple[Tensor, Tensor]:
    """Video noise, then audio noise, in token layout."""
    return torch.randn(1, video_tokens, 128, generator=rng), torch.randn(1, audio_tokens, 128, generator=rng)


def _pinned(conditions: Conditions, grid: tuple[int, int, int]) -> tuple[Tensor, Tensor]:
    """Clean latents, which only the first frame has, and the denoise mask. Shapes: [1, N, 128], [1, N, 1]."""
    image = patchify(conditions.image_latents.float())
    first, tokens = image.shape[1], grid[0] * grid[1] * grid[2]
    clean = torch.cat([image, image.new_zeros(1, tokens - first, image.shape[2])], 1)
    mask = torch.ones(1, tokens, 1)
    mask[:, :first] = 1 - conditions.strength
    return clean, mask


def _predict(
    model: Any,
    video: Tensor,
    audio: Tensor,
    sigma: float,
    *,
    mask: Tensor,
    timesteps: tuple[Runs, Runs],
    geo: Geometry,
    conditions: Conditions,
) -> tuple[Tensor, Tensor]:
    """Denoised predictions of every pass, batched: the positive prompt, then the negative one if there is one.

    Shapes: video [P, N, 128], audio [P, A, 128], float32.
    """
    dtype = model.proj_in.weight.dtype
    contexts = [conditions.positive] + ([conditions.negative] if conditions.negative else [])
    context = Context(
        video=torch.cat([c.video for c in contexts]).to(dtype), audio=torch.cat([c.audio for c in contexts]).to(dtype)
    )
    passes = len(contexts)
    v, va = velocity(
        model,
        video.to(dtype).expand(passes, -1, -1),
        audio.to(dtype).expand(passes, -1, -1),
        context=context,
        geometry=geo,
        modulation=modulation(model, sigma, video=timesteps[0], audio=timesteps[1], dtype=dtype),
    )
    return video - v.float() * (mask * sigma), audio - va.float() * sigma


def _guided(predictions: Tensor, scale: float, *, record: Record, name: str) -> tuple[Tensor, Tensor]:
    """The guided prediction and the unconditional one; without a negative pass both are the prediction itself."""
    cond, uncond = predictions[:1], predictions[-1:]
    record(name + "cond", cond)
    record(name + "uncond", uncond)
    guided = cond + (scale - 1) * (cond - uncond)
    record(name + "x0", guided)
    return guided, uncond
