from dataclasses import replace

import pytest
import torch

from pipeline import plan, recipe
from pipeline.denoise import Conditions, denoise
from pipeline.errors import NumericalError
from pipeline.trace import discard
from pipeline.transformer import Context
from pipeline.types import GenerationRequest, Size
from weights.checkpoint import Checkpoint, load_component


@pytest.fixture
def model(tiny):
    checkpoint = Checkpoint.open(tiny / "ltx-2.3-tiny.safetensors")
    return load_component(checkpoint, "transformer", dtype=torch.float32, device="cpu")


def context(seed):
    rng = torch.Generator().manual_seed(seed)
    return Context(torch.randn(1, 9, 32, generator=rng), torch.randn(1, 9, 16, generator=rng))


def run(model, *, passes_per_call=0, steps=3):
    request = GenerationRequest(
        prompt="",
        image=None,
        image_size=None,
        seed=1,
        negative_prompt="",
        size=Size(96, 64),
        num_frames=17,
        fps=24.0,
        steps=steps,
        guidance_scale=3.0,
        strength=0.7,
        audio=True,
        expand_prompt=False,
        check_safety=False,
        quality="high",
        write_mode="fast",
    )
    demo = recipe.load("demo")
    made = plan.make_plan(request, replace(demo, stages=(replace(demo.stages[0], terminal=0.1),)))
    conditions = Conditions(
        positive=context(1),
        negative=context(2),
        strength=0.7,
        seed=1,
        image_latents=torch.randn(1, 128, 1, 2, 3, generator=torch.Generator().manual_seed(3)),
    )
    steps = denoise(
        model,
        made.stages[0],
        plan=made,
        semantics="official",
        conditions=conditions,
        rng=torch.Generator().manual_seed(1),
        record=discard,
        passes_per_call=passes_per_call,
    )
    count = 0
    while True:
        try:
            next(steps)
            count += 1
        except StopIteration as end:
            return count, end.value


def counted(module, calls):
    module.register_forward_hook(lambda *_: calls.append(module))


def test_passes_one_at_a_time_make_what_all_at_once_make(model):
    calls = []
    counted(model.proj_in, calls)
    _, together = run(model)
    assert len(calls) == 3
    _, apart = run(model, passes_per_call=1)
    assert len(calls) == 3 + 6
    for a, b in zip(together, apart, strict=True):
        assert ((a - b).norm() / a.norm()).item() < 1e-5


def test_rope_tables_are_made_once_for_a_stage(model):
    calls = []
    counted(model.rope, calls)
    run(model)
    assert len(calls) == 1


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_number_that_is_none_ends_the_job_with_stage_and_step(model, value):
    model.proj_out.bias[5] = value
    with pytest.raises(NumericalError, match=r"stage 1 of 1, denoise at 3x2 latents, call 1 of 3: .* NaN or infinity"):
        run(model)
