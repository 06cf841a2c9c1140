"""How a clip is compressed: what the words for quality and effort mean to x264, and exact frame rates."""

from dataclasses import dataclass
from fractions import Fraction
from typing import Final

from pipeline.types import VideoQuality, WriteMode

CRF: Final[dict[VideoQuality, int]] = {"low": 28, "medium": 23, "high": 18, "maximum": 12}

EFFORT: Final[dict[WriteMode, tuple[str, int]]] = {
    "fast": ("superfast", -1),
    "balanced": ("medium", 0),
    "small": ("slow", 1),
}
"""x264 preset, and what it adds to the CRF.

The same CRF is not the same quality in every preset. veryfast gives smaller and worse files than medium, so "fast"
has to be superfast to be the larger file that it promises, and on grain its CRF has to be one lower for that too; slow
spends what it saves on quality unless its CRF is one higher.
"""


@dataclass(frozen=True, slots=True)
class Encoding:
    """What x264 is told."""

    crf: int
    preset: str


def encoding(quality: VideoQuality, write_mode: WriteMode) -> Encoding:
    """The CRF and preset in which a higher quality is truer, and fast, balanced, small are ever slower and smaller."""
    preset, more = EFFORT[write_mode]
    return Encoding(crf=CRF[quality] + more, preset=preset)


def frame_rate(fps: float) -> Fraction:
    """The exact rate that `fps` stands for: 30000/1001 for 29.97002997, 2997/125 for 23.976."""
    return Fraction(fps).limit_denominator(1001)
