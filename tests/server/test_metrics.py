import json
import re
import shutil
import subprocess
import time
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from server.metrics import Metrics, outcome_of
from server.store import Store

ENDPOINT = "fal-ai/ltx-2.3-quality/image-to-video"
DASHBOARD = Path(__file__).parents[2] / "deploy/grafana/ltxd.json"


def samples(text: str) -> dict[tuple[str, ...], float]:
    """Values by name and labels; the labels in the order of their names."""
    return {
        (sample.name, *(value for _, value in sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


@pytest.fixture
def metrics(tmp_path):
    return Metrics(tmp_path)


def exposed(metrics: Metrics) -> str:
    return metrics.exposition(waiting=[], running=False, ready=True).decode()


def test_a_clip_is_counted_with_its_stages_and_its_wait(launch, image):
    with launch() as server:
        assert server.run(prompt="a clip", image_url=image).status_code == 200
        assert server.run(prompt="a clip", image_url="no address").status_code == 422
        # why: a job is counted just after its end was written
        deadline = time.monotonic() + 15
        while 'outcome="ok"' not in (answer := server.http.get("/metrics")).text and time.monotonic() < deadline:
            time.sleep(0.01)
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"].startswith("text/plain; version=0.0.4")
    seen = samples(answer.text)
    assert seen["ltx_requests_total", "", "ok"] == 1
    assert seen["ltx_generated_frames_total",] > 0
    assert seen["ltx_request_queue_time_seconds_count",] >= 1
    assert seen["ltx_e2e_request_latency_seconds_count",] >= 1
    assert seen["ltx_worker_up",] == 1
    assert {"fetch", "denoise", "store"} <= {key[1] for key in seen if key[0] == "ltx_stage_duration_seconds_count"}
    assert any(key[0] == "ltx_stage_duration_seconds_count" and value == 1 for key, value in seen.items())
    assert sum(value for key, value in seen.items() if key[0] == "ltx_requests_total" and key[2] != "ok") == 1


def requests(server) -> dict[tuple[str, str], float]:
    """Jobs that ended and refused calls, by outcome and type of error."""
    seen = samples(server.http.get("/metrics").text)
    return {(key[2], key[1]): value for key, value in seen.items() if key[0] == "ltx_requests_total"}


def test_every_end_of_a_job_is_counted_once_wherever_it_ends(launch, fake_command, image):
    with launch(command=fake_command(load_seconds=600)) as server:
        # nothing is taken from the queue here
        cancelled = server.submit(prompt="a", image_url=image)
        assert server.http.put(cancelled["cancel_url"]).status_code == 202
        late = server.http.post(
            f"/queue/{ENDPOINT}", json={"prompt": "a", "image_url": image}, headers={"x-fal-request-timeout": "1"}
        ).json()
        bad = server.submit(prompt="a", image_url="data:image/png;base64,AAAA")
        unread = server.http.post(f"/queue/{ENDPOINT}", json={"prompt": "a"}).json()
        for job in (cancelled, late, bad, unread):
            server.wait(job)
            # to ask for a result counts nothing
            assert server.http.get(job["response_url"]).status_code >= 400
        assert requests(server) == {
            ("cancelled", "client_cancelled"): 1,
            ("timeout", "request_timeout"): 1,
            ("failed", "image_load_error"): 1,
            ("rejected", "missing"): 1,
        }


def test_an_attempt_that_was_the_last_is_no_retry(launch, image):
    with launch(max_attempts=2) as server:
        assert server.run(prompt="crash-always", image_url=image).status_code == 500
        seen = samples(server.http.get("/metrics").text)
        assert seen["ltx_job_retries_total", "died"] == 1
        assert seen["ltx_worker_restarts_total", "died"] >= 1
        assert requests(server) == {("failed", "internal_server_error"): 1}


async def test_what_a_dead_server_left_running_is_counted_when_it_is_put_back_or_ended(metrics, database):
    store = Store(database, metrics)
    for name in ("a", "b"):
        await store.submit(name, b"{}", max_waiting=9)
        await store.claim("me", lease=60)
    await store.cancel("b")
    assert await store.recover(max_attempts=3) == 2
    seen = samples(exposed(metrics))
    assert seen["ltx_job_retries_total", "node lost"] == 1
    assert seen["ltx_requests_total", "client_cancelled", "cancelled"] == 1


def test_the_memory_of_the_gpu_is_that_of_the_process_that_runs(metrics):
    assert samples(exposed(metrics))["ltx_gpu_memory_used_bytes",] == 0
    metrics.holds(46_000_000_000)
    assert samples(exposed(metrics))["ltx_gpu_memory_used_bytes",] == 46e9


def test_the_page_tells_of_no_prompt_and_no_job(launch, image):
    with launch() as server:
        submitted = server.submit(prompt="a secret prompt", image_url=image)
        server.wait(submitted)
        answer = server.http.get("/metrics")
    assert answer.status_code == 200
    text = answer.text
    assert "secret" not in text
    assert submitted["request_id"] not in text


def test_waiting_jobs_are_counted_by_priority_and_the_oldest_is_aged(metrics):
    text = metrics.exposition(waiting=[(0, 3, 1.0), (1, 2, 5.0)], running=True, ready=False).decode()
    seen = samples(text)
    assert seen["ltx_num_requests_waiting", "normal"] == 3
    assert seen["ltx_num_requests_waiting", "low"] == 2
    assert seen["ltx_queue_oldest_seconds",] > 1e9
    assert (seen["ltx_num_requests_running",], seen["ltx_worker_up",]) == (1, 0)


def test_an_empty_queue_has_no_age(metrics):
    metrics.exposition(waiting=[(0, 3, 1.0)], running=False, ready=True)
    seen = samples(exposed(metrics))
    assert seen["ltx_queue_oldest_seconds",] == 0
    assert seen["ltx_num_requests_waiting", "normal"] == 0


@pytest.mark.parametrize(
    ("error_type", "outcome"),
    [("client_cancelled", "cancelled"), ("generation_timeout", "timeout"), ("internal_server_error", "failed")],
)
def test_the_outcome_follows_from_the_type_of_the_error(error_type, outcome):
    assert outcome_of(error_type) == outcome


def test_the_dashboard_asks_only_for_what_is_counted(metrics):
    metrics.ended(None, created=0.0)
    metrics.generated(stages={"denoise": 1.0}, frames=1, megapixels=1)
    metrics.retried("died")
    metrics.restarted("died")
    metrics.delivered(ok=True)
    names = {key[0] for key in samples(exposed(metrics))}
    asked = set(re.findall(r"ltx_\w+", json.dumps(json.loads(DASHBOARD.read_text())["panels"])))
    assert asked
    assert asked <= names


@pytest.mark.full
def test_promtool_has_nothing_to_say(metrics):
    promtool = shutil.which("promtool")
    assert promtool, "promtool is missing: install the package prometheus"
    metrics.ended(None, created=0.0)
    metrics.retried("died")
    metrics.restarted("died")
    said = subprocess.run([promtool, "check", "metrics"], input=exposed(metrics), capture_output=True, text=True)
    assert (said.returncode, said.stdout + said.stderr) == (0, "")
