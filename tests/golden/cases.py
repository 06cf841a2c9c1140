"""Golden generations through the product's own entry points: a sidecar's params to a recipe and a request."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image
from torch import Tensor

from pipeline import generate, loading, plan, trace
from pipeline.recipe import Defaults, Recipe, StageRecipe, StreamGuidance
from pipeline.types import GenerationRequest, Size
from weights.names import to_diffusers

CHECKPOINT = "ltx-2.3-tiny.safetensors"
UPSAMPLER = "ltx-2.3-tiny-spatial-upscaler-x2.safetensors"
LORA = "ltx-2.3-tiny-distilled-lora.safetensors"
DISTILLED = (1.0, 0.99375, 0.9875, 0.98125, 0.975, 0.909375, 0.725, 0.421875, 0.0)
REFINEMENT = (0.909375, 0.725, 0.421875, 0.0)
SAMPLERS = {"euler": "euler", "cfg_pp": "euler_ancestral_cfg_pp", "res_2s": "res_2s"}
AUDIO_RATE = 48_000


class UnknownParamError(ValueError):
    """A sidecar asks for what this runner does not know: it must not pass unseen."""


@dataclass(frozen=True)
class Generation:
    """A sidecar's params in the product's words."""

    recipe: Recipe
    request: GenerationRequest
    calls: tuple[int, ...]
    """Transformer calls by stage, as the reference made them."""


def generation(params: Mapping[str, Any], *, image: Path) -> Generation:
    """What `params` asks for; every key is read.

    Raises: UnknownParamError.
    """
    left = {key: value for key, value in params.items() if value is not None}
    video, audio, scale = _guidance(left)
    sampler, steps = left.pop("sampler"), left.pop("steps", None)
    if sampler not in SAMPLERS:
        raise UnknownParamError(f"sampler {sampler!r}, not one of {', '.join(SAMPLERS)}")
    shift_tokens = left.pop("schedule_tokens", 0)
    lora = left.pop("lora", 0.0)
    calls = left.pop("num_model_calls")
    if tuple(calls) not in {("stage",), ("stage1.", "stage2.")}:
        raise UnknownParamError(f"stages {tuple(calls)}")
    stages = [
        StageRecipe(
            sampler=SAMPLERS[sampler],
            schedule="fixed" if steps is None else "shifted",
            sigmas=DISTILLED if steps is None else (),
            shift_tokens=shift_tokens,
            shrink=len(calls),
            eta=left.pop("eta", 1.0),
            lora_strength=lora,
            video=video,
            audio=audio,
        )
    ]
    if len(calls) == 2:
        stages.append(_refinement(stages[0]))
    has_image = "strength" in left
    recipe = Recipe(
        name="golden",
        summary="",
        setup="tests/golden/canonical.py",
        checkpoint=CHECKPOINT,
        text_encoder="gemma",
        image_crf=left.pop("crf") if has_image else 0,
        pixels=1,
        max_tokens=1_000_000,
        expansion="template",
        defaults=Defaults(steps=8, guidance_scale=1.0, strength=1.0),
        stages=tuple(stages),
        lora=LORA if lora else "",
        upsampler=UPSAMPLER if len(calls) == 2 else "",
        semantics=left.pop("semantics", "official"),
    )
    with Image.open(image) as picture:
        image_size = Size(*picture.size)
    request = GenerationRequest(
        prompt=left.pop("prompt"),
        image=image if has_image else None,
        image_size=image_size if has_image else None,
        seed=left.pop("seed"),
        negative_prompt=left.pop("negative_prompt", ""),
        size=Size(left.pop("width"), left.pop("height")),
        num_frames=left.pop("frames"),
        fps=left.pop("fps"),
        steps=steps or 8,
        guidance_scale=scale,
        strength=left.pop("strength") if has_image else 0.0,
        audio=True,
        expand_prompt=False,
        check_safety=False,
        quality="high",
        write_mode="fast",
    )
    made = plan.make_plan(request, recipe)
    if (made.size, made.num_frames, made.conditioning_fps) != (request.size, request.num_frames, request.fps):
        raise UnknownParamError(f"{made.notes}: a golden case is made as it is")
    first = made.stages[0]
    tokens = left.pop("video_tokens", None)
    if tokens not in (None, made.latent_frames * first.height * first.width):
        raise UnknownParamError(f"video_tokens {tokens} at {first.height}x{first.width}x{made.latent_frames}")
    if left.pop("audio_rate", AUDIO_RATE) != AUDIO_RATE:
        raise UnknownParamError("audio_rate is not 48000")
    if left:
        raise UnknownParamError(f"params nobody reads: {left}")
    return Generation(recipe, request, tuple(calls.values()))


def _refinement(first: StageRecipe) -> StageRecipe:
    return StageRecipe(
        sampler=first.sampler,
        schedule="fixed",
        sigmas=REFINEMENT,
        eta=first.eta,
        lora_strength=first.lora_strength,
        video=first.video,
        audio=first.audio,
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
        if guider.pop("skip_step", 0) or guider:
            raise UnknownParamError(f"guider params nobody reads: {guider}")
    return streams[0], streams[1], scale


def run(case: Generation, *, models: Path, output: Path, dtype: str, fused: Iterable[str]) -> dict[str, Tensor]:
    """The tensors of a generation, under the names of the golden files; `fused` names weights to give as well.

    Raises: UnknownParamError if the transformer was not called as often as the reference did.
    """
    pipeline = loading.load(case.recipe, models=models, device="cpu", dtype=dtype)
    made = plan.make_plan(case.request, case.recipe)
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
