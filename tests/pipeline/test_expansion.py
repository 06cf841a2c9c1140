import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from pipeline import expansion, prompt

STORY = "A woman turns her head. The camera dollies in slowly. Rain patters on the glass."


def run(words, *, write, engine="gemma", image=None, clock=lambda: 0.0):
    steps = expansion.expand(words, engine=engine, write=write, image=image, seed=7, clock=clock)
    seen = []
    try:
        while True:
            seen.append(next(steps))
    except StopIteration as end:
        return end.value, seen


def says(answer, *, asked=None):
    """A language model that says `answer`, a word at a time."""

    def write(**task):
        if asked is not None:
            asked.append(task)
        parts = answer.split(" ")
        return (" ".join(parts[: n + 1]) for n in range(len(parts)))

    return write


def notes(seen):
    return [p.message for p in seen if p.message]


def test_the_template_asks_no_language_model():
    def write(**_):
        raise AssertionError

    made, seen = run("a cat", engine="template", write=write)
    assert made == prompt.expand("a cat")
    assert notes(seen) == ["prompt written by template: fixed clauses, no language model"]


def test_gemmas_answer_becomes_the_prompt_and_the_log_says_so():
    made, seen = run("she turns", write=says(STORY))
    assert made == STORY
    assert notes(seen) == ["prompt written by gemma from the words: 15 tokens in 0.0 s"]
    assert [p.step for p in seen if not p.message] == list(range(1, 16))


def test_gemma_is_told_what_to_do_and_sees_words_picture_and_seed(tmp_path):
    Image.new("RGB", (8, 6), "red").save(tmp_path / "image.png")
    asked = []
    _, seen = run(" she turns ", write=says(STORY, asked=asked), image=tmp_path / "image.png")
    (task,) = asked
    assert task["words"] == "The user's wish: she turns"
    assert task["image"].size == (8, 6)
    assert (task["seed"], task["max_tokens"]) == (7, expansion.MAX_TOKENS)
    assert "first frame" in task["instruction"]
    assert "the words and the start image" in notes(seen)[0]


def test_without_a_picture_gemma_is_told_nothing_of_one():
    asked = []
    run("", write=says(STORY, asked=asked))
    assert asked[0]["image"] is None
    assert "picture" not in asked[0]["instruction"]
    assert asked[0]["words"] == "The user wishes nothing in particular."


@pytest.mark.parametrize("image", [None, "image.png"])
@pytest.mark.parametrize("what", ["One paragraph", "in the order in which it happens", "camera", "light", "heard"])
def test_the_instruction_asks_for_what_the_model_wants(image, what):
    assert what in expansion.instruction_for(image)


@pytest.mark.parametrize("error", [RuntimeError("out of memory"), KeyError("x"), OSError("gone")])
def test_when_gemma_fails_the_template_writes_and_the_log_says_why(error):
    def write(**_):
        yield "A wom"
        raise error

    made, seen = run("a cat", write=write)
    assert made == prompt.expand("a cat")
    assert notes(seen) == [
        f"gemma wrote no prompt: it failed with {type(error).__name__}",
        "prompt written by template: fixed clauses, no language model",
    ]


@pytest.mark.parametrize("answer", ["", "  \n ", "...", "**", "```"])
def test_when_gemma_says_nothing_the_template_writes(answer):
    made, seen = run("a cat", write=says(answer))
    assert made == prompt.expand("a cat")
    assert notes(seen)[0] == "gemma wrote no prompt: its answer is empty"


def test_an_endless_answer_is_cut_at_the_token_limit_after_a_whole_sentence():
    drawn = []

    def write(**_):
        for n in itertools.count(1):
            drawn.append(n)
            yield "It rains. " * (n // 3) + "It"

    made, seen = run("a cat", write=write)
    assert len(drawn) == expansion.MAX_TOKENS
    assert set(made.split(". ")) <= {"It rains", "It rains."}
    assert made.endswith(".")
    assert "stopped at 512 tokens" in notes(seen)[0]


def test_a_slow_answer_is_cut_at_the_time_limit():
    now = itertools.count(0, 25)
    made, seen = run("a cat", write=says("One. Two. Three. Four. Five. Six. Seven. Eight."), clock=lambda: next(now))
    assert made.startswith("One.")
    assert not made.endswith("Eight.")
    assert "stopped at 60 s" in notes(seen)[0]


def test_a_cut_answer_without_a_whole_sentence_is_of_no_use():
    made, seen = run("a cat", write=lambda **_: ("word " * n for n in range(9999)))
    assert made == prompt.expand("a cat")
    assert "before the end of a sentence" in notes(seen)[0]


def test_giving_up_stops_the_language_model():
    closed = []

    def write(**_):
        try:
            for n in itertools.count():
                yield str(n)
        finally:
            closed.append(True)

    steps = expansion.expand("a cat", engine="gemma", write=write, image=None, seed=1)
    next(steps)
    steps.close()
    assert closed == [True]


@pytest.mark.parametrize(
    ("answer", "prompt_"),
    [
        (STORY, STORY),
        ("A cat\nruns.\n\nIt  rains.", "A cat runs. It rains."),
        ("**Prompt:** A cat runs.", "A cat runs."),
        ("Here's the expanded prompt:\n\nA cat runs.", "A cat runs."),
        ("Sure! Here is your video description: A cat runs.", "A cat runs."),
        ("Okay, let me do that:\nA cat runs.", "A cat runs."),
        ('"A cat runs."', "A cat runs."),
        ("\u201cA cat runs.\u201d", "A cat runs."),
        ("She says, \u201cIt\u2019s late.\u201d", 'She says, "It\'s late."'),
        ('"Go," she says, "now."', '"Go," she says, "now."'),
        ("# Scene\n- A cat *runs*.\n- It `rains`.", "Scene A cat runs. It rains."),
        ("```text\nA cat runs.\n```", "A cat runs."),
        ("1. A cat runs.\n2. It rains.", "A cat runs. It rains."),
        ("A cat runs.\n\nLet me know if you want more!", "A cat runs."),
        ("\u2026 A cat\u0000 runs\u200b.", "A cat runs ."),
        ("Here is a cat: it runs.", "Here is a cat: it runs."),
        ("Sure-footed, a goat climbs: up it goes.", "Sure-footed, a goat climbs: up it goes."),
        ("A 3 * 4 grid, 2 * 2 windows.", "A 3 * 4 grid, 2 * 2 windows."),
        ("\u732b\u304c\u8d70\u308b\u3002", "\u732b\u304c\u8d70\u308b\u3002"),
    ],
)
def test_an_answer_is_cleaned(answer, prompt_):
    assert expansion.cleaned(answer, complete=True) == prompt_


@given(st.text(max_size=200), st.booleans())
def test_a_cleaned_answer_is_one_printable_line_or_empty(answer, complete):
    made = expansion.cleaned(answer, complete=complete)
    assert made == "" or made.isprintable()
    assert made == made.strip()
    assert "  " not in made
