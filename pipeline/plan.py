"""Decides every number of a generation from the request and the recipe, before any model is touched."""

import math
from dataclasses import dataclass
from fractions import Fraction
from typing import Final

from pipeline import sigmas as schedules
from pipeline.encoding import Encoding, encoding, frame_rate
from pipeline.errors import OverBudgetError
from pipeline.recipe import Recipe
from pipeline.types import GenerationRequest, Size

CELL: Final = 32
"""Pixels a latent cell covers across and down."""
CELL_FRAMES: Final = 8
"""Frames a latent frame covers, but for the first, which covers one."""
LONGEST_SECONDS: Final = 20.0
"""Video positions reach 20 s (`positional_embedding_max_pos`); beyond, the model has seen nothing."""
AUDIO_TOKENS_PER_SECOND: Final = 25
MEGAPIXEL: Final = 1_000_000


@dataclass(frozen=True, slots=True)
class Stage:
    """One pass of denoising.

    Units: `height` and `width` in latent cells.
    """

    height: int
    width: int
    sigmas: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Plan:
    """Every number of one generation.

    Units: `fps` frames a second as played; `conditioning_fps` as told to the model; `audio_tokens` 25 a second.
    """

    size: Size
    num_frames: int
    fps: Fraction
    conditioning_fps: float
    latent_frames: int
    audio_tokens: int
    stages: tuple[Stage, ...]
    encoding: Encoding
    has_audio: bool
    notes: tuple[str, ...]
    """What was changed from the request, for its log."""

    @property
    def megapixels(self) -> int:
        """Millions of generated pixels, rounded up: the unit that fal bills."""
        return math.ceil(self.size.width * self.size.height * self.num_frames / MEGAPIXEL)


def make_plan(request: GenerationRequest, recipe: Recipe) -> Plan:
    """The plan for `request` under `recipe`.

    Raises: OverBudgetError when the clip has more latent tokens than the recipe allows.
    """
    notes = []
    size = fitted(request.image_size, area=recipe.pixels) if request.size is None else snapped(request.size)
    if request.size is None:
        notes.append(f"resolution auto: {size} from the image's {request.image_size}")
    elif size != request.size:
        notes.append(f"resolution {request.size} becomes {size}: sides are multiples of {CELL}")
    num_frames = snapped_frames(request.num_frames)
    if num_frames != request.num_frames:
        notes.append(f"num_frames {request.num_frames} becomes {num_frames}: lengths are 8k+1")
    latent_frames = (num_frames - 1) // CELL_FRAMES + 1
    height, width = size.height // CELL, size.width // CELL
    check_budget(recipe, size=size, num_frames=num_frames, field="num_frames" if request.size is None else "size")
    conditioning_fps = max(request.fps, (num_frames - 1) / LONGEST_SECONDS)
    if conditioning_fps != request.fps:
        notes.append(
            f"at {request.fps:g} fps the clip lasts {num_frames / request.fps:.0f} s: motion and sound are made for "
            f"{LONGEST_SECONDS:g} s, the longest the model knows, and played at {request.fps:g} fps"
        )
    if recipe.sigmas:
        sigmas = schedules.resampled(recipe.sigmas, request.steps)
    else:
        sigmas = schedules.shifted(request.steps, tokens=latent_frames * height * width, terminal=recipe.terminal)
    return Plan(
        size=size,
        num_frames=num_frames,
        fps=frame_rate(request.fps),
        conditioning_fps=conditioning_fps,
        latent_frames=latent_frames,
        audio_tokens=round(num_frames / conditioning_fps * AUDIO_TOKENS_PER_SECOND),
        stages=(Stage(height, width, sigmas),),
        encoding=encoding(request.quality, request.write_mode),
        has_audio=request.audio,
        notes=tuple(notes),
    )


def check_budget(recipe: Recipe, *, size: Size, num_frames: int, field: str) -> None:
    """Accepts a size and length, both snapped, that `recipe` can make.

    Raises: OverBudgetError, at `field`, naming the cap and what would fit.
    """
    latent_frames = (num_frames - 1) // CELL_FRAMES + 1
    cells = size.width * size.height // CELL**2
    tokens = latent_frames * cells
    if tokens <= recipe.max_tokens:
        return
    fitting_frames = (recipe.max_tokens // cells - 1) * CELL_FRAMES + 1
    fitting = fitted(size, area=recipe.max_tokens // latent_frames * CELL**2)
    offers = [f"{fitting} at this length"]
    if fitting_frames >= CELL_FRAMES + 1:
        offers.insert(0, f"{fitting_frames} frames at this size")
    raise OverBudgetError(
        f"{size} at {num_frames} frames is {tokens:,} latent tokens; "
        f"recipe {recipe.name!r} allows {recipe.max_tokens:,}: {' or '.join(offers)} would fit",
        field=field,
        context={"max_tokens": recipe.max_tokens, "tokens": tokens, "max_num_frames": max(0, fitting_frames)},
    )


def snapped(size: Size) -> Size:
    """The nearest size the model can make that keeps the aspect.

    The short side is floored to a cell and the long one follows, rounded to a cell: 1920x1080 gives 1888x1056.
    Source: fal's page of the sibling endpoint extend-video.
    """
    short, long = sorted((size.width, size.height))
    return _oriented(size, Fraction(short), Fraction(long))


def fitted(aspect: Size, *, area: int) -> Size:
    """The size of about `area` pixels with the aspect of `aspect`, snapped: 16:9 in 147,456 px gives 512x288."""
    short, long = sorted((aspect.width, aspect.height))
    # one part in a million keeps an exact fit, such as 288, from being floored to the cell below
    side = Fraction(math.sqrt(area * short / long) * (1 + 1e-6))
    return _oriented(aspect, side, side * long / short)


def _oriented(like: Size, short: Fraction, long: Fraction) -> Size:
    short_side = max(CELL, int(short // CELL) * CELL)
    long_side = max(short_side, round(long * short_side / short / CELL) * CELL)
    return Size(long_side, short_side) if like.width >= like.height else Size(short_side, long_side)


def snapped_frames(frames: int) -> int:
    """The longest length of form 8k+1 that is not above `frames`."""
    return max(1, (frames - 1) // CELL_FRAMES * CELL_FRAMES + 1)
