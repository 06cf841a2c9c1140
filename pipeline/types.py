"""What crosses between the server and the process that generates. Plain values: no torch, no HTTP."""

from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

VideoQuality = Literal["low", "medium", "high", "maximum"]
WriteMode = Literal["fast", "balanced", "small"]
RESIDENCIES: Final = ("resident", "evict-text", "fp8", "fp8-evict-text", "stream")
"""What of a model stays on the device while it denoises, in the order of preference: by how little each slows it.

Which of them keeps less on the device depends on the files.
"""

DEFAULT_NEGATIVE_PROMPT: Final = (
    "color distortion, overexposure, static, blurry details, subtitles, style, artwork, painting, frame, still, "
    "dim overall tone, worst quality, low quality, JPEG compression artifacts, ugly, mutilated, extra fingers, "
    "poorly drawn hands, poorly drawn face, deformed, disfigured, malformed limbs, fused fingers, motionless frame, "
    "cluttered background, three legs, crowded background, walking backwards"
)
"""What the endpoint takes when a request names none. Source: fal's page of the model."""


@dataclass(frozen=True, slots=True)
class Size:
    """Width and height in pixels."""

    width: int
    height: int

    def __str__(self) -> str:
        return f"{self.width}x{self.height}"


@dataclass(frozen=True, slots=True)
class GenerationRequest:
    """One clip to generate, in the model's words. Every value is in its range; sizes and lengths are not yet snapped.

    Units: fps in frames a second, strength 0 (ignore the image) to 1 (reproduce it), seed 0 to 2^63-1.
    """

    prompt: str
    image: Path | None
    """A decoded start image: an RGB PNG, upright, as `pipeline.picture` writes it. None: from the prompt alone."""
    image_size: Size | None
    seed: int
    negative_prompt: str
    size: Size | None
    """None: from the image's aspect."""
    num_frames: int
    fps: float
    steps: int
    guidance_scale: float
    strength: float
    audio: bool
    expand_prompt: bool
    check_safety: bool
    quality: VideoQuality
    write_mode: WriteMode


@dataclass(frozen=True, slots=True)
class Progress:
    """One sign of life of a running generation; at most one per transformer call or decoded chunk.

    Units: `eta` seconds until the stage is done, None while unknown.
    """

    stage: str
    step: int
    total: int
    eta: float | None = None
    message: str | None = None
    """Something worth telling the caller, such as a size that was snapped."""
    device_bytes: int = 0
    """What the process holds of the GPU for tensors; 0 on the CPU."""


@dataclass(frozen=True, slots=True)
class Generated:
    """A finished clip.

    Units: `seconds` of work by stage name.
    """

    path: Path
    prompt: str
    """The prompt used, after expansion."""
    seed: int
    size: Size
    num_frames: int
    fps: float
    has_audio: bool
    seconds: dict[str, float]


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """What a generating process tells about itself once it is ready."""

    recipe: str
    weights: str
    """Name for people: "demo weights" or the checkpoint's version."""
    demo: bool
    device: str
    seconds: float
    """Time it took to load."""
    residency: str = "resident"
    """One of RESIDENCIES."""
    smaller: tuple[str, ...] = ()
    """Those that keep less of this recipe's models on the device, from most to least."""
    device_bytes: int = 0
    """As in Progress, once loaded."""
