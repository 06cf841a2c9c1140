"""Prompt expansion: which engine writes the prompt, within which bounds, and what is made of its answer."""

import logging
import re
import time
from collections.abc import Callable, Generator, Iterator
from importlib import resources
from pathlib import Path
from typing import Final, Protocol

from PIL import Image

from pipeline import prompt
from pipeline.recipe import Engine
from pipeline.types import Progress

MAX_TOKENS: Final = 512
MAX_SECONDS: Final = 60.0

log = logging.getLogger(__name__)


class Write(Protocol):
    """A language model."""

    def __call__(
        self, *, instruction: str, words: str, image: Image.Image | None, seed: int, max_tokens: int
    ) -> Iterator[str]:
        """The answer to `words` under `instruction` as far as it has come, after each token."""


def expand(
    words: str,
    *,
    engine: Engine,
    write: Write,
    image: Path | None,
    seed: int,
    clock: Callable[[], float] = time.monotonic,
) -> Generator[Progress, None, str]:
    """The prompt that `engine` makes of `words`; the progress says which engine it was and how it went.

    A language model that fails or says nothing of use is replaced by the template.
    """
    if engine == "gemma":
        began = clock()
        try:
            answer, tokens, limit = yield from _written(words, write=write, image=image, seed=seed, clock=clock)
            made = cleaned(answer, complete=limit is None)
            reason = "its answer is empty" if limit is None else f"it reached {limit} before the end of a sentence"
        except Exception as error:
            # why: whatever stopped the writer, the clip can be made without it
            log.warning("prompt expansion failed", exc_info=error)
            made, reason = "", f"it failed with {type(error).__name__}"
        if made:
            sources = "the words" if image is None else "the words and the start image"
            stopped = "" if limit is None else f", stopped at {limit}"
            note = f"prompt written by gemma from {sources}: {tokens} tokens in {clock() - began:.1f} s{stopped}"
            yield Progress("expand", 1, 1, message=note)
            return made
        yield Progress("expand", 1, 1, message=f"gemma wrote no prompt: {reason}")
    yield Progress("expand", 1, 1, message="prompt written by template: fixed clauses, no language model")
    return prompt.expand(words)


def _written(
    words: str, *, write: Write, image: Path | None, seed: int, clock: Callable[[], float]
) -> Generator[Progress, None, tuple[str, int, str | None]]:
    """The answer, its tokens, and the limit that ended it, if one did."""
    instruction, picture = instruction_for(image), None
    if image is not None:
        with Image.open(image) as opened:
            picture = opened.convert("RGB")
    wish = f"The user's wish: {words.strip()}" if words.strip() else "The user wishes nothing in particular."
    answer, tokens, began = "", 0, clock()
    for answer in write(instruction=instruction, words=wish, image=picture, seed=seed, max_tokens=MAX_TOKENS):
        tokens += 1
        if tokens >= MAX_TOKENS:
            return answer, tokens, f"{MAX_TOKENS} tokens"
        if clock() - began >= MAX_SECONDS:
            return answer, tokens, f"{MAX_SECONDS:g} s"
        yield Progress("expand", tokens, MAX_TOKENS)
    return answer, tokens, None


def instruction_for(image: Path | None) -> str:
    """What the language model is told to do."""
    name = "expand_text_only.txt" if image is None else "expand_with_image.txt"
    return (resources.files("pipeline") / "prompts" / name).read_text("utf-8")


_STRAIGHT: Final = str.maketrans("\u201c\u201d\u201e\u00ab\u00bb\u2018\u2019\u201a", '"""""\'\'\'')
"""Typographic quotes to straight ones."""
_MARKS: Final = re.compile(r"^\s*(?:#+\s+|[-*•]\s+|\d+[.)]\s+|>\s+|```\w*\s*$|-{3,}\s*$)", re.MULTILINE)
_EMPHASIS: Final = re.compile(r"(\*\*|__|\*|`)(?=\S)(.+?)(?<=\S)\1")
_PREAMBLE: Final = re.compile(
    r"^(?:(?:sure|okay|certainly|of course)[,.!]?\s[^\n:]{0,80}[:\n]\s*"
    r"|(?:here(?:'s| is)\b[^\n:]{0,80}\b)?(?:prompt|description|paragraph|caption)\s*:\s*)+",
    re.IGNORECASE,
)
_REMARK: Final = re.compile(
    r"\n\s*\n\s*(?:let me know|would you like|i hope|feel free|note:|\(note)\b.*\Z", re.IGNORECASE | re.DOTALL
)
_SENTENCE_END: Final = re.compile(r"""[.!?]["')]*(?=\s|$)""")


def cleaned(answer: str, *, complete: bool) -> str:
    """The prompt in a language model's answer: one paragraph, no Markdown, no remarks; empty if there is none.

    An answer that is not complete ends with its last whole sentence.
    """
    text = _REMARK.sub("", answer.translate(_STRAIGHT))
    text = _EMPHASIS.sub(r"\2", _MARKS.sub("", text))
    text = _PREAMBLE.sub("", text.strip())
    text = "".join(c if c.isprintable() else " " for c in text)
    text = re.sub(r"\s+", " ", text).strip()
    if len(text) > 1 and text[0] == text[-1] == '"' and '"' not in text[1:-1]:
        text = text[1:-1].strip()
    text = re.sub(r'^[^\w"\']+', "", text)
    if not complete:
        ends = [match.end() for match in _SENTENCE_END.finditer(text)]
        text = text[: ends[-1]] if ends else ""
    return text if any(c.isalpha() for c in text) else ""
