import json

import pytest

from server.errors import FalError
from server.terms import FREE, LOW, NORMAL, Terms, lifetime, terms_of


def test_without_headers_the_server_decides():
    assert terms_of({}) == FREE == Terms(NORMAL, None, None)


@pytest.mark.parametrize(
    ("text", "priority"), [("low", LOW), ("LOW", LOW), ("normal", NORMAL), ("high", NORMAL), ("", NORMAL)]
)
def test_a_priority_is_low_or_normal(text, priority):
    assert terms_of({"x-fal-queue-priority": text}).priority == priority


@pytest.mark.parametrize(("text", "seconds"), [("100.0", 100.0), ("30", 30.0), ("0.2", 0.2), (" 5 ", 5.0)])
def test_the_time_to_start_is_read_as_both_clients_write_it(text, seconds):
    assert terms_of({"x-fal-request-timeout": text}).start_within == seconds


@pytest.mark.parametrize("text", ["", "soon", "0.1", "0", "-3", "nan", "inf", "1e999", "1,5"])
def test_a_time_to_start_that_is_none_is_refused(text):
    with pytest.raises(FalError, match="X-Fal-Request-Timeout") as caught:
        terms_of({"x-fal-request-timeout": text})
    assert (caught.value.failure.status, caught.value.failure.error_type) == (400, "bad_request")


@pytest.mark.parametrize("name", ["x-fal-object-lifecycle", "x-fal-object-lifecycle-preference"])
def test_a_lifetime_is_read_in_both_spellings(name):
    wish = json.dumps({"expiration_duration_seconds": 60, "initial_acl": {"default": "allow"}})
    assert lifetime({name: wish}) == 60
    assert terms_of({name: wish}).keep_for == 60


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "null",
        "60",
        "[]",
        "{}",
        "[" * 100_000,
        '{"expiration_duration_seconds": null}',
        '{"expiration_duration_seconds": 0}',
        '{"expiration_duration_seconds": -5}',
        '{"expiration_duration_seconds": "60"}',
        '{"expiration_duration_seconds": true}',
        '{"expiration_duration_seconds": NaN}',
        '{"initial_acl": {}}',
    ],
)
def test_a_lifetime_that_is_none_is_ignored(text):
    assert lifetime({"x-fal-object-lifecycle": text}) is None


@pytest.mark.parametrize("number", ["1e999", "9" * 400, "1e300"])
def test_a_lifetime_without_end_is_a_very_long_one(number):
    seconds = lifetime({"x-fal-object-lifecycle": f'{{"expiration_duration_seconds": {number}}}'})
    assert 1e9 < seconds < 1e10
