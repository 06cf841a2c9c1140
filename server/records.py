"""What the store keeps, as values. Times are seconds since 1970."""

import json
from dataclasses import dataclass
from typing import Any, Literal

from sqlalchemy import Row

from server.errors import Failure

Status = Literal["IN_QUEUE", "IN_PROGRESS", "COMPLETED"]
CancelOutcome = Literal["CANCELLATION_REQUESTED", "ALREADY_COMPLETED", "NOT_FOUND"]
SubmitOutcome = Literal["accepted", "queue full", "queue too large", "too many in flight"]
Standing = Literal["held", "cancelled", "lost"]
"""Whether a claimed job is still ours, is ours but wanted no more, or is another's or ended."""
ReleaseOutcome = Failure | Literal["waits", "lost"]
"""What became of a released job: it ended so, it waits again, or it was ours no more."""


@dataclass(frozen=True, slots=True)
class Job:
    """What is known of a job. `position` counts the jobs ahead while it waits."""

    id: str
    key_id: str | None
    status: Status
    position: int
    attempts: int
    cancel_requested: bool
    result: dict[str, Any] | None
    failure: Failure | None
    units: int
    inference_seconds: float | None
    created: float
    started: float | None
    finished: float | None


@dataclass(frozen=True, slots=True)
class Claim:
    """A job that is ours to do, until it is finished or released with this owner and attempt."""

    id: str
    owner: str
    attempt: int
    payload: bytes
    created: float
    started: float
    keep_for: float | None = None


@dataclass(frozen=True, slots=True)
class End:
    """What is counted of a job that ended: its type of error, and when it was submitted; None: it never waited."""

    error_type: str | None
    created: float | None


@dataclass(frozen=True, slots=True)
class WebhookTarget:
    """Where to tell of a job's end, see `server.webhooks`."""

    url: str
    origin: str
    private: bool


@dataclass(frozen=True, slots=True)
class Sender:
    """On whose behalf a job is submitted, and whom to tell of its end."""

    key_id: str | None = None
    max_in_flight: int | None = None
    webhook: WebhookTarget | None = None


NOBODY = Sender()
"""Who submits while there are no keys."""


@dataclass(frozen=True, slots=True)
class LogLine:
    """One line of a job's log."""

    at: float
    level: str
    message: str


@dataclass(frozen=True, slots=True)
class StoredFile:
    """The row of a file; its bytes are the blob of the same id."""

    id: str
    job_id: str | None
    name: str
    content_type: str
    size: int
    sha256: str
    created: float
    expires: float
    key_id: str | None = None


def job_of(row: Row[Any], *, position: int) -> Job:
    """The job in a row of its table."""
    return Job(
        id=row.id,
        key_id=row.key_id,
        status=row.status,
        position=position,
        attempts=row.attempts,
        cancel_requested=bool(row.cancel_requested),
        result=None if row.result is None else json.loads(row.result),
        failure=None if row.failure is None else Failure(**json.loads(row.failure)),
        units=row.units,
        inference_seconds=row.inference_seconds,
        created=row.created,
        started=row.started,
        finished=row.finished,
    )
