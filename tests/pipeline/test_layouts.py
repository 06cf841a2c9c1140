"""A whole clip is made from a checkpoint in fp8 and from a folder of diffusers as from the published file."""

import json
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from pipeline import generate, loading, plan, recipe, trace
from pipeline.types import GenerationRequest, Size
from weights import fp8
from weights.checkpoint import Checkpoint
from weights.fp8 import Fp8Linear

NAME = "ltx-2.3-tiny.safetensors"
LORA = "ltx-2.3-tiny-distilled-lora.safetensors"
BLOCK = "model.diffusion_model.transformer_blocks.1."


@pytest.fixture(scope="module")
def models(tiny, tmp_path_factory):
    """The tiny files, and one in fp8 beside them."""
    folder = tmp_path_factory.mktemp("models")
    for path in tiny.iterdir():
        (folder / path.name).symlink_to(path)
    tensors = load_file(tiny / NAME)
    for name, value in list(tensors.items()):
        if name.startswith(BLOCK) and name.endswith(".weight") and value.dim() == 2:
            scale = fp8.fresh_scale(value)
            tensors |= {name: fp8.quantise(value, scale), f"{name}_scale": scale}
            tensors[name.replace(".weight", ".input_scale")] = torch.tensor(0.0157)
    config = json.dumps(Checkpoint.open(tiny / NAME).config)
    save_file(tensors, folder / "tiny-fp8.safetensors", metadata={"config": config, "model_version": "2.3.0"})
    return folder


@pytest.fixture(scope="module")
def made(models, tmp_path_factory):
    """The latents that a recipe with `files` ends with, and its pipeline."""

    def made(*, keep_fp8=True, name="demo", **files):
        base = replace(recipe.load(name), **({"checkpoint": NAME, "text_encoder": "gemma"} | files))
        if base.lora and name == "demo":
            base = replace(base, stages=tuple(replace(stage, lora_strength=0.5) for stage in base.stages))
        pipeline = loading.load(base, models=models, device="cpu", keep_fp8=keep_fp8)
        request = GenerationRequest(
            prompt="a cat",
            image=models / "image.png",
            image_size=Size(200, 150),
            seed=5,
            negative_prompt="ugly",
            size=Size(64, 64),
            num_frames=9,
            fps=24.0,
            steps=2,
            guidance_scale=1.0,
            strength=0.7,
            audio=False,
            expand_prompt=False,
            check_safety=False,
            quality="high",
            write_mode="fast",
        )
        record = trace.Trace()
        output = tmp_path_factory.mktemp("clip") / "out.mp4"
        clip = generate.generate(pipeline, request, plan.make_plan(request, base), output=output, record=record)
        assert list(clip)
        assert output.stat().st_size > 0
        return record.tensors["frames"], pipeline

    return made


@pytest.fixture(scope="module")
def reference(made):
    frames, _ = made()
    return frames


def linears(pipeline):
    return [part for model in pipeline.transformers.values() for part in model.modules() if type(part) is Fp8Linear]


@pytest.mark.parametrize("lora", ["", LORA])
def test_an_fp8_file_makes_the_same_clip_in_fp8_and_dequantised(made, reference, lora):
    (kept, one), (turned, other) = (
        made(checkpoint="tiny-fp8.safetensors", lora=lora, keep_fp8=keep) for keep in (True, False)
    )
    assert (len(linears(one)), len(linears(other))) == (34, 0)
    assert all(type(p.transformers[0.5 if lora else 0.0].proj_in) is nn.Linear for p in (one, other))
    difference = ((kept - turned).norm() / turned.norm()).item()
    if lora:
        # onto fp8 it is quantised anew
        assert 0 < difference < 0.05
    else:
        assert difference < 1e-5
        assert 0 < ((kept - reference).norm() / reference.norm()).item() < 0.05


@pytest.mark.parametrize(("name", "lora", "bound"), [("quality-fp8", LORA, 0.05), ("distilled-fp8", "", 1e-5)])
def test_a_recipe_in_fp8_makes_its_clip_in_fp8_and_dequantised(made, name, lora, bound):
    """On LoRA'd weights in fp8 the sum is quantised anew."""
    (kept, one), (turned, other) = (
        made(name=name, checkpoint="tiny-fp8.safetensors", lora=lora, keep_fp8=keep) for keep in (True, False)
    )
    assert (len(linears(one)), len(linears(other))) == (34, 0)
    assert ((kept - turned).norm() / turned.norm()).item() < bound


def test_a_folder_of_diffusers_makes_the_clip_of_the_published_file(made, reference, diffusers_folder):
    frames, pipeline = made(checkpoint=str(diffusers_folder), text_encoder=str(diffusers_folder))
    assert pipeline.model.weights == "LTX-2.3"
    # what diffusers saved is rounded to bfloat16
    assert ((frames - reference).norm() / reference.norm()).item() < 0.02
