"""What a caller is told of the status of a job, word for word as fal's clients read it."""

import json
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from starlette.datastructures import QueryParams

from server.records import Job, LogLine
from server.schema import APP


@dataclass(frozen=True, slots=True)
class Status:
    """The answer to who asks for a job's status, and whose job it is."""

    key_id: str | None
    code: int
    body: bytes


def status_of(job: Job, *, base: str, logs: list[LogLine] | None) -> Status:
    """The status of a job, with links that begin with `base`."""
    code = 200 if job.status == "COMPLETED" else 202
    return Status(job.key_id, code, json.dumps(status_body(job, base=base, logs=logs)).encode())


def status_body(job: Job, *, base: str, logs: list[LogLine] | None) -> dict[str, Any]:
    """The status of a job. Without `logs` asked for they are null, as a client's loop over them expects neither."""
    body: dict[str, Any] = {"status": job.status} | links(job.id, base)
    if job.status == "IN_QUEUE":
        body["queue_position"] = job.position
    body["logs"] = None if logs is None else [_log_entry(line) for line in logs]
    body["metrics"] = {}
    if job.status == "COMPLETED":
        if job.inference_seconds is not None:
            body["metrics"] = {"inference_time": job.inference_seconds}
        if job.failure is not None:
            body |= {"error": job.failure.summary(), "error_type": job.failure.error_type}
    return body


def links(job_id: str, base: str) -> dict[str, Any]:
    """Where a job's answers are, for a caller who called `base`."""
    url = f"{base}/{APP}/requests/{job_id}"
    return {
        "request_id": job_id,
        "response_url": url,
        "status_url": f"{url}/status",
        "cancel_url": f"{url}/cancel",
    }


def wants_logs(query: bytes) -> bool:
    """Whether the query string asks for the log."""
    return QueryParams(query).get("logs", "").lower() in ("1", "true")


def _log_entry(line: LogLine) -> dict[str, str]:
    at = datetime.fromtimestamp(line.at, UTC).isoformat()
    return {"message": line.message, "level": line.level, "source": "USER", "timestamp": at}
