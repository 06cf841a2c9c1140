"""What a caller asks of the queue and of its files beside the input, in the headers of its request."""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass

from server.errors import FalError, plain

NORMAL = 0
LOW = 1
SHORTEST_START = 0.1
ATTENDED_SECONDS = 45.0
"""For how long a call counts as waiting after it was last seen to: its server may have died."""

LONGEST = 100 * 365 * 86_400.0
"""Seconds: as good as never, and still a date."""


@dataclass(frozen=True, slots=True)
class Terms:
    """How a job is to be treated. None: as the server's settings say.

    Units: seconds. `start_within` bounds the wait until it begins, `keep_for` how long its file is kept once made,
    `max_attempts` how often it is tried, if the server's settings do not bound that more.
    """

    priority: int = NORMAL
    start_within: float | None = None
    keep_for: float | None = None
    max_attempts: int | None = None


FREE = Terms()


def terms_of(headers: Mapping[str, str]) -> Terms:
    """The terms in the headers of a request. An unknown priority is the normal one.

    Raises: FalError if the time to start is not a number of seconds.
    """
    low = headers.get("x-fal-queue-priority", "").strip().lower() == "low"
    once = headers.get("x-fal-no-retry", "").strip().lower() in ("1", "true", "yes")
    return Terms(LOW if low else NORMAL, _start_within(headers), lifetime(headers), 1 if once else None)


def lifetime(headers: Mapping[str, str]) -> float | None:
    """Seconds that files made or uploaded by a request are kept, if it says so; what is not understood is ignored.

    Clients send the one spelling with uploads and the other with requests. They write "never" by saying nothing, and
    nothing lasts for ever here.
    """
    text = headers.get("x-fal-object-lifecycle") or headers.get("x-fal-object-lifecycle-preference")
    try:
        wish = json.loads(text or "null")
    except (ValueError, RecursionError):
        return None
    seconds = wish.get("expiration_duration_seconds") if isinstance(wish, dict) else None
    if isinstance(seconds, bool) or not isinstance(seconds, int | float) or not seconds > 0:
        return None
    return float(min(seconds, LONGEST))


def _start_within(headers: Mapping[str, str]) -> float | None:
    text = headers.get("x-fal-request-timeout")
    if text is None:
        return None
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not SHORTEST_START < seconds < math.inf:
        message = f"X-Fal-Request-Timeout is {text!r}; a number of seconds above {SHORTEST_START:g} is allowed"
        raise FalError(plain("bad_request", message))
    return min(seconds, LONGEST)
