"""What the demo model knows: seven camera motions, how far each travels, and the tone each sounds like.

Everything here is a function of seconds since the first frame, so that a clip's length and frame rate never enter.
"""

import math
from typing import Final

import torch

MOTIONS: Final = ("still", "pan left", "pan right", "tilt up", "tilt down", "zoom in", "zoom out")

EASE_SECONDS: Final = 2.0
"""Time constant of the ease-out that all motions share."""
PAN_PIXELS: Final = 64.0
"""Travel of a pan or tilt as time goes to infinity: 25 px in 1 s, 40 px in 2 s, 59 px in 5 s."""
ZOOM_IN: Final = 0.40
"""Logarithm of the magnification of a zoom in as time goes to infinity: 1.17x in 1 s, 1.44x in 5 s."""
ZOOM_OUT: Final = 0.26
"""The same for zooming out: 0.90x in 1 s, 0.79x in 5 s."""

DIRECTIONS: Final = {
    "still": (0.0, 0.0, 0.0),
    "pan left": (-PAN_PIXELS, 0.0, 0.0),
    "pan right": (PAN_PIXELS, 0.0, 0.0),
    "tilt up": (0.0, -PAN_PIXELS, 0.0),
    "tilt down": (0.0, PAN_PIXELS, 0.0),
    "zoom in": (0.0, 0.0, ZOOM_IN),
    "zoom out": (0.0, 0.0, -ZOOM_OUT),
}
"""Camera travel right and down in pixels, and log magnification, each at full ease."""


def ease(seconds: torch.Tensor) -> torch.Tensor:
    """Fraction of the whole motion done after `seconds`: 0 at 0, towards 1."""
    return 1 - torch.exp(-seconds / EASE_SECONDS)


def camera(motion: str, seconds: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Camera position right and down (pixels) and magnification, relative to the first frame, at each of `seconds`."""
    right, down, zoom = DIRECTIONS[motion]
    done = ease(seconds)
    return right * done, down * done, torch.exp(zoom * done)


BANDS: Final = 16
SILENCE: Final = -1.125
"""Normalised audio latent of a silent band (log-mel -11.5 with mean -7 and std 4)."""
LOUD: Final = 1.4

TONES: Final = {
    "still": ((4.0, 4.0),),
    "pan left": ((12.0, 4.0),),
    "pan right": ((4.0, 12.0),),
    "tilt up": ((7.0, 15.0),),
    "tilt down": ((15.0, 7.0),),
    "zoom in": ((2.0, 7.0), (14.0, 8.0)),
    "zoom out": ((7.0, 2.0), (8.0, 14.0)),
}
"""Per motion, the tones it sounds: band (of 16 mel bands) at the start and at full ease."""
STEREO: Final = {"pan left": (0.0, -0.6), "pan right": (-0.6, 0.0)}
"""Change of level (left, right) at full ease: the sound leans to where the camera goes."""


def audio_latents(motion: str, tokens: int) -> torch.Tensor:
    """Normalised audio latents that a clip of `motion` should have.

    Shapes: [tokens, 128], a token being (8 channels, 16 bands) flattened; channels 0 and 1 are left and right.
    Units: 25 tokens a second.
    """
    seconds = torch.arange(tokens) / 25
    done = ease(seconds)
    bands = torch.arange(BANDS)
    level = torch.zeros(tokens, BANDS)
    for start, end in TONES[motion]:
        centre = start + (end - start) * done
        level = torch.maximum(level, (1 - (bands[None] - centre[:, None]).abs()).clamp(min=0))
    out = torch.zeros(tokens, 8, BANDS)
    for side in range(2):
        lean = STEREO.get(motion, (0.0, 0.0))[side]
        peak = LOUD - SILENCE + lean * done[:, None]
        out[:, side] = SILENCE + peak * level
    return out.reshape(tokens, 8 * BANDS)


def mel_centres(bins: int = 64, sample_rate: int = 16000) -> list[float]:
    """Centre frequencies in Hz of a triangular HTK mel bank."""
    top = 2595 * math.log10(1 + sample_rate / 2 / 700)
    return [700 * (10 ** ((i + 1) * top / (bins + 1) / 2595) - 1) for i in range(bins)]
