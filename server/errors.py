"""The one place that knows which failure is answered with which HTTP status and which of fal's error types.

FalError                  an answer: carries a Failure
├── FieldError            one field of the request is at fault: 422
└── (raised bare)         everything else, from the table
Errors of the pipeline keep their own tree (`pipeline.errors`) and are mapped here.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, get_args

from pydantic import ValidationError

from pipeline import errors as pipeline_errors
from pipeline.wire import Failed
from server.schema import RESOLUTION_NAMES, ImageToVideoInput

DOCS = "https://docs.fal.ai/errors#"
MAX_ECHO = 1_000
MAX_DEPTH = 12

# type: (HTTP status, whether the same request may succeed later). Types that are not here are a field's fault: 422.
STATUSES: dict[str, tuple[int, bool]] = {
    "internal_server_error": (500, True),
    "generation_timeout": (504, True),
    "request_timeout": (504, True),
    "internal_error": (500, True),
    "client_disconnected": (499, False),
    "client_cancelled": (499, False),
    "bad_request": (400, False),
    "unauthorized": (401, False),
    "forbidden": (403, False),
    "not_found": (404, False),
    "method_not_allowed": (405, False),
    "body_too_large": (413, False),
    "queue_full": (429, True),
    "concurrent_requests_limit": (429, True),
    "storage_full": (503, True),
    "storage_unavailable": (503, True),
}

# type: seconds after which another try makes sense
RETRY_AFTER: dict[str, int] = {"queue_full": 10, "storage_full": 30, "storage_unavailable": 5}

PIPELINE_TYPES: dict[type[pipeline_errors.PipelineError], str] = {
    pipeline_errors.ImageLoadError: "image_load_error",
    pipeline_errors.ImageFormatError: "unsupported_image_format",
    pipeline_errors.ImageTooSmallError: "image_too_small",
    pipeline_errors.ImageTooLargeError: "image_too_large",
    pipeline_errors.OverBudgetError: "value_error",
    pipeline_errors.OverMemoryError: "value_error",
    pipeline_errors.ContentError: "content_policy_violation",
    pipeline_errors.SafetyUnavailableError: "feature_not_supported",
    pipeline_errors.CallerError: "value_error",
}

# `pipeline.types.GenerationRequest` in fal's words, where they differ
FIELDS: dict[str, str] = {
    "image": "image_url",
    "image_size": "image_url",
    "size": "resolution",
    "fps": "frames_per_second",
    "steps": "num_inference_steps",
    "strength": "image_strength",
    "audio": "generate_audio",
    "expand_prompt": "enable_prompt_expansion",
    "check_safety": "enable_safety_checker",
    "quality": "video_quality",
    "write_mode": "video_write_mode",
}


@dataclass(frozen=True, slots=True)
class Failure:
    """How a request failed, as it is stored and answered."""

    status: int
    error_type: str
    detail: str | list[dict[str, Any]]
    retryable: bool

    def body(self) -> dict[str, Any]:
        """The JSON answer."""
        if isinstance(self.detail, list):
            return {"detail": self.detail}
        return {"detail": self.detail, "error_type": self.error_type}

    def headers(self) -> dict[str, str]:
        """What clients and proxies read without opening the body."""
        # why: clients repeat a 504 unless it says that it is of their own making
        own = {"x-fal-request-timeout-type": "user"} if self.error_type == "request_timeout" else {}
        if self.error_type in RETRY_AFTER:
            own["Retry-After"] = str(RETRY_AFTER[self.error_type])
        return own | {
            "x-fal-error-type": self.error_type,
            "X-Fal-Retryable": "true" if self.retryable else "false",
            "X-Fal-Needs-Retry": "1" if self.retryable else "0",
            "x-fal-billable-units": "0",
        }

    def summary(self) -> str:
        """One sentence, for the status of a job."""
        if isinstance(self.detail, str):
            return self.detail
        return "; ".join(f"{'.'.join(map(str, item['loc'][1:])) or 'body'}: {item['msg']}" for item in self.detail)

    def to_dict(self) -> dict[str, Any]:
        """What the store keeps."""
        return asdict(self)


class FalError(Exception):
    """A failure on its way to be answered."""

    def __init__(self, failure: Failure) -> None:
        super().__init__(failure.summary())
        self.failure = failure


class FieldError(FalError):
    """One field of the request is at fault."""

    def __init__(
        self, error_type: str, message: str, *, field: str, context: Mapping[str, Any] | None = None, given: Any = ...
    ) -> None:
        super().__init__(field_failure(error_type, message, field=field, context=context, given=given))


def plain(error_type: str, detail: str) -> Failure:
    """A failure of the service or of the request as a whole, with its detail as a sentence."""
    status, retryable = STATUSES[error_type]
    return Failure(status, error_type, detail, retryable)


def item(
    error_type: str,
    message: str,
    *,
    loc: Sequence[str | int],
    context: Mapping[str, Any] | None = None,
    given: Any = ...,
) -> dict[str, Any]:
    """One entry of a detail list. `given` is the value at fault; an ellipsis leaves it out."""
    entry: dict[str, Any] = {
        "loc": ["body", *loc],
        "msg": clean(message),
        "type": error_type,
        "url": f"{DOCS}{error_type}",
    }
    if context:
        entry["ctx"] = clean(dict(context))
    if given is not ...:
        entry["input"] = clean(given)
    return entry


def field_failure(
    error_type: str, message: str, *, field: str, context: Mapping[str, Any] | None = None, given: Any = ...
) -> Failure:
    """A failure that one field is to blame for."""
    return Failure(422, error_type, [item(error_type, message, loc=[field], context=context, given=given)], False)


def model_failure(error_type: str, message: str) -> Failure:
    """A failure of the model that no field is to blame for."""
    status, retryable = STATUSES[error_type]
    return Failure(status, error_type, [item(error_type, message, loc=[])], retryable)


def not_json(message: str, *, position: int = 0) -> Failure:
    """The body of a request is not JSON."""
    entry = item("json_invalid", "JSON decode error", loc=[position], context={"error": message}, given={})
    return Failure(422, "json_invalid", [entry], False)


def invalid(error: ValidationError) -> Failure:
    """The body of a request does not fit the schema.

    An error of a union carries the name of a branch, which is left out: clients find the errors of a field by the last
    element of `loc`. A size with a wrong side is an error of that side and one of `resolution`.
    """
    entries: list[dict[str, Any]] = []
    for problem in error.errors(include_url=False):
        loc, kind, context = list(problem["loc"]), problem["type"], dict(problem.get("ctx", {}))
        message, given = problem["msg"], problem["input"]
        if loc[:1] == ["resolution"] and len(loc) > 1:
            branch, loc = loc[1], ["resolution", *loc[2:]]
            if branch != "ImageSize":
                message = f"{problem['msg']}, or an object with width and height"
            elif len(loc) == 1:
                # why: that it is no object is said by the other branch, with the names it may have instead
                continue
        if kind == "literal_error":
            kind, context = "one_of", {"expected": _allowed(str(loc[0]))}
        entries.append(item(kind, message, loc=loc, context=context, given=given))
    return Failure(422, entries[0]["type"], entries, False)


def from_worker(failed: Failed) -> Failure:
    """The failure that the generating process reports."""
    for kind, error_type in PIPELINE_TYPES.items():
        if kind.__name__ == failed.kind and failed.field is not None:
            field = FIELDS.get(failed.field, failed.field)
            return field_failure(error_type, failed.message, field=field, context=failed.context)
    return model_failure("internal_server_error", "Internal server error")


def with_inputs(failure: Failure, given: Mapping[str, Any]) -> Failure:
    """`failure` with the value of each field that it blames without saying it."""
    if isinstance(failure.detail, str):
        return failure
    entries = [
        entry | {"input": clean(given[entry["loc"][1]])}
        if "input" not in entry and len(entry["loc"]) == 2 and entry["loc"][1] in given
        else entry
        for entry in failure.detail
    ]
    return replace(failure, detail=entries)


def clean(value: Any, depth: int = 0) -> Any:
    """`value` as JSON can carry it: no NaN, no lone surrogates, no bytes, nothing very long or deep."""
    match value:
        case None | bool() | int():
            return value
        case float():
            return value if math.isfinite(value) else str(value)
        case str():
            text = value[:MAX_ECHO].encode("utf-8", "replace").decode("utf-8")
            return text if len(value) <= MAX_ECHO else f"{text}… ({len(value)} characters)"
        case bytes():
            return f"<binary {len(value)} bytes>"
        case _ if depth >= MAX_DEPTH:
            return "…"
        case Mapping():
            return {str(clean(str(key))): clean(entry, depth + 1) for key, entry in value.items()}
        case list() | tuple() | set():
            return [clean(entry, depth + 1) for entry in value]
        case _:
            return clean(str(value))


def _allowed(field: str) -> list[str]:
    if field == "resolution":
        return list(RESOLUTION_NAMES)
    return list(get_args(ImageToVideoInput.model_fields[field].annotation))
