"""Noise schedules: falling sigmas that start at 1 and end at 0. Plain floats; all arithmetic in double precision.

Source: Lightricks/LTX-2 @400fd31, components/schedulers.py (formulas and values). The reference
computes 1 - sigma in float32, which collapses above some 20,000 tokens; the form below does not.
"""

import math
from typing import Final

_SHIFT_PER_TOKEN: Final = 1.1 / 3072
_SHIFT_AT_ZERO: Final = 0.95 - 1.1 / 3


def shifted(steps: int, *, tokens: int, terminal: float) -> tuple[float, ...]:
    """`steps` + 1 sigmas, shifted towards noise the more video tokens there are; the last but one is `terminal`.

    0.95 and 2.05 are the shifts at 1,024 and 4,096 tokens.
    """
    growth = math.exp(_SHIFT_AT_ZERO + _SHIFT_PER_TOKEN * tokens)
    odds = [steps / (steps - i) - 1 for i in range(steps)]
    clean = [o / (growth + o) for o in odds]
    return (*(1 - (1 - terminal) * c / clean[-1] for c in clean), 0.0)


def resampled(curve: tuple[float, ...], steps: int) -> tuple[float, ...]:
    """`curve` read at `steps` + 1 evenly spaced places, linearly between its points; itself at its own length."""
    last = len(curve) - 1
    out = []
    for i in range(steps + 1):
        place = i * last / steps
        below = min(int(place), last - 1)
        out.append(curve[below] + (place - below) * (curve[below + 1] - curve[below]))
    return tuple(out)
