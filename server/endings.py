"""How a job ends, or goes back to the queue, as the columns of its row; and which of the two it does."""

import json
import time
from typing import Any

from sqlalchemy import Row

from server.errors import Failure, model_failure, plain

CANCELLED = plain("client_cancelled", "Request was cancelled by the client")


def ended(
    *,
    result: dict[str, Any] | None = None,
    failure: Failure | None = None,
    seconds: float | None = None,
    units: int = 0,
) -> dict[str, Any]:
    """The columns of a job that ends now."""
    return {
        "status": "COMPLETED",
        "owner": None,
        "lease_until": None,
        "payload": None,
        "payload_size": 0,
        "result": None if result is None else json.dumps(result),
        "failure": None if failure is None else json.dumps(failure.to_dict()),
        "http_status": 200 if failure is None else failure.status,
        "units": units,
        "inference_seconds": seconds,
        "finished": time.time(),
    }


def released(failure: Failure | None) -> dict[str, Any]:
    """The columns of a job that ends with `failure`; if that is None, of one that goes back to its old place."""
    return {"status": "IN_QUEUE", "owner": None, "lease_until": None} if failure is None else ended(failure=failure)


def given_up(
    row: Row[*tuple[Any, ...]], *, max_attempts: int | None, how: str, silent: bool = False
) -> Failure | None:
    """How a job ends whose attempt ended without an answer, `how` saying why; None: it is tried again.

    `max_attempts` bounds how often, and so may the job's caller; None: this one does not count. `silent`: it went on
    for too long.
    """
    if row.cancel_requested:
        return CANCELLED
    if max_attempts is not None and row.attempts >= min(max_attempts, row.max_attempts or max_attempts):
        tries = "once" if row.attempts == 1 else f"{row.attempts} times"
        if silent:
            message = f"Generation timeout: tried {tries}; the last time its process said nothing for too long"
            return model_failure("generation_timeout", message)
        message = f"Internal server error: tried {tries} without an answer; the last time {how}"
        return model_failure("internal_server_error", message)
    return None
