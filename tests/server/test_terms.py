import json

import pytest

from server.errors import FalError
from server.terms import FREE, LOW, NORMAL, Terms, lifetime, terms_of

ENDPOINT = "fal-ai/ltx-2.3-quality/image-to-video"


def test_without_headers_the_server_decides():
    assert terms_of({}) == FREE == Terms(NORMAL, None, None)


@pytest.mark.parametrize(
    ("text", "priority"), [("low", LOW), ("LOW", LOW), ("normal", NORMAL), ("high", NORMAL), ("", NORMAL)]
)
def test_a_priority_is_low_or_normal(text, priority):
    assert terms_of({"x-fal-queue-priority": text}).priority == priority


@pytest.mark.parametrize(
    ("text", "times"), [("1", 1), ("true", 1), ("Yes", 1), (" 1 ", 1), ("0", None), ("", None), ("no", None)]
)
def test_no_retry_is_one_attempt(text, times):
    assert terms_of({"x-fal-no-retry": text}).max_attempts == times


def test_a_job_whose_process_dies_is_not_tried_again_if_its_caller_wants_no_retry(launch, image):
    given = {"prompt": "crash-once", "image_url": image}
    with launch() as it:
        job = it.http.post(f"/queue/{ENDPOINT}", json=given, headers={"X-Fal-No-Retry": "1"}).json()
        assert it.wait(job)["error_type"] == "internal_server_error"
        answer = it.http.get(job["response_url"])
        assert answer.status_code == 500
        assert "tried once" in answer.json()["detail"][0]["msg"]
        (it.settings.data / "marker").unlink()
        assert it.http.post(f"/{ENDPOINT}", json=given).status_code == 200


async def test_a_restart_ends_a_running_job_that_wants_no_retry_and_a_drain_does_not(store):
    for name in ("kept", "lost"):
        await store.submit(name, b"{}", terms=Terms(max_attempts=1), max_waiting=9)
    kept = await store.claim("me")
    assert await store.release(kept, max_attempts=3, counted=False) == "waits"
    assert (await store.claim("me")).id == "kept"
    await store.recover(max_attempts=3)
    assert (await store.get("kept")).failure.error_type == "internal_server_error"
    assert (await store.get("lost")).status == "IN_QUEUE"


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
