"""The recipes that are shipped: what each makes of a request, and how often it calls the transformer."""

import re
from dataclasses import replace
from pathlib import Path

import pytest

from pipeline import generate, loading, plan, recipe
from pipeline.types import GenerationRequest, Size
from weights.manifest import load_manifest

PAGE = Path(__file__).parents[2] / "docs" / "recipes.md"
REAL = ("quality", "quality-fp8", "distilled", "distilled-fp8", "full", "two-stage", "hq")
IN_FP8 = ("quality", "distilled")
CALLS = {
    # recipe: calls of each stage by steps, passes of each stage at guidance_scale 1 and at 3
    "demo": (lambda n: (n,), ((1,), (2,))),
    "quality": (lambda n: (n,), ((2,), (2,))),
    "quality-fp8": (lambda n: (n,), ((2,), (2,))),
    "distilled": (lambda n: (n,), ((1,), (2,))),
    "distilled-fp8": (lambda n: (n,), ((1,), (2,))),
    "full": (lambda n: (2 * n + 1,), ((3,), (4,))),
    "two-stage": (lambda n: (n, 3), ((1, 1), (2, 1))),
    "hq": (lambda n: (2 * n + 1, 7), ((2, 1), (3, 1))),
}
REQUEST = GenerationRequest(
    prompt="a cat",
    image=None,
    image_size=None,
    seed=1,
    negative_prompt="ugly",
    size=Size(64, 64),
    num_frames=9,
    fps=24.0,
    steps=8,
    guidance_scale=1.0,
    strength=0.7,
    audio=False,
    expand_prompt=False,
    check_safety=False,
    quality="high",
    write_mode="fast",
)


def test_every_shipped_recipe_is_named_here():
    assert set(recipe.shipped()) == {"demo", *REAL} == set(CALLS)


@pytest.mark.parametrize("name", recipe.shipped())
def test_a_recipe_is_called_as_its_file(name):
    assert recipe.load(name).name == name
    assert name in recipe.load(name).setup or name == "demo"


@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize("steps", range(8, 31))
@pytest.mark.parametrize("at", [0, 1])
def test_transformer_calls_are_those_of_the_table(name, steps, at):
    calls, passes = CALLS[name]
    made = plan.make_plan(replace(REQUEST, steps=steps, guidance_scale=(1.0, 3.0)[at]), recipe.load(name))
    assert tuple(stage.calls for stage in made.stages) == calls(steps)
    assert tuple(len(stage.passes) for stage in made.stages) == passes[at]


def test_the_page_tells_the_same_calls():
    rows = re.findall(r"^\| `([\w-]+)` \| ([\d + x]+) \| ([\d + x]+) \|$", PAGE.read_text(), re.MULTILINE)
    assert [name for name, *_ in rows] == [*(name for name in REAL if not name.endswith("-fp8")), "demo"]
    for name, *told in rows:
        chosen = recipe.load(name)
        for scale, cell in zip((1.0, 3.0), told, strict=True):
            made = plan.make_plan(replace(REQUEST, steps=chosen.defaults.steps, guidance_scale=scale), chosen)
            assert cell == " + ".join(f"{stage.calls} x {len(stage.passes)}" for stage in made.stages)


@pytest.mark.parametrize(("name", "scale"), [("quality", 1.0), ("full", 3.0), ("two-stage", 3.0), ("hq", 1.0)])
def test_the_transformer_is_called_as_often_as_planned(name, scale, tiny, tmp_path):
    chosen = recipe.load(name)
    chosen = replace(
        chosen,
        checkpoint="ltx-2.3-tiny.safetensors",
        text_encoder="gemma",
        lora=chosen.lora and "ltx-2.3-tiny-distilled-lora.safetensors",
        upsampler=chosen.upsampler and "ltx-2.3-tiny-spatial-upscaler-x2.safetensors",
    )
    pipeline = loading.load(chosen, models=tiny, device="cpu")
    rows = []
    for transformer in pipeline.transformers.values():
        transformer.proj_in.register_forward_hook(lambda _module, _args, out: rows.append(len(out)))
    request = replace(REQUEST, guidance_scale=scale)
    made = plan.make_plan(request, chosen)
    for _ in generate.generate(pipeline, request, made, output=tmp_path / "out.mp4"):
        pass
    assert sum(rows) == sum(stage.calls * len(stage.passes) for stage in made.stages)


@pytest.mark.parametrize("name", IN_FP8)
def test_the_recipe_in_fp8_is_the_other_with_another_checkpoint(name):
    plain, in_fp8 = recipe.load(name), recipe.load(f"{name}-fp8")
    other = ("name", "summary", "setup", "checkpoint", "fp8_blocks")
    assert replace(in_fp8, **{field: getattr(plain, field) for field in other}) == plain
    assert in_fp8.checkpoint != plain.checkpoint


def test_quality_is_the_reconstruction_that_the_page_describes():
    quality = recipe.load("quality")
    (stage,) = quality.stages
    assert (stage.sampler, stage.eta, stage.lora_strength) == ("euler_ancestral_cfg_pp", 1.0, 0.5)
    assert (quality.semantics, quality.image_fit, quality.image_longest, quality.image_crf) == (
        "comfy",
        "comfy",
        1536,
        18,
    )
    made = plan.make_plan(replace(REQUEST, size=Size(960, 544), num_frames=121, steps=15), quality)
    # the schedule of ComfyUI's LTXVScheduler for 8,160 tokens, as the specification prints it
    told = (1, 0.9935, 0.9860, 0.9773, 0.9672, 0.9550, 0.9403, 0.9221, 0.8991, 0.8689, 0.8277, 0.7680, 0.6739, 0.5034)
    assert made.stages[0].sigmas == pytest.approx((*told, 0.1, 0), abs=6e-5)


def test_distilled_has_the_official_sigmas_at_8_steps_and_their_curve_above():
    distilled = recipe.load("distilled")
    assert (distilled.lora, distilled.stages[0].lora_strength, distilled.defaults.steps) == ("", 0.0, 8)
    eight = plan.make_plan(REQUEST, distilled).stages[0].sigmas
    assert eight == (1.0, 0.99375, 0.9875, 0.98125, 0.975, 0.909375, 0.725, 0.421875, 0.0)
    sixteen = plan.make_plan(replace(REQUEST, steps=16), distilled).stages[0].sigmas
    assert sixteen[::2] == pytest.approx(eight)


def test_full_guides_picture_and_sound_each_in_its_own_way():
    (stage,) = plan.make_plan(replace(REQUEST, guidance_scale=3.0), recipe.load("full")).stages
    assert (stage.sampler, stage.lora_strength, stage.passes) == ("res_2s", 0.2, ("cond", "uncond", "ptb", "mod"))
    assert (stage.video.scale, stage.video.stg, stage.video.rescale, stage.video.modality) == (3.0, 1.0, 0.9, 3.0)
    assert (stage.audio.scale, stage.audio.stg, stage.audio.rescale, stage.audio.modality) == (7.0, 1.0, 0.7, 3.0)


@pytest.mark.parametrize("name", ["two-stage", "hq"])
def test_two_stages_begin_at_half_the_size_and_end_at_the_whole(name):
    made = plan.make_plan(replace(REQUEST, size=Size(1000, 600)), recipe.load(name))
    assert made.size == Size(960, 576)
    assert [(stage.width, stage.height) for stage in made.stages] == [(15, 9), (30, 18)]
    assert made.stages[1].sigmas == (0.909375, 0.725, 0.421875, 0.0)
    assert made.stages[1].passes == ("cond",)
    assert "multiples of 64" in made.notes[0]


def test_hq_has_more_of_the_lora_in_its_second_stage_and_keeps_the_sound_of_the_first():
    hq = recipe.load("hq")
    assert [stage.lora_strength for stage in hq.stages] == [0.25, 0.5]
    assert hq.sound == "first"
    assert hq.files == (
        "ltx-2.3-22b-dev.safetensors",
        "ltx-2.3-22b-distilled-lora-384-1.1.safetensors",
        "ltx-2.3-spatial-upscaler-x2-1.1.safetensors",
        "gemma-3-12b-it-qat-q4_0-unquantized",
    )


@pytest.mark.parametrize("name", REAL)
@pytest.mark.parametrize("size", [Size(1280, 704), Size(1920, 1088), Size(704, 1280)])
def test_the_real_recipes_take_every_length_at_common_sizes(name, size):
    for frames in (9, 121, 481):
        plan.make_plan(replace(REQUEST, size=size, num_frames=frames), recipe.load(name))


@pytest.mark.parametrize("name", REAL)
def test_every_file_that_a_recipe_names_can_be_fetched(name):
    manifest = load_manifest()
    assert [file for file in recipe.load(name).files if not manifest.find(file)] == []
