"""What can go wrong below HTTP, by who is at fault.

PipelineError
├── OperatorError            the set-up is wrong: the process does not start
│   ├── RecipeError          a recipe file is malformed or names what does not exist
│   └── WeightsError         a model file is missing, malformed or not what the recipe needs
├── CallerError              the request is wrong: 422, with the field at fault
│   ├── ImageLoadError       not an image, truncated, or a decompression bomb
│   ├── ImageFormatError     an image of a format that is not supported
│   ├── ImageTooSmallError
│   ├── ImageTooLargeError
│   ├── OverBudgetError      more frames x pixels than the recipe can make
│   ├── OverMemoryError      more than the device can make, whatever stays on it
│   ├── ContentError         flagged by the safety checker
│   └── SafetyUnavailableError  to be checked, and there is no checker
└── GenerationError          we failed: 500
    ├── NoRoomError          not with what stays on the device now, told beforehand: the process can go on
    ├── OutOfMemoryError
    └── StorageError         the disk is full or cannot be written: the process can go on
"""

from collections.abc import Mapping
from typing import Any


class PipelineError(Exception):
    """Any failure of this floor. `str(error)` is a sentence for a person."""


class OperatorError(PipelineError):
    """The set-up is wrong."""


class RecipeError(OperatorError):
    """A recipe is malformed."""


class WeightsError(OperatorError):
    """A model file does not fit."""


class CallerError(PipelineError):
    """The request is wrong.

    `field` is the field of `GenerationRequest` at fault, `context` the allowed values by name.
    """

    def __init__(self, message: str, *, field: str, context: Mapping[str, Any] | None = None) -> None:
        super().__init__(message)
        self.field = field
        self.context = dict(context or {})


class ImageLoadError(CallerError):
    """The start image cannot be decoded."""


class ImageFormatError(CallerError):
    """The start image is of an unsupported format. Context: supported_formats."""


class ImageTooSmallError(CallerError):
    """Context: min_height, min_width."""


class ImageTooLargeError(CallerError):
    """Context: max_height, max_width."""


class OverBudgetError(CallerError):
    """More latent tokens than the recipe's cap. Context: max_tokens, tokens, max_num_frames."""


class OverMemoryError(CallerError):
    """More memory than the device has, whatever stays on it. Context: max_num_frames."""


class ContentError(CallerError):
    """The safety checker flagged the prompt, the image or the output."""


class SafetyUnavailableError(CallerError):
    """The request asks for the safety checker, which did not load: it is refused rather than made unchecked."""


class GenerationError(PipelineError):
    """Generating failed through no fault of the caller. `context` holds what else is known, by name."""

    def __init__(self, message: str, *, context: Mapping[str, Any] | None = None) -> None:
        super().__init__(message)
        self.context = dict(context or {})


class NoRoomError(GenerationError):
    """The clip does not fit as the models are loaded; nothing was computed. Context: residency, with which it does."""


class OutOfMemoryError(GenerationError):
    """The device ran out of memory. Context: offers, clips that take half of it; of loading: `smaller` residencies."""


class StorageError(GenerationError):
    """The disk took no more."""


class NumericalError(GenerationError):
    """What was computed is not a number. The message names stage and step."""
