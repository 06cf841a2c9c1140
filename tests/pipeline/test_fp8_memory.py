"""What a call takes with an fp8 file at the real size, counted on the meta device: one block of the transformer."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from benchmarks.count_forward import DTYPE, Tally, build, counting
from benchmarks.memory import Memory
from pipeline import fitting, memory, recipe
from pipeline.flops import PUBLISHED
from pipeline.transformer import Context, Runs, geometry, modulation, velocity
from weights import fp8

PLAN = fitting.ordinary(recipe.load("quality-fp8"))
GRID = (PLAN.latent_frames, PLAN.stages[0].height, PLAN.stages[0].width)
TOKENS = GRID[0] * GRID[1] * GRID[2]


def peak(rows, *, has_input_scale=None):
    """Bytes beside the weights, of `rows` passes: Linears in bfloat16, or in fp8 with or without scales for inputs."""

    def empty(*shape):
        return torch.empty(rows, *shape, dtype=DTYPE, device="meta")

    with Memory("meta") as counted:
        model = build(layers=1)
        if has_input_scale is not None:
            put_into_fp8(model, has_input_scale=has_input_scale)
        first = GRID[1] * GRID[2]
        geo = geometry(model, grid=GRID, fps=24.0, audio_tokens=PLAN.audio_tokens, dtype=DTYPE)
        pinned, sound = Runs((first, TOKENS - first), (0.3, 1.0)), Runs((PLAN.audio_tokens,), (1.0,))
        mod = modulation(model, 0.7, video=pinned, audio=sound, dtype=DTYPE)
        context = Context(video=empty(1024, PUBLISHED.video), audio=empty(1024, PUBLISHED.audio))
        video, audio = empty(TOKENS, PUBLISHED.channels), empty(PLAN.audio_tokens, PUBLISHED.channels)
        before = counted.peak = counted.live
        with counting(Tally()):
            velocity(model, video, audio, context=context, geometry=geo, modulation=mod)
    return counted.peak - before


def put_into_fp8(model, *, has_input_scale):
    for name, linear in list(model.transformer_blocks.named_modules(prefix="transformer_blocks")):
        if isinstance(linear, nn.Linear):
            fp8.replace(model, name, has_input_scale=has_input_scale)
            model.get_submodule(name).bias.data = linear.bias.data


def planned(rows, *, in_fp8, residency="evict-text"):
    weights = replace(memory.PUBLISHED_WEIGHTS, fp8=in_fp8)
    phases = memory.activations(PLAN, weights, passes_per_call=rows, residency=memory.named(residency))
    return phases["denoise"]


@pytest.mark.parametrize("rows", [1, 2])
def test_an_fp8_file_takes_what_the_plan_says_on_a_gpu_that_multiplies_in_fp8_and_on_one_that_does_not(
    rows, monkeypatch
):
    plain, dequantised = peak(rows), peak(rows, has_input_scale=False)
    monkeypatch.setattr(fp8, "multiplies_in_fp8", lambda *_: True)
    multiplied = peak(rows, has_input_scale=True)
    more = planned(rows, in_fp8=True) - planned(rows, in_fp8=False)
    assert max(dequantised, multiplied) - plain == pytest.approx(more, rel=0.01)
    assert min(dequantised, multiplied) > plain


@pytest.mark.parametrize("residency", [home.name for home in memory.RESIDENCIES])
def test_an_fp8_file_takes_more_for_its_calls_with_every_residency(residency):
    assert planned(1, in_fp8=True, residency=residency) == planned(1, in_fp8=True)
    assert planned(1, in_fp8=True) > planned(1, in_fp8=False)


def test_putting_a_tensor_into_fp8_takes_little_memory_beside_it():
    with Memory("meta") as counted:
        values, scale = (
            torch.empty(TOKENS, 4 * PUBLISHED.video, dtype=DTYPE, device="meta"),
            torch.empty((), device="meta"),
        )
        before = counted.live
        quantised = fp8.quantise(values, scale)
    assert counted.peak - before <= quantised.nbytes + 35e6
