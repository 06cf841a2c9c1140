"""Golden generations through the product's own entry points: a sidecar's params to a recipe and a request."""

import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, get_args

from PIL import Image
from torch import Tensor

from pipeline import generate, loading, plan, trace
from pipeline.recipe import Defaults, Recipe, Semantics, StageRecipe, StreamGuidance
from pipeline.types import GenerationRequest, Size
from weights.names import to_diffusers

CHECKPOINT = "ltx-2.3-tiny.safetensors"
UPSAMPLER = "ltx-2.3-tiny-spatial-upscaler-x2.safetensors"
LORA = "ltx-2.3-tiny-distilled-lora.safetensors"
DISTILLED = (1.0, 0.99375, 0.9875, 0.98125, 0.975, 0.909375, 0.725, 0.421875, 0.0)
REFINEMENT = (0.909375, 0.725, 0.421875, 0.0)
SAMPLERS = {"euler": "euler", "cfg_pp": "euler_ancestral_cfg_pp", "res_2s": "res_2s"}
AUDIO_RATE = 48_000
OFFICIAL_CRF = 33
OFFICIAL_STRENGTH = 1.0
"""What the model authors' code takes where nothing is said of a start image."""


class UnknownParamError(ValueError):
    """A sidecar asks for what this runner does not know: it must not pass unseen."""


@dataclass(frozen=True)
class Generation:
    """A sidecar's params in the product's words."""

    recipe: Recipe
    request: GenerationRequest
    calls: tuple[int, ...]
    """Transformer calls by stage, as the reference made them."""


def is_pictured(params: Mapping[str, Any], names: Collection[str]) -> bool:
    """Whether a case begins with the start image."""
    return "strength" in params or any("image_" in name for name in names)


def generation(params: Mapping[str, Any], *, image: Path | None, names: Collection[str] = ()) -> Generation:
    """What `params` asks for; every key is read. `names` are those of the tensors that the case holds.

    Raises: UnknownParamError.
    """
    left = {key: value for key, value in params.items() if value is not None}
    video, audio, scale = _guidance(left)
    calls = left.pop("num_model_calls")
    if tuple(calls) not in {("stage",), ("stage1.", "stage2.")}:
        raise UnknownParamError(f"stages {tuple(calls)}")
    steps, lora = _number(left, "steps", 0), _number(left, "lora", 0.0)
    first = StageRecipe(
        shrink=len(calls), lora_strength=lora, video=video, audio=audio, **_sampling(left, steps=steps)
    )
    recipe = Recipe(
        name="golden",
        summary="",
        setup="tests/golden/canonical.py",
        checkpoint=CHECKPOINT,
        text_encoder="gemma",
        image_crf=left.pop("crf", OFFICIAL_CRF) if image else 0,
        pixels=1,
        max_tokens=1_000_000,
        expansion="template",
        defaults=Defaults(steps=8, guidance_scale=1.0, strength=1.0),
        stages=(first, _refinement(first, names)) if len(calls) == 2 else (first,),
        lora=LORA if lora else "",
        upsampler=UPSAMPLER if len(calls) == 2 else "",
        semantics=_one_of(left, "semantics", get_args(Semantics), default="official"),
    )
    request = GenerationRequest(
        prompt=left.pop("prompt"),
        image=image,
        image_size=_size(image) if image else None,
        seed=left.pop("seed"),
        negative_prompt=left.pop("negative_prompt", ""),
        size=Size(left.pop("width"), left.pop("height")),
        num_frames=left.pop("frames"),
        fps=left.pop("fps"),
        steps=steps or 8,
        guidance_scale=scale,
        strength=left.pop("strength", OFFICIAL_STRENGTH) if image else 0.0,
        audio=True,
        expand_prompt=False,
        check_safety=False,
        quality="high",
        write_mode="fast",
    )
    made = planned(request, recipe)
    stage = made.stages[0]
    tokens = left.pop("video_tokens", None)
    if tokens not in (None, made.latent_frames * stage.height * stage.width):
        raise UnknownParamError(f"video_tokens {tokens} at {stage.height}x{stage.width}x{made.latent_frames}")
    if left.pop("audio_rate", AUDIO_RATE) != AUDIO_RATE:
        raise UnknownParamError("audio_rate is not 48000")
    if left:
        raise UnknownParamError(f"params nobody reads: {left}")
    return Generation(recipe, request, tuple(calls.values()))


def planned(request: GenerationRequest, recipe: Recipe) -> plan.Plan:
    """The plan of a case: the product's, but that the rate is told to the model as it is, however long the clip.

    The reference knows no bound of 20 s.
    Raises: UnknownParamError if the plan would make something else than was asked for.
    """
    made = plan.make_plan(request, recipe)
    if (made.size, made.num_frames) != (request.size, request.num_frames):
        raise UnknownParamError(f"{made.notes}: a golden case is made as it is")
    audio_tokens = round(request.num_frames / request.fps * plan.AUDIO_TOKENS_PER_SECOND)
    return replace(made, conditioning_fps=float(request.fps), audio_tokens=audio_tokens)


def _sampling(left: dict[str, Any], *, steps: float) -> dict[str, Any]:
    """What a stage recipe says of its sampler and sigmas."""
    sampler = SAMPLERS[_one_of(left, "sampler", SAMPLERS)]
    if sampler != "euler_ancestral_cfg_pp" and "eta" in left:
        raise UnknownParamError(f"eta {left['eta']} with the sampler {sampler}, which has none")
    eta = left.pop("eta", 1.0)
    if not steps:
        return {"sampler": sampler, "schedule": "fixed", "sigmas": DISTILLED, "eta": eta}
    return {"sampler": sampler, "schedule": "shifted", "shift_tokens": left.pop("schedule_tokens", 0), "eta": eta}


def _number(left: dict[str, Any], key: str, default: float) -> Any:
    value = left.pop(key, default)
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise UnknownParamError(f"{key} is {value!r}, not a number")
    return value


def _one_of(left: dict[str, Any], key: str, allowed: Iterable[str], *, default: str | None = None) -> Any:
    value = left.pop(key, default)
    if value not in allowed:
        raise UnknownParamError(f"{key} {value!r}, not one of {', '.join(allowed)}")
    return value


def _size(image: Path) -> Size:
    with Image.open(image) as picture:
        return Size(*picture.size)


def _refinement(first: StageRecipe, names: Collection[str]) -> StageRecipe:
    """The second stage: without guidance, as the official pipelines have it, unless the case holds its passes."""
    told = "ptb|mod" if first.sampler == "euler_ancestral_cfg_pp" else "uncond|ptb|mod"
    guided = any(re.match(rf"stage2\.call\d+\.(video|audio)_({told})", name) for name in names)
    none = StreamGuidance(share=0.0)
    return StageRecipe(
        sampler=first.sampler,
        schedule="fixed",
        sigmas=REFINEMENT,
        eta=first.eta,
        lora_strength=first.lora_strength,
        video=first.video if guided else none,
        audio=first.audio if guided else none,
    )


def _guidance(left: dict[str, Any]) -> tuple[StreamGuidance, StreamGuidance, float]:
    """Guidance of both streams, and the guidance scale that their shares refer to."""
    if ("cfg" in left) == ("video_guider" in left or "audio_guider" in left):
        if "cfg" in left:
            raise UnknownParamError("both cfg and a guider")
        return StreamGuidance(), StreamGuidance(), 1.0
    if "cfg" in left:
        return StreamGuidance(), StreamGuidance(), left.pop("cfg")
    guiders = [dict(left.pop(f"{stream}_guider", {})) for stream in ("video", "audio")]
    scales = [guider.pop("cfg_scale", 1.0) for guider in guiders]
    scale = next((s for s in scales if s != 1), 1.0)
    streams = [
        StreamGuidance(
            share=(own - 1) / (scale - 1) if scale != 1 else 1.0,
            stg=guider.pop("stg_scale", 0.0),
            stg_blocks=tuple(guider.pop("stg_blocks", ())),
            modality=guider.pop("modality_scale", 1.0),
            rescale=guider.pop("rescale_scale", 0.0),
        )
        for guider, own in zip(guiders, scales, strict=True)
    ]
    for guider in guiders:
        if unread := {key: value for key, value in guider.items() if (key, value) != ("skip_step", 0)}:
            raise UnknownParamError(f"guider params nobody reads: {unread}")
    return streams[0], streams[1], scale


def load(case: Generation, *, models: Path, dtype: str) -> loading.Pipeline:
    """The models that a case runs on."""
    return loading.load(case.recipe, models=models, device="cpu", dtype=dtype)


def run(case: Generation, pipeline: loading.Pipeline, *, output: Path, fused: Iterable[str] = ()) -> dict[str, Tensor]:
    """The tensors of a generation, under the names of the golden files; `fused` names weights to give as well.

    Raises: UnknownParamError if the transformer was not called as often as the reference did.
    """
    made = planned(case.request, case.recipe)
    kept = trace.Trace()
    clip = generate.generate(pipeline, case.request, made, output=output, record=kept)
    called = sum(progress.stage == "denoise" for progress in clip)
    if called != sum(case.calls) or tuple(stage.calls for stage in made.stages) != case.calls:
        raise UnknownParamError(f"{called} transformer calls, the reference made {case.calls}")
    tensors = dict(kept.tensors)
    tensors["frames_u8"] = (tensors["frames"] * 255).round().byte()
    weights = pipeline.transformers[case.recipe.stages[0].lora_strength].state_dict()
    names = {name: to_diffusers(f"model.diffusion_model.{name}", "transformer") for name in fused}
    return tensors | {f"fused.{name}": weights[ours] for name, ours in names.items()}
