import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline import prompt

MOTION_WORDS = ("pan", "tilt", "zoom", "dolly", "push", "pull", "left", "right", "up", "down", "in ", "out", "move")


@given(st.text(max_size=300))
def test_the_users_words_come_first_and_verbatim(words):
    assert prompt.expand(words).startswith(words.strip())


def test_expansion_adds_no_motion():
    added = prompt.expand("").lower()
    assert added
    assert not [word for word in MOTION_WORDS if word in added]


@pytest.mark.parametrize(
    ("words", "left_out"),
    [("a neon-lit street", "light is natural"), ("a cat, soft music", "natural sound"), ("sharp detail", "colors")],
)
def test_what_the_user_spoke_of_is_not_said_again(words, left_out):
    assert left_out not in prompt.expand(words)


def test_expanding_twice_adds_nothing():
    once = prompt.expand("a cat on a wall")
    assert prompt.expand(once) == once
