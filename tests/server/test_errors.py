import json
import math

import pytest

from pipeline import errors as pipeline_errors
from pipeline.types import GenerationRequest
from pipeline.wire import failed
from server.errors import FIELDS, STATUSES, Failure, clean, from_worker, model_failure, plain
from server.schema import ImageToVideoInput

CALLER = [
    (pipeline_errors.ImageLoadError, "image_load_error"),
    (pipeline_errors.ImageFormatError, "unsupported_image_format"),
    (pipeline_errors.ImageTooSmallError, "image_too_small"),
    (pipeline_errors.ImageTooLargeError, "image_too_large"),
    (pipeline_errors.OverBudgetError, "value_error"),
    (pipeline_errors.OverMemoryError, "value_error"),
    (pipeline_errors.ContentError, "content_policy_violation"),
]


@pytest.mark.parametrize(("kind", "error_type"), CALLER)
def test_a_callers_error_is_422_of_fals_type_on_fals_field(kind, error_type):
    failure = from_worker(failed(kind("too bad", field="image", context={"min_width": 16})))
    assert failure.status == 422
    assert not failure.retryable
    assert failure.detail == [
        {
            "loc": ["body", "image_url"],
            "msg": "too bad",
            "type": error_type,
            "url": f"https://docs.fal.ai/errors#{error_type}",
            "ctx": {"min_width": 16},
        }
    ]


def test_what_the_checker_flags_is_told_in_fals_own_form():
    told = "The content could not be processed because it contained material flagged by a content checker."
    failure = from_worker(failed(pipeline_errors.ContentError(told, field="prompt")))
    assert failure.status == 422
    assert failure.body() == {
        "detail": [
            {
                "loc": ["body", "prompt"],
                "msg": told,
                "type": "content_policy_violation",
                "url": "https://docs.fal.ai/errors#content_policy_violation",
            }
        ]
    }


def test_a_checker_that_is_not_there_is_told_at_the_field_that_asks_for_it():
    failure = from_worker(failed(pipeline_errors.SafetyUnavailableError("no checker", field="check_safety")))
    assert (failure.status, failure.error_type) == (422, "feature_not_supported")
    assert failure.detail[0]["loc"] == ["body", "enable_safety_checker"]


@pytest.mark.parametrize(
    "error", [pipeline_errors.GenerationError("inside"), RuntimeError("inside"), OSError("inside")]
)
def test_our_own_fault_is_500_and_keeps_its_cause_to_itself(error):
    failure = from_worker(failed(error))
    assert failure.status == 500
    assert "inside" not in json.dumps(failure.body())


def test_every_field_of_a_request_is_a_field_of_the_endpoint():
    known = set(ImageToVideoInput.model_fields)
    assert {FIELDS.get(name, name) for name in GenerationRequest.__dataclass_fields__} <= known


@pytest.mark.parametrize("error_type", STATUSES)
def test_every_failure_says_in_both_spellings_whether_to_try_again(error_type):
    headers = plain(error_type, "x").headers()
    assert (headers["X-Fal-Retryable"], headers["X-Fal-Needs-Retry"]) in {("true", "1"), ("false", "0")}
    assert headers["x-fal-error-type"] == error_type


def test_no_failure_has_a_status_that_clients_repeat_ten_times():
    assert not {409, 408} & {status for status, _ in STATUSES.values()}


@pytest.mark.parametrize("failure", [plain("bad_request", "no"), model_failure("internal_server_error", "oh")])
def test_a_failure_survives_the_store(failure):
    assert Failure(**json.loads(json.dumps(failure.to_dict()))) == failure


def nested(depth: int) -> object:
    value: object = "deep"
    for _ in range(depth):
        value = [value]
    return value


@pytest.mark.parametrize(
    ("value", "cleaned"),
    [
        (math.nan, "nan"),
        (-math.inf, "-inf"),
        (b"\x00\xff", "<binary 2 bytes>"),
        ("a\ud800b", "a?b"),
        ({"k\udfff": [math.inf, (1, None)]}, {"k?": ["inf", [1, None]]}),
        ("x" * 1000, "x" * 1000),
        (True, True),
    ],
)
def test_what_json_cannot_carry_is_replaced(value, cleaned):
    assert clean(value) == cleaned


def test_what_is_too_long_or_too_deep_is_cut():
    assert clean("x" * 5000).endswith("… (5000 characters)")
    assert len(json.dumps(clean(nested(900)))) < 100
