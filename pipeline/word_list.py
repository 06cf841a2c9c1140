"""Rules on the words of a prompt, read from a TOML file."""

import re
import tomllib
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from typing import Any


@dataclass(frozen=True, slots=True)
class Rule:
    """What a prompt must have in it to be flagged, and what is taken out of it before. `beside` None: nothing more."""

    name: str
    any: re.Pattern[str]
    beside: re.Pattern[str] | None
    harmless: re.Pattern[str] | None

    def flags(self, words: str) -> bool:
        """Whether the rule flags `words`, which are plain."""
        if self.harmless is not None:
            words = self.harmless.sub(" ", words)
        return bool(self.any.search(words)) and (self.beside is None or bool(self.beside.search(words)))


def shipped() -> tuple[Rule, ...]:
    """The rules that come with the program."""
    text = (resources.files("pipeline") / "safety_words.toml").read_text("utf-8")
    return tuple(_rule(**table) for table in _tables(tomllib.loads(text)))


def flagged(prompt: str, rules: Sequence[Rule]) -> str | None:
    """The name of the first rule that flags `prompt`."""
    words = plain(prompt)
    return next((rule.name for rule in rules if rule.flags(words)), None)


def plain(text: str) -> str:
    """`text` in lower case, without accents, its words apart by one space, whatever stood between them."""
    spread = unicodedata.normalize("NFKD", text.casefold())
    shown = (c for c in spread if unicodedata.category(c) not in ("Mn", "Cf"))
    return " ".join(re.findall(r"\w+", "".join(shown).replace("_", " ")))


def _tables(data: dict[str, Any]) -> list[dict[str, Any]]:
    return [
        {"name": t["name"], "any_of": t["any"], "beside": t.get("with", []), "harmless": t.get("except", [])}
        for t in data["rules"]
    ]


def _rule(*, name: str, any_of: Sequence[str], beside: Sequence[str], harmless: Sequence[str]) -> Rule:
    return Rule(
        name=name,
        any=_pattern(any_of),
        beside=_pattern(beside) if beside else None,
        harmless=_pattern(harmless) if harmless else None,
    )


def _pattern(phrases: Sequence[str]) -> re.Pattern[str]:
    choices = "|".join(re.escape(phrase).replace(r"\*", r"\w*") for phrase in sorted(phrases, key=len, reverse=True))
    return re.compile(rf"\b(?:{choices})\b")
