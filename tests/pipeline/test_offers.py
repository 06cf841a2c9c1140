from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from pipeline import recipe
from pipeline.offers import Offers, offers
from pipeline.plan import make_plan
from pipeline.types import GenerationRequest, Size

DEMO = replace(recipe.load("demo"), max_tokens=10**6)
REQUEST = GenerationRequest(
    prompt="",
    image=None,
    image_size=Size(3, 2),
    seed=1,
    negative_prompt="",
    size=Size(512, 288),
    num_frames=121,
    fps=24.0,
    steps=2,
    guidance_scale=1.0,
    strength=1.0,
    audio=True,
    expand_prompt=False,
    check_safety=False,
    quality="high",
    write_mode="fast",
)


def test_offered_are_the_longest_and_the_largest_that_fit():
    found = offers(REQUEST, DEMO, fits=lambda plan: plan.megapixels <= 9)
    assert found == Offers(57, Size(352, 192))
    assert found.words == ["57 frames at this size", "352x192 at this length"]


def test_nothing_is_offered_where_nothing_fits():
    assert offers(REQUEST, DEMO, fits=lambda _plan: False).words == []


def test_a_size_that_follows_from_the_image_is_made_smaller_too():
    found = offers(replace(REQUEST, size=None), DEMO, fits=lambda plan: plan.size.width < 400)
    assert found.size == Size(384, 256)
    assert found.num_frames is None


@given(
    size=st.builds(Size, st.integers(64, 2048), st.integers(64, 2048)),
    num_frames=st.integers(9, 481),
    share=st.floats(0.01, 0.99),
)
def test_whatever_is_asked_for_an_offer_is_smaller_and_fits(size, num_frames, share):
    request = replace(REQUEST, size=size, num_frames=num_frames)
    most = make_plan(request, DEMO).megapixels * share
    found = offers(request, DEMO, fits=lambda plan: plan.megapixels <= most)
    if found.num_frames is not None:
        assert make_plan(replace(request, num_frames=found.num_frames), DEMO).megapixels <= most
    if found.size is not None:
        plan = make_plan(replace(request, size=found.size), DEMO)
        assert plan.size == found.size
        assert plan.megapixels <= most
