"""Recipes: everything about how a checkpoint is sampled that a request does not say, read from a TOML file."""

import tomllib
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, fields, is_dataclass, replace
from importlib import resources
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

from pipeline.errors import RecipeError

Sampler = Literal["euler", "euler_ancestral_cfg_pp", "res_2s"]
Schedule = Literal["shifted", "resampled", "fixed"]
Semantics = Literal["official", "comfy"]
Fit = Literal["official", "comfy"]
Engine = Literal["template", "gemma"]
"""Fixed clauses, or the language model that reads the prompts."""


@dataclass(frozen=True, slots=True)
class StreamGuidance:
    """How one stream's prediction is pushed away from those of the passes that leave something out."""

    share: float = 1.0
    """Of what the request's guidance scale has beyond 1: the stream's scale is 1 + share * (guidance_scale - 1)."""
    stg: float = 0.0
    """Push away from the pass whose self-attention is left out; 0 makes no such pass."""
    stg_blocks: tuple[int, ...] = ()
    modality: float = 1.0
    """Push away from the pass in which the streams do not see each other; 1 makes no such pass."""
    rescale: float = 0.0
    """Share of the guided prediction's spread that is brought back to that of the unguided one."""


@dataclass(frozen=True, slots=True)
class StageRecipe:
    """One pass of denoising."""

    sampler: Sampler
    schedule: Schedule
    """shifted: as many steps as asked for, shifted towards noise by the number of video tokens; resampled: `sigmas`
    read at as many places as there are steps; fixed: `sigmas` as they are, whatever the request asks for."""
    sigmas: tuple[float, ...] = ()
    terminal: float = 0.1
    """Last sigma before 0 of the shifted schedule; the model's authors use 0.1."""
    shift_tokens: int = 0
    """Video tokens that the shifted schedule is made for; 0: those of the clip."""
    shrink: int = 1
    """Sides of the finished clip over those of this stage."""
    eta: float = 0.0
    """Ancestral noise: 0 none, 1 all."""
    lora_strength: float = 0.0
    """0: without the LoRA."""
    video: StreamGuidance = StreamGuidance()
    audio: StreamGuidance = StreamGuidance()


@dataclass(frozen=True, slots=True)
class Defaults:
    """What is taken for fields that the client did not send."""

    steps: int
    guidance_scale: float
    strength: float


@dataclass(frozen=True, slots=True)
class Recipe:
    """One way to sample. Fields are the keys of the file.

    Units: `pixels` is the area that `resolution: auto` aims at; `max_tokens` caps latent video tokens
    (frames/8 x height/32 x width/32); `image_crf` is an x264 CRF.
    """

    name: str
    summary: str
    setup: str
    """Command that makes the files below."""
    checkpoint: str
    """Official single file, relative to the models directory."""
    text_encoder: str
    """Gemma folder in Hugging Face layout."""
    image_crf: int
    """x264 CRF that the start image is passed through, as the model's training images were; 0 skips it."""
    pixels: int
    max_tokens: int
    expansion: Engine
    """Who writes the prompt when a request asks for expansion."""
    defaults: Defaults
    stages: tuple[StageRecipe, ...]
    """The last one makes the finished size; each doubles the size of the one before."""
    lora: str = ""
    """Distilled LoRA; empty for none."""
    fp8_blocks: int = 0
    """Blocks of the transformer that the checkpoint has in fp8: for `ltxd plan`, which reads no file."""
    upsampler: str = ""
    """Model that doubles latents between stages; empty where there is one stage."""
    semantics: Semantics = "official"
    """What the pinned frame's denoise mask means to the sampler: see `pipeline.denoise`."""
    image_fit: Fit = "official"
    """official: the start image is scaled to cover the size, then cut; comfy: cut to the aspect, then scaled."""
    image_longest: int = 0
    """Pixels that the start image's longer side is scaled to before its CRF; 0 leaves it."""
    sound: Literal["first", "last"] = "last"
    """The stage whose sound is kept."""

    @property
    def files(self) -> tuple[str, ...]:
        """What must lie in the models directory."""
        return tuple(name for name in (self.checkpoint, self.lora, self.upsampler, self.text_encoder) if name)

    @property
    def cell(self) -> int:
        """Pixels that sides must be multiples of."""
        return 32 * max(stage.shrink for stage in self.stages)


def load(name: str, *, semantics: Semantics | Literal["recipe"] = "recipe") -> Recipe:
    """The recipe called `name`, or in the file at path `name`; with other `semantics` than its own if told so.

    Raises: RecipeError if there is none, or it has a missing, unknown or ill-typed key.
    """
    source = _shipped().get(name) or Path(name)
    try:
        table = tomllib.loads(source.read_text("utf-8"))
    except FileNotFoundError as error:
        raise RecipeError(
            f"there is no recipe {name!r}: it is neither a file nor one of {', '.join(shipped())}"
        ) from error
    except (tomllib.TOMLDecodeError, OSError, UnicodeDecodeError) as error:
        raise RecipeError(f"recipe {name!r} cannot be read: {error}") from error
    recipe = parse(table, origin=name)
    return recipe if semantics == "recipe" else replace(recipe, semantics=semantics)


def shipped() -> tuple[str, ...]:
    """Names of the recipes that come with the program."""
    return tuple(sorted(_shipped()))


def _shipped() -> dict[str, Any]:
    folder = resources.files("pipeline") / "recipes"
    return {path.name.removesuffix(".toml"): path for path in folder.iterdir() if path.name.endswith(".toml")}


def parse(table: Mapping[str, Any], *, origin: str) -> Recipe:
    """A recipe from the keys of its file.

    Raises: RecipeError.
    """
    recipe: Recipe = _build(Recipe, table, f"recipe {origin!r}")
    _check(recipe, f"recipe {origin!r}")
    return recipe


def _build(kind: Any, value: Any, where: str) -> Any:
    """The value of type `kind` that TOML has as `value`.

    Raises: RecipeError naming the key.
    """
    if is_dataclass(kind) and isinstance(kind, type):
        if not isinstance(value, Mapping):
            raise RecipeError(f"{where} is {value!r}, not a table")
        hints = get_type_hints(kind)
        needed = {f.name for f in fields(kind) if f.default is MISSING and f.default_factory is MISSING}
        if missing := needed - value.keys():
            raise RecipeError(f"{where} lacks {', '.join(sorted(missing))}")
        if unknown := value.keys() - hints.keys():
            raise RecipeError(f"{where} has unknown keys {', '.join(sorted(unknown))}")
        return kind(**{key: _build(hints[key], item, f"{where}: {key}") for key, item in value.items()})
    if get_origin(kind) is tuple:
        if not isinstance(value, list):
            raise RecipeError(f"{where} is {value!r}, not a list")
        inner = get_args(kind)[0]
        return tuple(_build(inner, item, f"{where}[{index}]") for index, item in enumerate(value))
    if get_origin(kind) is Literal:
        if value not in get_args(kind):
            raise RecipeError(f"{where} is {value!r}, not one of {', '.join(get_args(kind))}")
        return value
    if kind is float and type(value) is int:
        return float(value)
    if type(value) is not kind:
        raise RecipeError(f"{where} is {value!r}, not a {kind.__name__}")
    return value


def _check(recipe: Recipe, where: str) -> None:
    """Accepts a recipe whose keys agree with each other.

    Raises: RecipeError.
    """
    shrinks = [stage.shrink for stage in recipe.stages]
    if not shrinks or shrinks != [2**power for power in reversed(range(len(shrinks)))]:
        raise RecipeError(f"{where}: stages shrink by {shrinks}; the last must by 1, each before it by twice as much")
    if len(shrinks) > 1 and not recipe.upsampler:
        raise RecipeError(f"{where} has {len(shrinks)} stages and no upsampler to go from one to the next")
    if any(stage.lora_strength for stage in recipe.stages) and not recipe.lora:
        raise RecipeError(f"{where}: a stage has a lora_strength, and there is no lora")
    for index, stage in enumerate(recipe.stages):
        told = f"{where}: stages[{index}]: sigmas is {list(stage.sigmas)}"
        if stage.schedule == "shifted":
            if stage.sigmas:
                raise RecipeError(f"{told}; the shifted schedule makes its own")
            continue
        falls = all(a > b for a, b in pairwise(stage.sigmas))
        if len(stage.sigmas) < 2 or not falls or stage.sigmas[-1] != 0 or stage.sigmas[0] > 1:
            raise RecipeError(f"{told}; it must fall from at most 1 to 0")
        if index == 0 and stage.sigmas[0] != 1:
            raise RecipeError(f"{told}; the first stage begins with noise alone, at 1")
