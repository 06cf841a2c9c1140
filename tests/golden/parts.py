"""Golden components and prompts: every module on its own, loaded by our loader and called as the product calls it."""

import re
from collections.abc import Mapping
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pipeline import decode, sigmas, text
from pipeline.decoding import Tiles
from pipeline.denoise import patchify_audio, unpatchify_audio
from pipeline.tiling import decode_tiled
from pipeline.transformer import Context, Omission, Runs, geometry, modulation, positions, velocity
from tests.golden.cases import CHECKPOINT, UPSAMPLER, UnknownParamError
from weights.checkpoint import Checkpoint, load_component
from weights.text_encoder import load_text_encoder

COMPONENT_PARAMS = {
    "height",
    "width",
    "frames",
    "fps",
    "seed",
    "audio_tokens",
    "connector_valid",
    "dit_sigmas",
    "loud_gain",
    "tiling",
}
MEASURED = {
    "memory_efficient_decode_rel",
    "tiled_vs_untiled_rel",
    "vocoder16k_absmax",
    "wave_absmax",
    "loud_clamped_fraction_16k",
    "loud_clamped_fraction_48k",
}
"""What the reference measured on itself; nothing is asked of us."""
STG_BLOCKS = (1,)
"""The block that the pass without self-attention leaves it out of, as in the guided cases."""
PINNED_STRENGTH = 0.7
UPSAMPLED = [1, 128, 2, 2, 3]
"""Shape of the latents to double, where a case tells none."""
SCHEDULE = re.compile(r"(?:schedule|schedule_fp32_official)\.steps(\d+)\.tokens(\d+)")


def prompts(params: Mapping[str, Any], *, models: Path, dtype: torch.dtype) -> dict[str, Tensor]:
    """Token ids, hidden states and contexts of every prompt.

    Raises: UnknownParamError.
    """
    wanted = {"max_length": text.CONTEXT_TOKENS, "padding_side": "left"}
    if {key: value for key, value in params.items() if key != "prompts"} != wanted:
        raise UnknownParamError(f"params of the prompts {params}")
    encoder = load_text_encoder(models / "gemma", dtype=dtype, device="cpu")
    connectors = load_component(Checkpoint.open(models / CHECKPOINT), "connectors", dtype=dtype, device="cpu")
    out = {}
    for name, prompt in params["prompts"].items():
        tokens = encoder.tokenizer(
            prompt.strip(), truncation=True, max_length=text.CONTEXT_TOKENS, return_tensors="pt", padding=False
        ).input_ids
        context = text.encode(prompt, text_encoder=encoder, connectors=connectors)
        padding = (text.CONTEXT_TOKENS - tokens.shape[1], 0)
        out |= {
            f"{name}.input_ids": torch.nn.functional.pad(tokens[0], padding, value=encoder.tokenizer.pad_token_id),
            f"{name}.num_valid": torch.tensor([tokens.shape[1]]),
            f"{name}.gemma_hidden": torch.cat(text.hidden_states(tokens, text_encoder=encoder)),
            f"{name}.video_context": context.video,
            f"{name}.audio_context": context.audio,
        }
    return out


@torch.inference_mode()
def components(
    params: Mapping[str, Any], *, models: Path, dtype: torch.dtype, about: Mapping[str, Mapping[str, Any]]
) -> dict[str, Tensor]:
    """What every module makes of the inputs that golden files describe; `about` tells of the tensors of the case.

    Raises: UnknownParamError.
    """
    if unknown := params.keys() - COMPONENT_PARAMS - MEASURED:
        raise UnknownParamError(f"params nobody reads: {sorted(unknown)}")
    checkpoint = Checkpoint.open(models / CHECKPOINT)

    def load(kind: Any) -> Any:
        source = Checkpoint.open(models / UPSAMPLER) if kind == "upsampler" else checkpoint
        return load_component(source, kind, dtype=torch.float32 if kind == "vocoder" else dtype, device="cpu")

    seed = params["seed"]
    height, width = params["height"] // 32, params["width"] // 32
    grid = ((params["frames"] - 1) // 8 + 1, height, width)
    vae = load("vae")
    out = {f"vae.{key}": value for key, value in _vae(vae, params, grid).items()}
    out |= {f"audio.{key}": value for key, value in _audio(load("audio_vae"), load("vocoder"), params).items()}
    hidden = _hidden(params, checkpoint)
    context = text.context(tuple(hidden.to(dtype)), connectors=load("connectors"))
    out |= {"connector.video": context.video, "connector.audio": context.audio, "connector.hidden_valid": hidden[:, 0]}
    out |= {f"dit.{key}": value for key, value in _transformer(load("transformer"), params, grid, context).items()}
    latents = _randn(tuple(about.get("upsampler.in", {"full_shape": UPSAMPLED})["full_shape"]), seed + 8)
    out |= {"upsampler.in": latents, "upsampler.out": decode.upsampled(load("upsampler"), vae, latents)}
    for name in about:
        if asked := SCHEDULE.fullmatch(name):
            steps, tokens = map(int, asked.groups())
            out[name] = torch.tensor(sigmas.shifted(steps, tokens=tokens, terminal=0.1))
    return out


def _randn(shape: tuple[int, ...], seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def _rand(shape: tuple[int, ...], seed: int) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


def _vae(vae: Any, params: Mapping[str, Any], grid: tuple[int, int, int]) -> dict[str, Tensor]:
    axes = (torch.arange(float(params[key])) for key in ("frames", "height", "width"))
    frame, y, x = torch.meshgrid(*axes, indexing="ij")
    clip = torch.stack([(x / 9 + frame / 3).sin(), (y / 7 - frame / 5).cos(), ((x + y) / 13 + frame / 2).sin()])[None]
    latent = _randn((1, 128, *grid), params["seed"] + 1)

    def whole(latents: Tensor) -> Tensor:
        return torch.cat(list(decode.decode_pixels(vae, latents)), 2)

    asked = dict(params["tiling"])
    tall, wide, frames = asked.pop("video")
    cells = {"frames": 8, "height": 32, "width": 32}
    tiles = {axis: Tiles(length // cells[axis], overlap // cells[axis]) for axis, (length, overlap) in asked.items()}
    tile_latent = _randn((1, 128, (frames - 1) // 8 + 1, tall // 32, wide // 32), params["seed"] + 9)
    decoded = whole(latent)
    return {
        "encode": decode.encode(vae, clip),
        "latent": latent,
        "decode": decoded,
        "decode_tail": decoded[:, :, -1:, -16:, -16:],
        "tile_latent": tile_latent,
        "decode_tiled": decode_tiled(partial(decode.decode_pixels, vae), tile_latent, **tiles),
        "decode_untiled": whole(tile_latent),
    }


def _audio(audio_vae: Any, vocoder: Any, params: Mapping[str, Any]) -> dict[str, Tensor]:
    latent = _randn((1, 8, params["audio_tokens"], 16), params["seed"] + 2)
    weight = next(audio_vae.parameters())
    mel = audio_vae.decode(decode.denormalized_audio(audio_vae, latent).to(weight), return_dict=False)[0].float()
    tokens = patchify_audio(audio_vae.encode(mel.to(weight)).latent_dist.mode().float())
    return {
        "latent": latent,
        "mel": mel,
        "wave": decode.decode_audio(audio_vae, vocoder, latent)[None],
        "wave_16k": vocoder.vocoder(mel),
        "wave_loud": vocoder(params["loud_gain"] * mel),
        "encode_mel": unpatchify_audio((tokens - audio_vae.latents_mean) / audio_vae.latents_std),
    }


def _hidden(params: Mapping[str, Any], checkpoint: Checkpoint) -> Tensor:
    """Hidden states of a prompt, without its padding. Shapes: [layers + 1, 1, n, H]."""
    stacked = checkpoint.shapes["text_embedding_projection.video_aggregate_embed.weight"][1]
    width = checkpoint.config["transformer"]["caption_channels"]
    hidden = _randn((stacked // width, 1, text.CONTEXT_TOKENS, width), params["seed"] + 3)
    return hidden[:, :, -params["connector_valid"] :]


def _transformer(
    model: Any, params: Mapping[str, Any], grid: tuple[int, int, int], context: Context
) -> dict[str, Tensor]:
    seed, tokens, audio_tokens = params["seed"], grid[0] * grid[1] * grid[2], params["audio_tokens"]
    dtype = model.proj_in.weight.dtype
    video, audio = _randn((1, tokens, 128), seed + 4), _randn((1, audio_tokens, 128), seed + 5)
    placed = positions(model, grid=grid, fps=params["fps"], audio_tokens=audio_tokens)
    shape = geometry(model, grid=grid, fps=params["fps"], audio_tokens=audio_tokens, dtype=dtype)
    out = {"video_in": video, "audio_in": audio, "video_positions": placed[0], "audio_positions": placed[1]}
    pinned = torch.ones(1, tokens, 1)
    pinned[:, : grid[1] * grid[2]] = 1 - PINNED_STRENGTH
    ones = torch.ones(1, audio_tokens, 1)
    masks = {
        "uniform": (torch.ones(1, tokens, 1), ones),
        "frame0": (pinned, ones),
        "random": (_rand((1, tokens, 1), seed + 6), _rand((1, audio_tokens, 1), seed + 7)),
    }
    omissions = {
        "": Omission(),
        ".stg": Omission(video_blocks=STG_BLOCKS, audio_blocks=STG_BLOCKS),
        ".iso": Omission(exchange=True),
    }
    for name, (mask, audio_mask) in masks.items():
        out |= {f"mask_video.{name}": mask, f"mask_audio.{name}": audio_mask}
        for sigma, (suffix, omission) in product(params["dit_sigmas"], omissions.items()):
            rows = modulation(model, sigma, video=_runs(mask), audio=_runs(audio_mask), dtype=dtype)
            v, a = velocity(
                model,
                video.to(dtype),
                audio.to(dtype),
                context=context,
                geometry=shape,
                modulation=rows,
                omissions=(omission,),
            )
            out |= {f"{name}.s{sigma}{suffix}.video_velocity": v, f"{name}.s{sigma}{suffix}.audio_velocity": a}
    return out


def _runs(mask):
    values, lengths = torch.unique_consecutive(mask.flatten(), return_counts=True)
    return Runs(tuple(lengths.tolist()), tuple(values.tolist()))
