"""The endpoint's input and output, field by field as the model's page lists them."""

from typing import Annotated, Literal, get_args

from pydantic import AfterValidator, BaseModel, ConfigDict, Field
from pydantic_core import PydanticCustomError

from pipeline.types import DEFAULT_NEGATIVE_PROMPT, Size, VideoQuality, WriteMode

ENDPOINT = "fal-ai/ltx-2.3-quality/image-to-video"
APP = "fal-ai/ltx-2.3-quality"
MAX_SEED = 2**63 - 1
MAX_SIDE = 14_142

PROMPT_EXAMPLE = (
    "A woman stands still amid a busy neon-lit street at night. The camera slowly dollies in toward her face as "
    "people blur past, their motion emphasizing her calm presence."
)
IMAGE_EXAMPLE = "https://storage.googleapis.com/falserverless/example_inputs/ltxv-2-i2v-input.jpg"

ResolutionName = Literal[
    "auto",
    "square_hd",
    "square",
    "portrait_4_3",
    "portrait_16_9",
    "landscape_4_3",
    "landscape_16_9",
]
RESOLUTION_NAMES: tuple[str, ...] = get_args(ResolutionName)

PRESETS: dict[str, Size] = {
    "square_hd": Size(1024, 1024),
    "square": Size(512, 512),
    "portrait_4_3": Size(768, 1024),
    "portrait_16_9": Size(576, 1024),
    "landscape_4_3": Size(1024, 768),
    "landscape_16_9": Size(1024, 576),
}


def _encodable(text: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise PydanticCustomError(
            "string_unicode", "Input should be a valid string, without lone surrogates"
        ) from error
    return text


Text = Annotated[str, AfterValidator(_encodable)]


class ImageSize(BaseModel):
    """A size in pixels."""

    model_config = ConfigDict(frozen=True)

    width: int = Field(512, gt=0, le=MAX_SIDE, description="The width of the generated image.")
    height: int = Field(512, gt=0, le=MAX_SIDE, description="The height of the generated image.")


class ImageToVideoInput(BaseModel):
    """What the endpoint takes. Keys it does not know are ignored, as fal does."""

    # why: prompts and URLs would stand in the log wherever an error is logged
    model_config = ConfigDict(frozen=True, hide_input_in_errors=True)

    prompt: Text = Field(description="The prompt to guide the video generation.", examples=[PROMPT_EXAMPLE])
    image_url: Text = Field(
        description="The URL of the starting image.",
        examples=[IMAGE_EXAMPLE],
        json_schema_extra={"ui": {"field": "image"}},
    )
    num_frames: int = Field(121, ge=9, le=481, description="The number of frames to generate.")
    resolution: ImageSize | ResolutionName = Field(
        "auto",
        description="The size of the generated video. 'auto' derives the size from the input image aspect ratio.",
    )
    frames_per_second: float = Field(
        24.0, allow_inf_nan=False, ge=1, le=60, description="Frames per second of the generated video."
    )
    num_inference_steps: int = Field(
        15,
        ge=8,
        le=30,
        description="Number of inference steps. Defaults to 15 for this distilled ComfyUI workflow and can be "
        "increased up to 30.",
    )
    guidance_scale: float = Field(
        1.0,
        allow_inf_nan=False,
        ge=1,
        le=20,
        description="Classifier-free guidance scale. The default follows the distilled LTX-2.3 workflow.",
    )
    generate_audio: bool = Field(
        default=True,
        description="Whether to include audio in the returned video. When disabled, the final MP4 is returned without "
        "an audio track.",
    )
    image_strength: float = Field(
        0.7,
        allow_inf_nan=False,
        ge=0,
        le=1,
        description="Conditioning strength on the start image. 1.0 = exact first-frame match, lower = more freedom "
        "for the model.",
    )
    negative_prompt: Text = Field(
        DEFAULT_NEGATIVE_PROMPT, description="The negative prompt to steer generation away from."
    )
    seed: int | None = Field(
        None,
        ge=0,
        le=MAX_SEED,
        description="Random seed for reproducibility. If None, a random seed is chosen.",
    )
    enable_prompt_expansion: bool = Field(default=True, description="Whether to enable prompt expansion.")
    enable_safety_checker: bool = Field(default=True, description="Whether to enable the safety checker.")
    video_quality: VideoQuality = Field("high", description="The quality preset of the generated video.")
    video_write_mode: WriteMode = Field("balanced", description="The write mode of the generated video.")
    sync_mode: bool = Field(
        default=False,
        description="If True, the media is returned as a data URI inline in the response. Useful for short-lived "
        "requests and tests.",
    )

    def size(self) -> Size | None:
        """The size asked for; None when it follows from the image."""
        if isinstance(self.resolution, ImageSize):
            return Size(self.resolution.width, self.resolution.height)
        return PRESETS.get(self.resolution)


class File(BaseModel):
    """A generated file. The examples are those of fal's page, which says so of a video too."""

    url: str = Field(description="The URL where the file can be downloaded from.")
    content_type: str | None = Field(None, description="The mime type of the file.", examples=["image/png"])
    file_name: str | None = Field(None, description="The name of the file.", examples=["z9RV14K95DvU.png"])
    file_size: int | None = Field(None, description="The size of the file in bytes.", examples=[4404019])


class ImageToVideoOutput(BaseModel):
    """What the endpoint gives."""

    video: File = Field(description="The generated video.")
    seed: int = Field(description="The seed actually used for generation.")
    prompt: str = Field(description="The prompt used for generation (after any expansion).")
