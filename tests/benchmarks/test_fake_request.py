"""Whole requests at the real size, from files to the MP4, under FakeTensorMode: nothing raises, nothing is left over.

Memory is what `ltxd plan` says.
"""

from dataclasses import replace

import pytest

from benchmarks import fake_request
from pipeline import memory
from pipeline.plan import make_plan
from pipeline.recipe import load
from pipeline.types import Size
from server.plan_command import weights_of

TOLERANCE = 0.03
"""Of peaks; the closed forms leave out tensors that do not grow with the clip."""


def planned(size, frames, *, residency, recipe):
    chosen = replace(load(recipe), max_tokens=10**9)
    made = make_plan(fake_request.request(size=size, frames=frames), chosen)
    needed = memory.needs(made, weights_of(chosen), memory=None)
    [need] = [need for need in needed if need.residency.name == residency]
    return need


def held(size, frames, *, residency="resident", recipe="demo"):
    seen = fake_request.record(size=size, frames=frames, recipe=load(recipe), residency=residency)
    need = planned(size, frames, residency=residency, recipe=recipe)
    assert (seen.frames, seen.has_sound) == (frames, True)
    assert seen.left == seen.resting == sum(seen.weights.values())
    for part, size_of_part in seen.weights.items():
        # of what visits, the tensors below memory.LARGE stay
        assert size_of_part == pytest.approx(need.weights[part], rel=0.001, abs=4e6), part
    for phase, peak in seen.peaks.items():
        assert peak == pytest.approx(need.phases[phase], rel=TOLERANCE), phase
    return seen


@pytest.fixture(scope="module")
def seen():
    return held(Size(1280, 704), 121)


def test_a_whole_request_runs_and_takes_the_memory_that_the_plan_says(seen):
    assert set(seen.peaks) == {"text", "image_encode", "denoise", "sound", "decode"}


def test_the_host_waits_once_a_call_and_else_only_before_the_first(seen):
    """Before it, four small tensors make the positions; the state is watched once before and once after each call.

    What was seen after the last one is read when the sound is due.
    """
    assert sorted(seen.waits["denoise"]) == ["event"] * 2 + ["tensor"] * 4
    assert seen.waits["sound"] == ["event"]


@pytest.mark.slow
@pytest.mark.parametrize("size", [(1920, 1088, 121), (1280, 704, 481), (704, 1280, 121)], ids=str)
def test_other_sizes(size):
    held(Size(*size[:2]), size[2])


@pytest.mark.slow
@pytest.mark.parametrize("residency", [r.name for r in memory.RESIDENCIES[1:]])
def test_every_residency(residency):
    held(Size(1280, 704), 121, residency=residency)


@pytest.mark.slow
@pytest.mark.parametrize("recipe", ["quality", "two-stage"])
def test_other_recipes(recipe):
    held(Size(1280, 704), 121, recipe=recipe)
