"""Whole requests at the real size under FakeTensorMode: nothing raises, and memory is what `ltxd plan` says."""

from dataclasses import replace

import pytest

from benchmarks import fake_request
from pipeline import memory
from pipeline.plan import make_plan
from pipeline.recipe import load
from pipeline.types import Size

TOLERANCE = 0.03
"""Of peaks; the closed forms leave out tensors that do not grow with the clip."""


def planned(size, frames, *, residency, recipe):
    made = make_plan(fake_request.request(size=size, frames=frames), replace(load(recipe), max_tokens=10**9))
    needed = memory.needs(made, memory.PUBLISHED_WEIGHTS, memory=None)
    [need] = [need for need in needed if need.residency.name == residency]
    return need


def held(size, frames, *, residency="resident", recipe="demo"):
    seen = fake_request.record(size=size, frames=frames, recipe=load(recipe), residency=residency)
    need = planned(size, frames, residency=residency, recipe=recipe)
    assert seen.frames == frames
    for part in ("transformer", "connectors", "vae", "audio_vae", "vocoder"):
        assert seen.weights[part] == pytest.approx(need.weights[part], rel=0.001), part
    for phase, peak in seen.peaks.items():
        assert peak == pytest.approx(need.phases[phase], rel=TOLERANCE), phase
    return seen


@pytest.fixture(scope="module")
def seen():
    return held(Size(1280, 704), 121)


def test_a_whole_request_runs_and_takes_the_memory_that_the_plan_says(seen):
    assert set(seen.peaks) == {"image_encode", "denoise", "sound", "decode"}


def test_the_host_waits_once_a_call_and_else_only_before_the_first(seen):
    """Before it, four small tensors make the positions; the state is watched once before and once after each call."""
    assert sorted(seen.waits["denoise"]) == ["event"] * 3 + ["tensor"] * 4


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


def read(residency):
    need = planned(Size(1280, 704), 121, residency=residency, recipe="demo")
    peak, stays = fake_request.record_text(tokens=1024, residency=residency)
    # of what visits, the tensors below memory.LARGE stay
    assert stays == pytest.approx(need.weights["text_encoder"] + need.weights["connectors"], rel=0.001, abs=4e6)
    assert peak == pytest.approx(need.phases["text"], rel=TOLERANCE)


def test_reading_the_longest_prompt_takes_what_the_plan_says():
    read("stream")


@pytest.mark.slow
@pytest.mark.parametrize("residency", [r.name for r in memory.RESIDENCIES[:-1]])
def test_reading_takes_what_the_plan_says_with_every_residency(residency):
    read(residency)


@pytest.mark.slow
def test_writing_takes_what_the_plan_says():
    """1,024 tokens of words, 256 of the image, and the instruction, which has 1,702 letters, and some to spare."""
    need = planned(Size(1280, 704), 121, residency="resident", recipe="demo")
    assert fake_request.record_writing(tokens=1_800) == pytest.approx(need.phases["expand"], rel=TOLERANCE)
