"""The safety checker: looks at the prompt and the start image before any work, and at frames of what was made.

What it can and cannot see stands in docs/safety.md.
"""

import logging
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
from PIL import Image

from pipeline import classifiers, word_list
from pipeline.classifiers import Classifier, Pixels
from pipeline.errors import ContentError, SafetyUnavailableError, WeightsError
from pipeline.types import Progress
from pipeline.word_list import Rule

FRAMES: Final = 8
"""Frames of a clip that are looked at, spread over its length."""
FLAGGED: Final = "The content could not be processed because it contained material flagged by a content checker."
"""What the caller is told. Source: fal's documentation of errors."""

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Checker:
    """What is looked with, and the score from which a picture is flagged."""

    rules: Sequence[Rule]
    classifier: Classifier
    threshold: float


@dataclass(frozen=True)
class Safety:
    """Whether clips are checked. Without a checker, a clip that is to be checked is not made."""

    checker: Checker | None = None
    forced: bool = False
    """The operator does not let a request switch the check off."""


def load(*, classifier: Path | None, threshold: float, forced: bool) -> Safety:
    """The safety of a process: with `classifier`, a folder, or the one that comes with the program.

    A checker that does not load is told to the log, and missing from what is given.
    """
    try:
        checker = Checker(word_list.shipped(), classifiers.load(classifier), threshold)
    except WeightsError as error:
        log.error("the safety checker did not load: %s; every request that asks for it will be refused", error)
        return Safety(forced=forced)
    log.info("safety checker: word list and %s, threshold %g", checker.classifier.name, threshold)
    return Safety(checker, forced=forced)


class Watch:
    """One clip under watch. Each method yields lines for the job's log, and raises once something is flagged.

    Raises: ContentError; SafetyUnavailableError from the first method called.
    """

    def __init__(self, safety: Safety, *, asked: bool, num_frames: int) -> None:
        self._safety, self._asked = safety, asked
        self._checker = safety.checker if asked or safety.forced else None
        self._frames = set(np.linspace(0, num_frames - 1, min(FRAMES, num_frames)).round().astype(int).tolist())
        self._seen: list[str] = []
        self._highest = 0.0
        self._looked_at = 0

    def begin(self) -> Generator[Progress, None, None]:
        """Says whether the clip is checked, and refuses one that cannot be."""
        if not self._asked:
            forced = "true all the same, as the operator says" if self._safety.forced else "false: nothing is checked"
            yield _line(f"enable_safety_checker is {forced}")
        if self._checker is None and (self._asked or self._safety.forced):
            raise SafetyUnavailableError(
                "The safety checker is enabled and could not be loaded on this server, so that nothing was generated; "
                "the server's log at its start says why",
                field="check_safety",
            )

    def prompt(self, words: str) -> Generator[Progress, None, None]:
        """Looks at the words of a prompt, the user's or an expanded one."""
        if self._checker is None:
            return
        if (rule := word_list.flagged(words, self._checker.rules)) is not None:
            yield _line(f"safety checker: the prompt was flagged by the word list, rule {rule!r}")
            raise ContentError(FLAGGED, field="prompt")
        self._seen = self._seen or ["the prompt by the word list"]

    def image(self, path: Path) -> Generator[Progress, None, None]:
        """Looks at the start image."""
        if self._checker is None:
            return
        with Image.open(path) as opened:
            score = yield from self._score(np.asarray(opened.convert("RGB")), what="start image", field="image")
        self._seen.append(f"the start image ({score:.2f})")

    def frames(self, pixels: Pixels, *, first: int) -> Generator[Progress, None, None]:
        """Looks at those of the next frames that are to be looked at. Shapes: [n, H, W, 3]."""
        if self._checker is None:
            return
        for index, picture in enumerate(pixels, first):
            if index in self._frames:
                score = yield from self._score(picture, what=f"frame {index}", field="prompt")
                self._highest, self._looked_at = max(self._highest, score), self._looked_at + 1

    def end(self) -> Generator[Progress, None, None]:
        """Says what was looked at."""
        if self._checker is not None:
            frames = f"{self._looked_at} frames (highest {self._highest:.2f})"
            seen = f"{', '.join(self._seen)} and {frames}"
            name, threshold = self._checker.classifier.name, self._checker.threshold
            yield _line(f"safety checker: {seen} by {name} at threshold {threshold:.2f}: nothing flagged")

    def _score(self, picture: Pixels, *, what: str, field: str) -> Generator[Progress, None, float]:
        if self._checker is None:
            return 0.0
        classifier, threshold = self._checker.classifier, self._checker.threshold
        score = classifier.score(picture)
        # not a number is flagged too
        if not score < threshold:
            yield _line(
                f"safety checker: {what} was flagged by {classifier.name}: {score:.2f}, threshold {threshold:.2f}"
            )
            raise ContentError(FLAGGED, field=field)
        return score


def _line(message: str) -> Progress:
    return Progress("safety", 1, 1, message=message)
