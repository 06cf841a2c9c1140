"""What becomes of jobs when the generating process, or the server, dies."""

import asyncio
import logging
import re
import sys
import time

import httpx2
import pytest

from server.database import StoreUnavailableError, open_database
from server.model import ModelGivenUpError
from server.serve import Ports, serve
from server.settings import Settings
from server.store import Store

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


@pytest.mark.parametrize("when", ["the claim was written", "the end cannot be written"])
def test_a_job_that_its_node_lost_track_of_is_done_again_by_the_same_node(launch, image, monkeypatch, when):
    claim, finish = Store.claim, Store.finish
    failed = []

    async def claim_unanswered(store, owner, *, lease):
        claimed = await claim(store, owner, lease=lease)
        if claimed is not None and not failed:
            failed.append(claimed)
            raise StoreUnavailableError("the connection was lost as the claim was kept")
        return claimed

    async def finish_unwritten(store, claim, **end):
        if len(failed) < 2:
            failed.append(claim)
            raise RuntimeError("a failure that nobody knows")
        return await finish(store, claim, **end)

    if when == "the claim was written":
        monkeypatch.setattr(Store, "claim", claim_unanswered)
    else:
        monkeypatch.setattr(Store, "finish", finish_unwritten)
    with launch(lease_seconds=0.5) as it:
        job = it.submit(prompt="a", image_url=image, seed=5)
        assert "error" not in it.wait(job)
        assert it.http.get(job["response_url"]).json()["seed"] == 5
    assert {claim.attempt for claim in failed} == {1}


def test_a_silent_process_is_killed_and_its_job_done_by_the_next_one(launch, image):
    with launch(text_timeout=0.5, step_timeout=0.5) as it:
        assert it.run(prompt="hang-once", image_url=image).status_code == 200


def test_a_cancelled_job_is_not_tried_again_when_its_process_dies(launch, image):
    with launch(text_timeout=0.6, step_timeout=0.6) as it:
        job = it.submit(prompt="hang-once", image_url=image)
        it.wait(job, "IN_PROGRESS")
        time.sleep(0.2)
        assert it.http.put(job["cancel_url"]).status_code == 202
        assert it.wait(job)["error_type"] == "client_cancelled"


def test_a_job_gets_its_own_clip_though_the_cancelled_one_before_it_was_only_slow(launch, image):
    with launch(text_timeout=30, step_timeout=1) as it:
        slow = it.submit(prompt="stall", image_url=image, seed=1)
        deadline = time.monotonic() + 15
        while not any("denoise 1/" in line["message"] for line in it.wait(slow, "IN_PROGRESS")["logs"]):
            assert time.monotonic() < deadline
        it.http.put(slow["cancel_url"])
        behind = it.submit(prompt="a", image_url=image, seed=2)
        assert it.wait(slow)["error_type"] == "client_cancelled"
        assert [line for line in it.wait(behind)["logs"] if line["level"] == "WARN"] == []
        assert it.http.get(behind["response_url"]).json()["seed"] == 2


def test_a_clip_that_is_not_the_one_asked_for_is_not_taken(launch, image):
    with launch() as it:
        job = it.submit(prompt="elsewhere-once", image_url=image)
        ended = it.wait(job)
        assert any("sent Done out of turn" in line["message"] for line in ended["logs"])
        assert it.http.get(job["response_url"]).status_code == 200


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


def test_a_model_that_does_not_load_is_told_by_health_and_jobs_are_taken(launch, image, caplog, tmp_path):
    tried = tmp_path / "tried"
    # why: the third such start would end the server
    program = f"import pathlib, time; tried = pathlib.Path({str(tried)!r}); tried.exists() and time.sleep(600); "
    program += "tried.touch(); raise SystemExit('no such weights')"
    with launch(command=lambda _fd: [sys.executable, "-c", program]) as it:
        deadline = time.monotonic() + 10
        while (health := it.http.get("/health").json())["status"] != "failed":
            assert time.monotonic() < deadline
            time.sleep(0.02)
        assert health["error"] == "the model did not load: the process left with status 1; the log says more"
        # what a library prints is for the operator alone
        assert "left with status 1: no such weights; next try" in caplog.text
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


def test_a_process_that_runs_out_of_memory_is_followed_by_one_that_keeps_less_on_the_device(launch, image):
    with launch() as it:
        job = it.submit(prompt="oom", image_url=image)
        ended = it.wait(job)
        assert "error" not in ended
        assert any("evict-text" in line["message"] for line in ended["logs"])
        # the reckoning was wrong for this device: the next clip is not to meet the same
        assert it.run(prompt="oom", image_url=image).status_code == 200
        assert starts(it) == 2
        assert it.http.get("/health").json()["model"]["residency"] == "evict-text"


def test_a_job_that_runs_out_of_memory_again_is_told_what_would_fit(launch, image):
    with launch() as it:
        answer = it.run(prompt="oom-always", image_url=image, num_frames=49, resolution={"width": 512, "height": 288})
        assert (answer.status_code, answer.headers["x-fal-error-type"]) == (500, "internal_server_error")
        (entry,) = answer.json()["detail"]
        assert "512x288 with 49 frames" in entry["msg"]
        assert "25 frames at this size should fit" in entry["msg"]
        assert "evict-text" in entry["msg"]
        # the next job has what the first one began with
        assert it.run(prompt="a", image_url=image).status_code == 200
        assert it.http.get("/health").json()["model"]["residency"] == "resident"


def test_a_job_without_a_smaller_residency_left_is_told_so_at_once(launch, image):
    with launch(residency="stream") as it:
        answer = it.run(prompt="oom-always", image_url=image)
        assert answer.status_code == 500
        assert "again" not in answer.text


def test_a_large_clip_has_a_smaller_residency_for_itself_alone(launch, image):
    with launch() as it:
        job = it.submit(prompt="large", image_url=image)
        behind = it.submit(prompt="a", image_url=image)
        ended = it.wait(job)
        assert "error" not in ended
        assert any("residency stream" in line["message"] for line in ended["logs"])
        it.wait(behind)
        assert it.http.get("/health").json()["model"]["residency"] == "resident"
        assert starts(it) == 3


def test_a_clip_too_large_for_the_device_is_refused_at_once_in_the_process_that_runs(launch, image):
    with launch() as it:
        answer = it.run(prompt="too-large", image_url=image, resolution={"width": 512, "height": 288})
        assert (answer.status_code, answer.headers["x-fal-retryable"]) == (422, "false")
        (entry,) = answer.json()["detail"]
        assert (entry["loc"], entry["type"]) == (["body", "resolution"], "value_error")
        assert (entry["msg"], entry["ctx"]) == ("25 frames at this size would fit", {"max_num_frames": 25})
        assert starts(it) == 1


def test_a_model_too_large_to_load_is_loaded_with_a_smaller_residency_which_stays(launch, fake_command, image):
    with launch(command=fake_command(least="fp8")) as it:
        assert it.run(prompt="a", image_url=image).status_code == 200
        assert it.run(prompt="large", image_url=image).status_code == 200
        assert it.run(prompt="a", image_url=image).status_code == 200
        assert it.http.get("/health").json()["model"]["residency"] == "fp8"
        # resident, evict-text, fp8; stream; fp8
        assert starts(it) == 5


OF_AN_FP8_FILE = "resident,fp8,evict-text,fp8-evict-text,stream"
"""From most to least memory: with fp8 the text encoder stays, and the transformer is hardly smaller than it was."""


def test_the_next_residency_after_one_that_ran_out_of_memory_takes_less_of_it(launch, fake_command, image):
    with launch(command=fake_command(order=OF_AN_FP8_FILE), residency="evict-text") as it:
        job = it.submit(prompt="oom-always", image_url=image)
        told = [line["message"] for line in it.wait(job)["logs"]]
        assert any(line.endswith("tried again with residency fp8-evict-text") for line in told), told


def test_a_model_too_large_to_load_is_loaded_with_less_at_each_try(launch, fake_command, image):
    with launch(command=fake_command(order=OF_AN_FP8_FILE, least="stream"), residency="evict-text") as it:
        assert it.run(prompt="a", image_url=image).status_code == 200
        assert it.http.get("/health").json()["model"]["residency"] == "stream"
        # evict-text, fp8-evict-text, stream
        assert starts(it) == 3


async def test_a_model_that_does_not_load_three_times_ends_the_server_and_leaves_the_jobs(tmp_path, image):
    settings = Settings(data=tmp_path, port=0, tls_port=0)
    program = [sys.executable, "-c", "raise SystemExit('no such weights')"]

    def submit(ports: Ports) -> None:
        given = {"prompt": "a", "image_url": image}
        url = f"http://127.0.0.1:{ports.http}/queue/{ENDPOINT}"
        submitted.append(asyncio.create_task(asyncio.to_thread(httpx2.post, url, json=given, trust_env=False)))

    submitted: list[asyncio.Task[httpx2.Response]] = []
    with pytest.raises(ModelGivenUpError, match=r"3 times within 300 s: .* left with status 1: no such weights"):
        await serve(settings, command=lambda _fd: program, stop=asyncio.Event(), on_start=submit)
    job = (await submitted[0]).json()
    database = open_database(tmp_path)
    assert (await Store(database).get(job["request_id"])).status == "IN_QUEUE"
    await database.close()


def starts(it) -> int:
    """How many generating processes there were."""
    text = it.http.get("/metrics").text
    return 1 + sum(int(float(n)) for n in re.findall(r"^ltx_worker_restarts_total\{.*\} (\S+)$", text, re.MULTILINE))


def test_a_full_disk_fails_the_job_in_words_and_leaves_the_process_running(launch, image):
    with launch() as it:
        it.run(prompt="a", image_url=image)
        answer = it.run(prompt="disk-full", image_url=image)
        assert answer.status_code == 503
        assert answer.headers["retry-after"] == "30"
        assert "disk is full" in answer.json()["detail"]
        assert it.run(prompt="a", image_url=image).status_code == 200


def test_the_failure_says_how_the_process_died_and_the_log_what_it_said_last(launch, image, caplog):
    caplog.set_level(logging.INFO)
    with launch(max_attempts=1) as it:
        answer = it.run(prompt="segfault", image_url=image)
        assert answer.status_code == 500
        assert "SIGSEGV (Fatal Python error: Segmentation fault)" in answer.json()["detail"][0]["msg"]
        lost = [record.getMessage() for record in caplog.records if "segfault" not in record.getMessage()]
        assert any("Fatal Python error" in line and "fake_worker.py" in line for line in lost)


def test_a_process_that_meets_a_cuda_error_is_replaced_and_the_failure_says_which(launch, image):
    with launch(max_attempts=1) as it:
        job = it.submit(prompt="cuda", image_url=image)
        ended = it.wait(job)
        said = "failed with RuntimeError (CUDA error: an illegal memory access was encountered)"
        assert said in ended["error"]
        assert any(said in line["message"] for line in ended["logs"])
        assert "secret" not in it.http.get(job["response_url"]).text
        assert it.run(prompt="a", image_url=image).status_code == 200
        assert starts(it) == 2


def test_a_job_that_takes_too_long_ends_in_a_timeout(launch, image):
    with launch(job_timeout=0.3) as it:
        answer = it.run(prompt="slow", image_url=image)
        assert (answer.status_code, answer.headers["x-fal-error-type"]) == (504, "generation_timeout")
        assert it.run(prompt="a", image_url=image).status_code == 200


def test_a_bad_image_fails_while_the_model_still_loads_and_a_good_one_waits(launch, fake_command, image):
    with launch(command=fake_command(load_seconds=600)) as it:
        good = it.submit(prompt="a", image_url=image)
        bad = it.submit(prompt="a", image_url="data:image/png;base64,AAAA")
        ended = it.wait(bad)
        assert ended["error_type"] == "image_load_error"
        assert it.http.get("/health").json()["status"] == "loading"
        assert it.http.get(good["status_url"]).json()["status"] == "IN_QUEUE"


def test_a_node_of_role_api_takes_requests_and_does_no_job(launch, image):
    with launch(role="api") as it:
        assert it.http.get("/health/ready").status_code == 200
        job = it.submit(prompt="a", image_url=image)
        time.sleep(0.5)
        assert it.http.get(job["status_url"]).json()["status"] == "IN_QUEUE"


def test_a_node_of_role_worker_does_jobs_and_takes_none(launch, image):
    with launch(role="api") as it:
        job = it.submit(prompt="a", image_url=image)
    with launch(role="worker") as it:
        assert it.http.post("/queue/fal-ai/ltx-2.3-quality/image-to-video", json={}).status_code == 404
        deadline = time.monotonic() + 15
        while (health := it.http.get("/health").json())["queue_length"] or health["running"]:
            assert time.monotonic() < deadline
            time.sleep(0.02)
    with launch(role="api") as it:
        path = job["response_url"].partition("/queue/")[2]
        assert it.http.get(f"/queue/{path}").status_code == 200


def test_a_job_is_not_begun_while_the_disk_is_nearly_full_and_no_other_is_taken(launch, image):
    with launch(min_free_bytes=2**60) as it:
        answer = it.http.post("/queue/fal-ai/ltx-2.3-quality/image-to-video", json={"prompt": "a", "image_url": image})
        assert answer.status_code == 429
        assert answer.headers["retry-after"] == "10"
        assert "disk" in answer.json()["detail"]
        health = it.http.get("/health/ready")
        assert (health.status_code, health.json()["status"]) == (503, "storage_unavailable")


def test_a_stream_of_the_status_ends_when_the_server_does(launch, image):
    with launch(drain_timeout=0) as it:
        job = it.submit(prompt="slow", image_url=image)
        it.wait(job, "IN_PROGRESS")
        lines = it.http.stream("GET", f"{job['status_url']}/stream")
        stream = lines.__enter__()
        assert stream.status_code == 200
        began = time.monotonic()
    assert time.monotonic() - began < 10
    lines.__exit__(None, None, None)
