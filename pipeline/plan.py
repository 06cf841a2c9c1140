"""Decides every number of a generation from the request and the recipe, before any model is touched."""

import math
from dataclasses import dataclass
from fractions import Fraction
from typing import Final, Literal

from pipeline import sigmas as schedules
from pipeline.decoding import CELL, Decoding, fitting
from pipeline.encoding import Encoding, encoding, frame_rate
from pipeline.errors import OverBudgetError
from pipeline.recipe import Recipe, Sampler, StageRecipe, StreamGuidance
from pipeline.types import GenerationRequest, Size

CELL_FRAMES: Final = 8
"""Frames a latent frame covers, but for the first, which covers one."""
LONGEST_SECONDS: Final = 20.0
"""Video positions reach 20 s (`positional_embedding_max_pos`); beyond, the model has seen nothing."""
AUDIO_TOKENS_PER_SECOND: Final = 25
DECODED_BYTES: Final = 2
"""A value of the VAE's on a device that is short of memory: bfloat16."""
MEGAPIXEL: Final = 1_000_000


Pass = Literal["cond", "uncond", "ptb", "mod"]
"""With the prompt; with the negative prompt; with self-attention left out; with the streams apart."""


@dataclass(frozen=True, slots=True)
class Guidance:
    """How far one stream's prediction is pushed away from those of the other passes."""

    scale: float
    """Away from the negative prompt's; 1 is none."""
    stg: float
    """Away from the one without self-attention in `stg_blocks`; 0 is none."""
    stg_blocks: tuple[int, ...]
    modality: float
    """Away from the one that does not know the other stream; 1 is none."""
    rescale: float
    """Share of the guided prediction's spread that is brought back to that of the unguided one."""


@dataclass(frozen=True, slots=True)
class Stage:
    """One pass of denoising.

    Units: `height` and `width` in latent cells.
    """

    height: int
    width: int
    sampler: Sampler
    sigmas: tuple[float, ...]
    eta: float
    lora_strength: float
    video: Guidance
    audio: Guidance

    @property
    def passes(self) -> tuple[Pass, ...]:
        """The passes of each transformer call: those that guidance or the sampler looks at, and no other."""
        both = (self.video, self.audio)
        uncond = self.sampler == "euler_ancestral_cfg_pp" or any(g.scale != 1 for g in both)
        wanted: tuple[tuple[Pass, bool], ...] = (
            ("cond", True),
            ("uncond", uncond),
            ("ptb", any(g.stg != 0 for g in both)),
            ("mod", any(g.modality != 1 for g in both)),
        )
        return tuple(name for name, needed in wanted if needed)

    @property
    def calls(self) -> int:
        """Transformer calls, each with all passes: one a step, but two a step and one at the end with res_2s."""
        steps = len(self.sigmas) - 1
        return 2 * steps + 1 if self.sampler == "res_2s" else steps


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
    decoding: Decoding
    encoding: Encoding
    has_audio: bool
    notes: tuple[str, ...]
    """What was changed from the request, for its log."""

    @property
    def is_slowed(self) -> bool:
        """Whether the clip is played slower than it is made for, so that its sound ends before its picture."""
        return self.conditioning_fps > float(self.fps) * (1 + 1e-6)

    @property
    def latent_tokens(self) -> int:
        """Of the picture at its full size."""
        return self.latent_frames * self.size.width * self.size.height // CELL**2

    @property
    def megapixels(self) -> int:
        """Millions of generated pixels, rounded up: the unit that fal bills."""
        return math.ceil(self.size.width * self.size.height * self.num_frames / MEGAPIXEL)


def make_plan(request: GenerationRequest, recipe: Recipe, *, decode_memory: int | None = None) -> Plan:
    """The plan for `request` under `recipe`.

    Units: `decode_memory` bytes that decoding may take on the device, None where it may take what it likes.
    Raises: OverBudgetError when the clip has more latent tokens than the recipe allows.
    """
    notes = []
    if request.size is not None:
        size = snapped(request.size, cell=recipe.cell)
        if size != request.size:
            notes.append(f"resolution {request.size} becomes {size}: sides are multiples of {recipe.cell}")
    elif request.image_size is not None:
        size = fitted(request.image_size, area=recipe.pixels, cell=recipe.cell)
        notes.append(f"resolution auto: {size} from the image's {request.image_size}")
    else:
        raise ValueError("without an image the size must be given")
    num_frames = snapped_frames(request.num_frames)
    if num_frames != request.num_frames:
        notes.append(f"num_frames {request.num_frames} becomes {num_frames}: lengths are 8k+1")
    latent_frames = (num_frames - 1) // CELL_FRAMES + 1
    check_budget(recipe, size=size, num_frames=num_frames, field="num_frames" if request.size is None else "size")
    conditioning_fps = max(request.fps, (num_frames - 1) / LONGEST_SECONDS)
    if conditioning_fps != request.fps:
        notes.append(
            f"at {request.fps:g} fps the clip lasts {num_frames / request.fps:.0f} s: motion and sound are made for "
            f"{LONGEST_SECONDS:g} s, the longest the model knows, and played at {request.fps:g} fps"
        )
    decoding = fitting(size, memory=decode_memory, value_bytes=DECODED_BYTES)
    if decoding.tiles is not None:
        notes.append(
            f"decoded in tiles of {decoding.tiles.length * CELL} pixels, blended where they meet: the device has "
            f"{(decode_memory or 0) / 1e9:.1f} GB for it"
        )
    stages = tuple(_stage(stage, request, size=size, latent_frames=latent_frames) for stage in recipe.stages)
    return Plan(
        size=size,
        num_frames=num_frames,
        fps=frame_rate(request.fps),
        conditioning_fps=conditioning_fps,
        latent_frames=latent_frames,
        audio_tokens=round(num_frames / conditioning_fps * AUDIO_TOKENS_PER_SECOND),
        stages=stages,
        decoding=decoding,
        encoding=encoding(request.quality, request.write_mode),
        has_audio=request.audio,
        notes=tuple(notes),
    )


def _stage(stage: StageRecipe, request: GenerationRequest, *, size: Size, latent_frames: int) -> Stage:
    height, width = size.height // CELL // stage.shrink, size.width // CELL // stage.shrink
    match stage.schedule:
        case "shifted":
            tokens = stage.shift_tokens or latent_frames * height * width
            sigmas = schedules.shifted(request.steps, tokens=tokens, terminal=stage.terminal)
        case "resampled":
            sigmas = schedules.resampled(stage.sigmas, request.steps)
        case "fixed":
            sigmas = stage.sigmas
    return Stage(
        height=height,
        width=width,
        sampler=stage.sampler,
        sigmas=sigmas,
        eta=stage.eta,
        lora_strength=stage.lora_strength,
        video=_guidance(stage.video, request.guidance_scale),
        audio=_guidance(stage.audio, request.guidance_scale),
    )


def _guidance(stream: StreamGuidance, guidance_scale: float) -> Guidance:
    return Guidance(
        scale=1 + stream.share * (guidance_scale - 1),
        stg=stream.stg,
        stg_blocks=stream.stg_blocks,
        modality=stream.modality,
        rescale=stream.rescale,
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
    fitting = fitted(size, area=recipe.max_tokens // latent_frames * CELL**2, cell=recipe.cell)
    offers = [f"{fitting} at this length"]
    if fitting_frames >= CELL_FRAMES + 1:
        offers.insert(0, f"{fitting_frames} frames at this size")
    raise OverBudgetError(
        f"{size} at {num_frames} frames is {tokens:,} latent tokens; "
        f"recipe {recipe.name!r} allows {recipe.max_tokens:,}: {' or '.join(offers)} would fit",
        field=field,
        context={"max_tokens": recipe.max_tokens, "tokens": tokens, "max_num_frames": max(0, fitting_frames)},
    )


def snapped(size: Size, *, cell: int = CELL) -> Size:
    """The nearest size the model can make, in multiples of `cell`, that keeps the aspect.

    The short side is floored to a cell and the long one follows, rounded to a cell: 1920x1080 gives 1888x1056.
    Source: fal's page of the sibling endpoint extend-video.
    """
    short, long = sorted((size.width, size.height))
    return _oriented(size, Fraction(short), Fraction(long), cell=cell)


def fitted(aspect: Size, *, area: int, cell: int = CELL) -> Size:
    """The size of about `area` pixels with the aspect of `aspect`, snapped: 16:9 in 147,456 px gives 512x288."""
    short, long = sorted((aspect.width, aspect.height))
    # one part in a million keeps an exact fit, such as 288, from being floored to the cell below
    side = Fraction(math.sqrt(area * short / long) * (1 + 1e-6))
    return _oriented(aspect, side, side * long / short, cell=cell)


def _oriented(like: Size, short: Fraction, long: Fraction, *, cell: int) -> Size:
    short_side = max(cell, int(short // cell) * cell)
    long_side = max(short_side, round(long * short_side / short / cell) * cell)
    return Size(long_side, short_side) if like.width >= like.height else Size(short_side, long_side)


def snapped_frames(frames: int) -> int:
    """The longest length of form 8k+1 that is not above `frames`."""
    return max(1, (frames - 1) // CELL_FRAMES * CELL_FRAMES + 1)
