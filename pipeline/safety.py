"""Where a safety checker stands in a generation: before any work on the prompt and start image, then on the frames.

None ships yet; without one, a request that asks for the check is told in its log that nothing was checked.
"""

from typing import Protocol

import numpy as np
import numpy.typing as npt


class SafetyChecker(Protocol):
    """Looks at what comes in and what goes out."""

    def check_prompt(self, prompt: str) -> None:
        """Raises: ContentError with field "prompt" if the prompt asks for what is not allowed."""

    def check_picture(self, picture: npt.NDArray[np.uint8], *, field: str) -> None:
        """Raises: ContentError with `field` if the picture shows what is not allowed. Shapes: [H, W, 3]."""
