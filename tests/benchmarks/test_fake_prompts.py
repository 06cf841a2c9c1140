"""Reading and writing prompts at the real size take the memory that `ltxd plan` says."""

import pytest

from benchmarks import fake_prompts, fake_request
from pipeline import memory
from pipeline.plan import make_plan
from pipeline.recipe import load
from pipeline.types import Size

TOLERANCE = 0.03


def planned(residency):
    made = make_plan(fake_request.request(size=Size(1280, 704), frames=121), load("quality"))
    needed = memory.needs(made, memory.PUBLISHED_WEIGHTS, memory=None)
    [need] = [need for need in needed if need.residency.name == residency]
    return need


def read(residency):
    need = planned(residency)
    peak, stays = fake_prompts.record_text(tokens=1024, residency=residency)
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
    need = planned("resident")
    assert fake_prompts.record_writing(tokens=1_800) == pytest.approx(need.phases["expand"], rel=TOLERANCE)
