"""Recipes: everything about how a checkpoint is sampled that a request does not say, read from a TOML file."""

import tomllib
from dataclasses import dataclass, fields
from importlib import resources
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

from pipeline.errors import RecipeError

Sampler = Literal["euler", "euler_ancestral_cfg_pp"]
Engine = Literal["template", "gemma"]
"""Fixed clauses, or the language model that reads the prompts."""


@dataclass(frozen=True, slots=True)
class Recipe:
    """One way to sample. Fields are the keys of the file.

    Units: `pixels` is the area that `resolution: auto` aims at; `max_tokens` caps latent video tokens
    (frames/8 x height/32 x width/32); `image_crf` is an x264 CRF.
    """

    name: str
    summary: str
    sampler: Sampler
    sigmas: tuple[float, ...]
    """Curve of noise from 1 down to 0, read at as many places as there are steps; empty for the schedule that is
    shifted by the number of video tokens."""
    terminal: float
    """Last sigma before 0 of the shifted schedule; the model's authors use 0.1."""
    eta: float
    """Ancestral noise: 0 none, 1 all."""
    setup: str
    """Command that makes the files below."""
    checkpoint: str
    """Official single file, relative to the models directory."""
    text_encoder: str
    """Gemma folder in Hugging Face layout."""
    lora: str
    """Distilled LoRA; empty for none."""
    lora_strength: float
    image_crf: int
    """x264 CRF that the start image is passed through, as the model's training images were; 0 skips it."""
    pixels: int
    max_tokens: int
    expansion: Engine
    """Who writes the prompt when a request asks for expansion."""


def load(name: str) -> Recipe:
    """The recipe called `name`, or in the file at path `name`.

    Raises: RecipeError if there is none, or it has a missing, unknown or ill-typed key.
    """
    shipped = {p.name.removesuffix(".toml"): p for p in (resources.files("pipeline") / "recipes").iterdir()}
    source = shipped.get(name) or Path(name)
    try:
        table = tomllib.loads(source.read_text("utf-8"))
    except FileNotFoundError as error:
        known = ", ".join(sorted(n for n in shipped if not n.startswith("_")))
        raise RecipeError(f"there is no recipe {name!r}: it is neither a file nor one of {known}") from error
    except (tomllib.TOMLDecodeError, OSError) as error:
        raise RecipeError(f"recipe {name!r} cannot be read: {error}") from error
    return parse(table, origin=name)


def parse(table: dict[str, Any], *, origin: str) -> Recipe:
    """A recipe from the keys of its file.

    Raises: RecipeError.
    """
    wanted = {f.name: f.type for f in fields(Recipe)}
    if missing := wanted.keys() - table.keys():
        raise RecipeError(f"recipe {origin!r} lacks {', '.join(sorted(missing))}")
    if unknown := table.keys() - wanted.keys():
        raise RecipeError(f"recipe {origin!r} has unknown keys {', '.join(sorted(unknown))}")
    values: dict[str, Any] = {}
    for key, kind in wanted.items():
        value = table[key]
        allowed = get_args(kind) if get_origin(kind) is Literal else ()
        if allowed and value not in allowed:
            raise RecipeError(f"recipe {origin!r}: {key} is {value!r}, not one of {', '.join(allowed)}")
        if key == "sigmas":
            values[key] = _curve(value, origin=origin)
            continue
        expected: Any = str if allowed else kind
        if expected is float and type(value) is int:
            value = float(value)
        if type(value) is not expected:
            raise RecipeError(f"recipe {origin!r}: {key} is {value!r}, not a {expected.__name__}")
        values[key] = value
    return Recipe(**values)


def _curve(value: Any, *, origin: str) -> tuple[float, ...]:
    """The sigmas in `value`.

    Raises: RecipeError unless it is an empty list, or numbers that fall from 1 to 0.
    """
    if not isinstance(value, list) or not all(type(v) in (int, float) for v in value):
        raise RecipeError(f"recipe {origin!r}: sigmas is {value!r}, not a list of numbers")
    falls = all(a > b for a, b in pairwise(value))
    if value and not (falls and value[0] == 1 and value[-1] == 0):
        raise RecipeError(f"recipe {origin!r}: sigmas is {value!r}; it must fall from 1 to 0")
    return tuple(float(v) for v in value)
