import json
import time
import uuid

import pytest

ENDPOINT = "fal-ai/ltx-2.3-quality/image-to-video"
APP = "fal-ai/ltx-2.3-quality"


def test_a_submit_answers_at_once_with_where_to_look(server, image):
    answer = server.http.post(f"/queue/{ENDPOINT}", json={"prompt": "a", "image_url": image})
    body = answer.json()
    request_id = body["request_id"]
    url = f"{server.url}/queue/{APP}/requests/{request_id}"
    assert answer.status_code == 200
    assert answer.headers["x-fal-request-id"] == request_id
    assert str(uuid.UUID(request_id)) == request_id
    assert body.pop("queue_position") >= 0
    assert body == {
        "status": "IN_QUEUE",
        "request_id": request_id,
        "response_url": url,
        "status_url": f"{url}/status",
        "cancel_url": f"{url}/cancel",
        "logs": None,
        "metrics": {},
    }
    server.wait(body)


def test_a_job_goes_from_queue_to_progress_to_its_result(server, image):
    first = server.submit(prompt="slow", image_url=image)
    second = server.submit(prompt="a", image_url=image)
    server.wait(first, "IN_PROGRESS")
    waiting = server.http.get(second["status_url"])
    assert waiting.status_code == 202
    assert waiting.json()["queue_position"] == 0
    assert waiting.json()["logs"] is None
    running = server.http.get(first["status_url"], params={"logs": "true"})
    assert running.status_code == 202
    assert "queue_position" not in running.json()
    assert isinstance(running.json()["logs"], list)
    assert running.json()["metrics"] == {}
    early = server.http.get(first["response_url"])
    assert early.status_code == 400
    assert early.json() == {"detail": "Request is still in progress", "error_type": "bad_request"}
    ended = server.wait(first)
    assert server.http.get(first["status_url"]).status_code == 200
    assert ended["metrics"]["inference_time"] > 1
    assert "error" not in ended
    messages = [line["message"] for line in ended["logs"]]
    assert messages[0] == "Generating with fake weights on cpu"
    steps = [m for m in messages if m.startswith("denoise ")]
    assert all("/30, about " in m for m in steps)
    assert 2 <= len(steps) <= 2 * ended["metrics"]["inference_time"] + 2
    assert {"message", "level", "source", "timestamp"} == set(ended["logs"][0])
    result = server.http.get(first["response_url"])
    assert result.status_code == 200
    assert result.headers["x-fal-request-id"] == first["request_id"]
    assert result.json()["video"]["content_type"] == "video/mp4"
    server.wait(second)


@pytest.mark.parametrize("app", [APP, ENDPOINT])
@pytest.mark.parametrize("prefix", ["", "/run", "/queue"])
@pytest.mark.parametrize("tail", ["", "/", "/response", "/response/"])
def test_a_result_is_found_by_its_id_under_every_path(server, ended, app, prefix, tail):
    answer = server.http.get(f"{prefix}/{app}/requests/{ended}{tail}", follow_redirects=False)
    assert answer.status_code == 200
    assert answer.json()["prompt"] == "a, expanded"


@pytest.mark.parametrize("app", [APP, ENDPOINT])
@pytest.mark.parametrize("prefix", ["", "/run", "/queue"])
@pytest.mark.parametrize("slash", ["", "/"])
def test_status_stream_and_cancel_are_found_under_every_path(server, ended, app, prefix, slash):
    url = f"{prefix}/{app}/requests/{ended}"
    for method, tail, status in (("GET", "/status", 200), ("GET", "/status/stream", 200), ("PUT", "/cancel", 400)):
        answer = server.http.request(method, f"{url}{tail}{slash}", follow_redirects=False)
        assert answer.status_code == status
        told = answer.json() if tail != "/status/stream" else json.loads(answer.text.removeprefix("data: "))
        assert told["status"] == ("ALREADY_COMPLETED" if tail == "/cancel" else "COMPLETED")


@pytest.fixture(scope="module")
def ended(server, image):
    job = server.submit(prompt="a", image_url=image)
    server.wait(job)
    return job["request_id"]


@pytest.mark.parametrize(
    ("logs", "wanted"), [("1", list), ("true", list), ("True", list), ("0", None), ("false", None)]
)
def test_logs_are_a_list_when_asked_for_and_null_otherwise(server, ended, logs, wanted):
    found = server.http.get(f"/queue/{APP}/requests/{ended}/status/", params={"logs": logs}).json()["logs"]
    assert found is None if wanted is None else isinstance(found, wanted)


@pytest.mark.parametrize(
    "method_and_tail", [("GET", ""), ("GET", "/status"), ("GET", "/status/stream"), ("PUT", "/cancel")]
)
@pytest.mark.parametrize("request_id", ["a9362121-1797-41dc-bf87-cd64bf132038", "no-uuid", "%00", "a%0d%0ax:1"])
def test_an_unknown_request_id_is_404(server, method_and_tail, request_id):
    method, tail = method_and_tail
    answer = server.http.request(method, f"/queue/{APP}/requests/{request_id}{tail}")
    assert answer.status_code == 404
    assert answer.json() == {"status": "NOT_FOUND"}


def test_a_waiting_job_is_cancelled_at_once(server, image):
    first = server.submit(prompt="slow", image_url=image)
    second = server.submit(prompt="a", image_url=image)
    answer = server.http.put(second["cancel_url"])
    assert answer.status_code == 202
    assert answer.json() == {"status": "CANCELLATION_REQUESTED"}
    status = server.http.get(second["status_url"])
    assert status.status_code == 200
    assert status.json()["error_type"] == "client_cancelled"
    assert "inference_time" not in status.json()["metrics"]
    result = server.http.get(second["response_url"])
    assert result.status_code == 499
    assert result.json()["error_type"] == "client_cancelled"
    assert result.headers["x-fal-retryable"] == "false"
    server.http.put(first["cancel_url"])
    server.wait(first)


def test_a_running_job_is_cancelled_within_a_step(server, image):
    job = server.submit(prompt="slow", image_url=image)
    server.wait(job, "IN_PROGRESS")
    started = time.monotonic()
    answer = server.http.put(job["cancel_url"], headers={"content-type": "application/json"})
    assert answer.status_code == 202
    server.wait(job)
    assert time.monotonic() - started < 1
    assert server.http.get(job["response_url"]).status_code == 499


def test_an_ended_job_cannot_be_cancelled(server, ended):
    answer = server.http.put(f"/queue/{APP}/requests/{ended}/cancel")
    assert answer.status_code == 400
    assert answer.json() == {"status": "ALREADY_COMPLETED"}


def test_the_stream_of_status_tells_each_log_line_once_and_then_closes(server, image):
    job = server.submit(prompt="slow log:日本語", image_url=image)
    with server.http.stream("GET", job["status_url"] + "/stream", params={"logs": 1}) as answer:
        assert answer.headers["content-type"].startswith("text/event-stream")
        text = "".join(answer.iter_text())
    assert text.isascii()
    events = [json.loads(part.removeprefix("data: ")) for part in text.split("\n\n") if part.startswith("data: ")]
    assert events[-1]["status"] == "COMPLETED"
    assert [e["status"] for e in events[:-1]].count("COMPLETED") == 0
    told = [line["message"] for event in events for line in event["logs"]]
    assert told == [line["message"] for line in server.wait(job)["logs"]]
    assert "日本語" in told


def test_low_priority_waits_behind_normal(launch, image):
    with launch() as it:
        running = it.submit(prompt="slow", image_url=image)
        it.wait(running, "IN_PROGRESS")
        headers = {"x-fal-queue-priority": "low"}
        low = it.http.post(f"/queue/{ENDPOINT}", json={"prompt": "a", "image_url": image}, headers=headers).json()
        normal = it.submit(prompt="a", image_url=image)
        assert it.http.get(normal["status_url"]).json()["queue_position"] == 0
        assert it.http.get(low["status_url"]).json()["queue_position"] == 1
        it.http.put(running["cancel_url"])
        it.wait(low)


def test_a_full_queue_is_429(launch, image):
    with launch() as it:
        first = it.submit(prompt="slow", image_url=image)
        it.wait(first, "IN_PROGRESS")
        it.submit(prompt="slow", image_url=image)
        given = {"prompt": "a", "image_url": image}
        url = f"/queue/{ENDPOINT}?fal_max_queue_length"
        assert it.http.post(f"{url}=0", json=given).status_code == 429
        assert it.http.post(f"{url}=1", json=given).status_code == 200
        assert it.http.post(f"{url}=x", json=given).status_code == 400


def test_a_submit_is_accepted_while_the_model_loads(launch, image, fake_command):
    with launch(command=fake_command(load_seconds=1.0)) as it:
        assert it.http.get("/health/live").status_code == 200
        assert it.http.get("/health/ready").status_code == 503
        assert it.http.get("/health").json()["status"] == "loading"
        job = it.submit(prompt="a", image_url=image)
        it.wait(job)
        ready = it.http.get("/health/ready")
        assert ready.status_code == 200
        assert ready.json()["weights"] == "fake weights"
        assert ready.json()["demo"] is True
