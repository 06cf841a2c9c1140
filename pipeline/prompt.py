"""Prompt expansion without a language model: the user's words first and verbatim, then what they left unsaid."""

from typing import Final

_UNSAID: Final = (
    (
        ("light", "lit", "glow", "neon", "sun", "moon", "lamp", "dark", "bright", "shadow", "night", "dawn", "dusk"),
        "The light is natural and soft.",
    ),
    (
        ("detail", "sharp", "color", "colour", "style", "grain", "realistic", "cinematic"),
        "The colors are rich and true, every detail is sharp.",
    ),
    (
        ("sound", "music", "audio", "noise", "sing", "song", "voice", "silen", "quiet", "hum", "talk", "says", "hear"),
        "The natural sound of the place is heard, clear and close.",
    ),
)
"""Word stems that show a subject was spoken of, and what is said if none of them occurs. No clause names a motion."""


def expand(prompt: str) -> str:
    """`prompt` with a clause on light, look and sound for each that it does not mention."""
    said = prompt.strip()
    lower = said.lower()
    clauses = [clause for stems, clause in _UNSAID if not any(stem in lower for stem in stems)]
    if said and clauses and said[-1] not in ".!?":
        said += "."
    return " ".join([*([said] if said else []), *clauses])
