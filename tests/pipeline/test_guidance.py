import pytest
import torch

from pipeline.guidance import guided
from pipeline.plan import Guidance

NONE = Guidance(scale=1.0, stg=0.0, stg_blocks=(), modality=1.0, rescale=0.0)


@pytest.fixture
def passes():
    rng = torch.Generator().manual_seed(0)
    return {name: torch.randn(1, 6, 4, generator=rng) for name in ("cond", "uncond", "ptb", "mod")}


def test_without_guidance_it_is_the_prediction_with_the_prompt(passes):
    assert torch.equal(guided(passes, NONE), passes["cond"])


def test_a_scale_of_three_is_three_times_the_way_from_the_negative_prompts_prediction(passes):
    found = guided(passes, Guidance(scale=3.0, stg=0.0, stg_blocks=(), modality=1.0, rescale=0.0))
    torch.testing.assert_close(found, passes["uncond"] + 3 * (passes["cond"] - passes["uncond"]))


def test_every_pass_pushes_by_its_own_scale(passes):
    found = guided(passes, Guidance(scale=3.0, stg=0.5, stg_blocks=(1,), modality=2.0, rescale=0.0))
    c = passes["cond"]
    wanted = c + 2 * (c - passes["uncond"]) + 0.5 * (c - passes["ptb"]) + (c - passes["mod"])
    torch.testing.assert_close(found, wanted)


@pytest.mark.parametrize("share", [0.0, 0.45, 1.0])
def test_rescaling_brings_the_spread_back_by_its_share(passes, share):
    plain = guided(passes, Guidance(scale=5.0, stg=0.0, stg_blocks=(), modality=1.0, rescale=0.0))
    found = guided(passes, Guidance(scale=5.0, stg=0.0, stg_blocks=(), modality=1.0, rescale=share))
    wanted = share * passes["cond"].std() + (1 - share) * plain.std()
    torch.testing.assert_close(found.std(), wanted)


def test_a_pass_that_was_made_for_the_other_stream_pushes_nothing(passes):
    assert torch.equal(guided({"cond": passes["cond"], "mod": passes["mod"]}, NONE), passes["cond"])
