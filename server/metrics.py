"""What Prometheus reads at /metrics. Names follow vLLM's; no label tells one request from another."""

import importlib.metadata
import shutil
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Final, Literal

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

Outcome = Literal["ok", "failed", "cancelled", "timeout", "rejected"]

SECONDS: Final = (1.0, 2.0, 5.0, 10.0, 20.0, 30.0, 60.0, 120.0, 300.0, 600.0, 1800.0)
STEP_SECONDS: Final = (0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0)
PRIORITIES: Final = ("normal", "low")
CONTENT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"


def outcome_of(error_type: str) -> Outcome:
    """The outcome of a job that ended without a clip."""
    if error_type == "client_cancelled":
        return "cancelled"
    return "timeout" if error_type.endswith("_timeout") else "failed"


class Metrics:
    """The counters of one node."""

    def __init__(self, data: Path) -> None:
        self._data = data
        self._registry = registry = CollectorRegistry()
        self._requests = Counter(
            "ltx_requests", "Jobs that ended, and refused calls.", ["outcome", "error_type"], registry=registry
        )
        self._queued = Histogram(
            "ltx_request_queue_time_seconds", "From submit to start.", buckets=SECONDS, registry=registry
        )
        self._latency = Histogram(
            "ltx_e2e_request_latency_seconds", "From submit to end.", buckets=SECONDS, registry=registry
        )
        self._stages = Histogram(
            "ltx_stage_duration_seconds", "Work by stage of a clip.", ["stage"], buckets=SECONDS, registry=registry
        )
        self._steps = Histogram(
            "ltx_denoise_step_seconds", "One step of the denoising loop.", buckets=STEP_SECONDS, registry=registry
        )
        self._frames = Counter("ltx_generated_frames", "Frames of finished clips.", registry=registry)
        self._megapixels = Counter("ltx_generated_megapixels", "Megapixels billed.", registry=registry)
        self._retries = Counter("ltx_job_retries", "Further tries at a job.", ["reason"], registry=registry)
        self._restarts = Counter(
            "ltx_worker_restarts", "Starts of the generating process after the first.", ["reason"], registry=registry
        )
        self._webhooks = Counter("ltx_webhook_deliveries", "Tries to call a webhook.", ["outcome"], registry=registry)
        self._running = Gauge("ltx_num_requests_running", "Jobs being done on this node.", registry=registry)
        self._waiting = Gauge("ltx_num_requests_waiting", "Jobs in the queue.", ["priority"], registry=registry)
        self._oldest = Gauge("ltx_queue_oldest_seconds", "Age of the job that waits longest.", registry=registry)
        self._held = Gauge(
            "ltx_gpu_memory_used_bytes",
            "What the generating process holds of the GPU for tensors; 0 without one.",
            registry=registry,
        )
        self._worker = Gauge("ltx_worker_up", "1 while the model can generate.", registry=registry)
        self._free = Gauge("ltx_storage_free_bytes", "Free bytes where the data folder lies.", registry=registry)
        build = Gauge("ltx_build_info", "Always 1.", ["version"], registry=registry)
        build.labels(importlib.metadata.version("ltxd")).set(1)

    def started(self, *, created: float) -> None:
        """A job submitted at `created` begins."""
        self._queued.observe(max(0.0, time.time() - created))

    def ended(self, error_type: str | None, *, created: float | None) -> None:
        """A job ended, with an error of this type or well; or was refused, before it was `created`."""
        outcome = "rejected" if created is None else "ok" if error_type is None else outcome_of(error_type)
        self._requests.labels(outcome, error_type or "").inc()
        if created is not None:
            self._latency.observe(max(0.0, time.time() - created))

    def step(self, seconds: float) -> None:
        """One step of the denoising loop was done."""
        self._steps.observe(seconds)

    def generated(self, *, stages: Mapping[str, float], frames: int, megapixels: float) -> None:
        """A clip is finished; `stages` are seconds of work by name."""
        for stage, seconds in stages.items():
            self._stages.labels(stage).observe(seconds)
        self._frames.inc(frames)
        self._megapixels.inc(megapixels)

    def retried(self, reason: str, number: int = 1) -> None:
        """Jobs are tried once more."""
        if number:
            self._retries.labels(reason).inc(number)

    def restarted(self, reason: str) -> None:
        """Another generating process takes the place of one that is gone."""
        self._restarts.labels(reason).inc()

    def holds(self, size: int) -> None:
        """The generating process holds so many bytes of the GPU."""
        self._held.set(size)

    def delivered(self, *, ok: bool) -> None:
        """A webhook was called."""
        self._webhooks.labels("ok" if ok else "failed").inc()

    def exposition(self, *, waiting: Iterable[tuple[int, int, float]], running: bool, ready: bool) -> bytes:
        """Everything, as Prometheus reads it. `waiting`: priority, number, and submit time of the first."""
        counts = dict.fromkeys(PRIORITIES, 0)
        first = now = time.time()
        for priority, number, created in waiting:
            counts[PRIORITIES[priority]] += number
            first = min(first, created)
        for name, number in counts.items():
            self._waiting.labels(name).set(number)
        self._oldest.set(now - first)
        self._running.set(running)
        self._worker.set(ready)
        self._free.set(shutil.disk_usage(self._data).free)
        exposed: bytes = generate_latest(self._registry)
        return exposed
