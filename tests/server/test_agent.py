"""What becomes of jobs when the generating process, or the server, dies."""

import sys
import time

ENDPOINT = "fal-ai/ltx-2.3-quality/image-to-video"


def test_a_job_whose_process_was_killed_is_done_by_the_next_one(launch, image):
    with launch() as it:
        job = it.submit(prompt="crash-once", image_url=image, seed=5)
        behind = it.submit(prompt="slow", image_url=image)
        ended = it.wait(job)
        assert "error" not in ended
        assert it.http.get(behind["status_url"]).json()["status"] != "COMPLETED"
        assert it.http.get(job["response_url"]).json()["seed"] == 5
        assert any(line["level"] == "WARN" for line in ended["logs"])
        it.wait(behind)


def test_a_job_that_kills_its_process_every_time_ends_in_an_honest_500(launch, image):
    with launch() as it:
        job = it.submit(prompt="crash-always", image_url=image)
        behind = it.submit(prompt="a", image_url=image)
        assert it.wait(job)["error_type"] == "internal_server_error"
        result = it.http.get(job["response_url"])
        assert result.status_code == 500
        assert result.headers["x-fal-retryable"] == "true"
        assert "error" not in it.wait(behind)


def test_a_silent_process_is_killed_and_its_job_done_by_the_next_one(launch, image):
    with launch(step_timeout=0.5) as it:
        assert it.run(prompt="hang-once", image_url=image).status_code == 200


def test_a_cancelled_job_is_not_tried_again_when_its_process_dies(launch, image):
    with launch(step_timeout=0.6) as it:
        job = it.submit(prompt="hang-once", image_url=image)
        it.wait(job, "IN_PROGRESS")
        time.sleep(0.2)
        assert it.http.put(job["cancel_url"]).status_code == 202
        assert it.wait(job)["error_type"] == "client_cancelled"


def test_a_job_interrupted_by_the_end_of_the_server_is_done_by_the_next_server(launch, image):
    with launch(drain_timeout=0) as it:
        running = it.submit(prompt="slow", image_url=image, seed=9)
        waiting = it.submit(prompt="a", image_url=image)
        it.wait(running, "IN_PROGRESS")
    with launch() as it:
        first = f"{it.url}/queue/fal-ai/ltx-2.3-quality/requests/{running['request_id']}"
        it.wait({"status_url": f"{first}/status"})
        assert it.http.get(first).json()["seed"] == 9
        second = f"{it.url}/queue/fal-ai/ltx-2.3-quality/requests/{waiting['request_id']}"
        it.wait({"status_url": f"{second}/status"})


def test_a_server_that_ends_lets_the_running_job_finish_first(launch, image):
    with launch(drain_timeout=10) as it:
        job = it.submit(prompt="slow", image_url=image)
        it.wait(job, "IN_PROGRESS")
    with launch() as it:
        answer = it.http.get(f"/queue/fal-ai/ltx-2.3-quality/requests/{job['request_id']}")
        assert answer.status_code == 200


def test_a_model_that_does_not_load_is_told_by_health_and_the_server_stays_up(launch, image):
    with launch(command=lambda _fd: [sys.executable, "-c", "raise SystemExit('no such weights')"]) as it:
        deadline = time.monotonic() + 10
        while (health := it.http.get("/health").json())["status"] != "failed":
            assert time.monotonic() < deadline
            time.sleep(0.02)
        assert "no such weights" in health["error"]
        assert it.http.get("/health/ready").status_code == 503
        assert it.submit(prompt="a", image_url=image)["status"] == "IN_QUEUE"


def test_a_server_ends_at_once_while_its_model_loads(launch, fake_command):
    with launch(command=fake_command(load_seconds=60), drain_timeout=60) as it:
        assert it.http.get("/health").json()["status"] == "loading"
        began = time.monotonic()
    assert time.monotonic() - began < 5


def test_what_a_dead_server_left_in_the_work_folder_is_removed(launch, tmp_path):
    left = tmp_path / "data" / "work" / "x.1.mp4"
    left.parent.mkdir(parents=True)
    left.touch()
    with launch() as it:
        deadline = time.monotonic() + 5
        while it.http.get("/health").json()["status"] == "loading":
            assert time.monotonic() < deadline
            time.sleep(0.02)
        assert not left.exists()


def test_nothing_is_left_in_the_work_folder(server, image):
    assert server.run(prompt="a", image_url=image).status_code == 200
    assert server.run(prompt="unsafe", image_url=image).status_code == 422
    assert list((server.settings.data / "work").iterdir()) == []
