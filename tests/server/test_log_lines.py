import json
import logging
from fractions import Fraction

import pytest
from structlog.contextvars import bound_contextvars

from server import logs


@pytest.fixture
def written(capsys):
    """Gives what was logged."""
    return lambda: capsys.readouterr().err


def test_a_line_is_one_object_with_the_request_and_the_attempt(written):
    logs.set_up_logs("auto")
    with bound_contextvars(request_id="r1", attempt=2):
        logging.getLogger("ltxd.attempt").info(
            "generating %s", "a clip", extra={"plan": {"num_frames": 9, "fps": Fraction(24000, 1001)}}
        )
    line = json.loads(written())
    assert line["event"] == "generating a clip"
    assert (line["request_id"], line["attempt"], line["plan"]) == ("r1", 2, {"num_frames": 9, "fps": "24000/1001"})
    assert (line["level"], line["logger"]) == ("info", "ltxd.attempt")
    assert line["timestamp"].endswith("Z")


def test_a_failure_is_one_line_with_its_traceback(written):
    logs.set_up_logs("json")
    try:
        raise OSError("disk gone")
    except OSError:
        logging.getLogger("ltxd").exception("failed")
    assert "disk gone" in json.loads(written())["exception"]


def test_people_get_words(written):
    logs.set_up_logs("console")
    logging.getLogger("ltxd").info("listening")
    line = written()
    assert "listening" in line
    with pytest.raises(json.JSONDecodeError):
        json.loads(line)


def test_what_libraries_tell_is_left_out_unless_it_is_a_warning(written):
    logs.set_up_logs("json")
    logging.getLogger("httpx2").info("HTTP Request: GET https://example.com/secret.png")
    assert written() == ""
