"""How long the generating process may be silent, by what it does: the watch that finds a hang."""

from pipeline.types import Progress
from server.settings import Settings


def allowed_after(last: Progress | None, settings: Settings) -> float:
    """Seconds until the next sign of life is due, by the `last` one. What a stage says, it says when it is done.

    So after the expansion the text encoder works, after the last step of a stage the upsampler or the decoder.
    """
    if last is None or last.stage in ("plan", "safety", "expand"):
        return settings.text_timeout
    if last.stage == "decode" or (last.step == last.total and last.total > 1):
        return settings.decode_timeout
    return settings.step_timeout
