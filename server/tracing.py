"""Spans of a job for OpenTelemetry: the extra `otel`, off unless its own environment variables name an exporter."""

import time
from collections.abc import Mapping
from typing import Final

from opentelemetry import trace

NANO: Final = 1_000_000_000


def record_job(
    tracer: trace.Tracer, *, request_id: str, attempt: int, created: float, started: float, stages: Mapping[str, float]
) -> None:
    """One span from submit to now, with a child for the wait and one for each stage, in order.

    Units: `created` and `started` seconds since 1970; `stages` seconds of work by name.
    """
    attributes: dict[str, str | int] = {"ltxd.request_id": request_id, "ltxd.attempt": attempt}
    job = tracer.start_span("job", start_time=int(created * NANO), attributes=attributes)
    inside = trace.set_span_in_context(job)
    at = created
    for name, seconds in (("queue", started - created), *stages.items()):
        span = tracer.start_span(name, context=inside, start_time=int(at * NANO))
        at += max(0.0, seconds)
        span.end(int(at * NANO))
    job.end(int(max(at, time.time()) * NANO))
