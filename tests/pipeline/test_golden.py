"""Whole generations, through the product's own entry point, against the model authors' code.

Source: tests/golden/public/*, made with LTX-2 1.2.0 on the tiny checkpoint that canonical.py writes; tolerances are
those of the reference's own README (first call 1e-5, later calls, latents and frames 1e-4, waveform 1e-3).
"""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from pipeline import generate, plan, recipe, text, trace
from pipeline.types import GenerationRequest, Size

PUBLIC = Path(__file__).parent.parent / "golden" / "public"
CASES = ("a_cfgpp_official", "a8_cfgpp_official", "b_cfgpp_cfg3", "b8_cfgpp_cfg3_official", "c_euler8")
DISTILLED = (1.0, 0.99375, 0.9875, 0.98125, 0.975, 0.909375, 0.725, 0.421875, 0.0)
NOT_OURS = ("alt_fp32_fuse.", "fused.", "frames_u8", "video_positions", "audio_positions")
"""Tensors checked elsewhere or not made: the LoRA in tests/weights, positions within diffusers' RoPE."""


def tolerance(name):
    if name.startswith(("noise", "step_noise", "video_denoise_mask")):
        return 0.0
    if name.startswith(("image", "sigmas")):
        return 1e-5 if name == "image_latent" else 1e-6
    if name.startswith("call00"):
        return 1e-5
    return 1e-3 if name == "wave" else 1e-4


def distance(expected, found):
    return ((expected.double() - found.double()).norm() / expected.double().norm().clamp(min=1e-12)).item()


def recipe_of(params):
    return replace(
        recipe.load("demo"),
        checkpoint="ltx-2.3-tiny.safetensors",
        text_encoder="gemma",
        lora="ltx-2.3-tiny-distilled-lora.safetensors" if params["lora"] else "",
        lora_strength=params["lora"] or 0.0,
        sampler="euler_ancestral_cfg_pp" if params["sampler"] == "cfg_pp" else "euler",
        sigmas=() if params["steps"] else DISTILLED,
        terminal=0.1,
        eta=params.get("eta", 0.0),
        image_crf=params["crf"],
    )


def request_of(params, folder):
    return GenerationRequest(
        prompt=params["prompt"],
        image=folder / "image.png",
        image_size=Size(200, 150),
        seed=params["seed"],
        negative_prompt=params.get("negative_prompt") or "",
        size=Size(params["width"], params["height"]),
        num_frames=params["frames"],
        fps=params["fps"],
        steps=params["steps"] or 8,
        guidance_scale=params["cfg"],
        strength=params["strength"],
        audio=True,
        expand_prompt=False,
        check_safety=False,
        quality="high",
        write_mode="fast",
    )


@pytest.mark.parametrize("case", CASES)
def test_a_generation_is_the_one_the_official_code_makes(case, tiny, tmp_path):
    facts = json.loads((PUBLIC / f"{case}.json").read_text())
    expected = load_file(PUBLIC / f"{case}.safetensors")
    chosen = recipe_of(facts["params"])
    request = request_of(facts["params"], tiny)
    kept = trace.Trace()
    pipeline = generate.load(chosen, models=tiny, device="cpu")
    made = plan.make_plan(request, chosen)
    calls = [
        progress
        for progress in generate.generate(pipeline, request, made, output=tmp_path / "out.mp4", record=kept)
        if progress.stage == "denoise"
    ]
    assert len(calls) == facts["params"]["num_model_calls"]["stage"]
    wrong = {}
    for name, value in expected.items():
        if name.startswith(NOT_OURS):
            continue
        stride = facts["tensors"][name].get("stride", [])
        found = kept.tensors[name][tuple(slice(None, None, step) for step in stride)]
        assert found.shape == value.shape, name
        off = distance(value, found)
        if off > tolerance(name):
            wrong[name] = off
    assert not wrong


@pytest.mark.parametrize("name", ["pos0", "neg0", "pos1", "empty", "long"])
def test_a_prompt_is_read_as_the_official_code_reads_it(name, tiny):
    facts = json.loads((PUBLIC / "text.json").read_text())
    expected = load_file(PUBLIC / "text.safetensors")
    pipeline = generate.load(recipe_of({"lora": 0, "sampler": "", "steps": 8, "crf": 0}), models=tiny, device="cpu")
    context = text.encode(
        facts["params"]["prompts"][name], text_encoder=pipeline.text_encoder, connectors=pipeline.connectors
    )
    for key, found in (("video_context", context.video), ("audio_context", context.audio)):
        stride = facts["tensors"][f"{name}.{key}"].get("stride", [])
        strided = found[tuple(slice(None, None, step) for step in stride)]
        assert distance(expected[f"{name}.{key}"], strided) < 1e-5
    assert torch.isfinite(context.video).all()
