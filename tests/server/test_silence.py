import pytest

from pipeline.types import Progress
from server.settings import Settings
from server.silence import allowed_after


@pytest.mark.parametrize(
    ("last", "seconds"),
    [
        (None, 1),
        (Progress("expand", 1, 1), 1),
        (Progress("text_encode", 1, 1), 2),
        (Progress("denoise", 3, 8), 2),
        (Progress("denoise", 8, 8), 3),
        (Progress("decode", 9, 25), 3),
    ],
)
def test_silence_is_allowed_by_what_comes_next(tmp_path, last, seconds):
    settings = Settings(data=tmp_path, text_timeout=1, step_timeout=2, decode_timeout=3)
    assert allowed_after(last, settings) == seconds
