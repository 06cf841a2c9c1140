from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from server.tracing import record_job


def test_a_job_is_a_span_with_its_wait_and_its_stages_inside():
    kept = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(kept))
    stages = {"text": 0.5, "denoise": 2.0}
    record_job(provider.get_tracer("t"), request_id="r", attempt=1, created=100.0, started=101.0, stages=stages)
    spans = {span.name: span for span in kept.get_finished_spans()}
    assert set(spans) == {"job", "queue", "text", "denoise"}
    job = spans.pop("job")
    assert job.attributes == {"ltxd.request_id": "r", "ltxd.attempt": 1}
    assert all(span.parent.span_id == job.context.span_id for span in spans.values())
    seconds = {name: ((s.start_time / 1e9), (s.end_time / 1e9)) for name, s in spans.items()}
    assert seconds == {"queue": (100.0, 101.0), "text": (101.0, 101.5), "denoise": (101.5, 103.5)}
