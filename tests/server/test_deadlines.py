import asyncio
import time

import pytest

from server.bell import Bell
from server.database import open_database
from server.deadlines import keep_deadlines
from server.orphans import Orphans
from server.store import Store
from server.terms import Terms

ENDPOINT = "fal-ai/ltx-2.3-quality/image-to-video"


@pytest.fixture
async def store(tmp_path):
    bell = Bell()
    it = Store(open_database(tmp_path, on_change=bell.ring))
    keeping = asyncio.create_task(keep_deadlines(it, bell, orphan_seconds=0.2))
    yield it
    keeping.cancel()
    await it.close()


async def ended(store: Store, job_id: str) -> int | None:
    """The status of a job's failure, once it has ended; None if it does not."""
    deadline = time.monotonic() + 3
    while time.monotonic() < deadline:
        job = await store.get(job_id)
        if job.status == "COMPLETED":
            return job.failure.status
        await asyncio.sleep(0.02)
    return None


async def test_a_job_that_does_not_begin_in_time_fails_and_another_waits_on(store):
    await store.submit("patient", b"{}", max_waiting=9)
    await store.submit("hasty", b"{}", terms=Terms(start_within=0.2), max_waiting=9)
    assert await ended(store, "hasty") == 504
    assert (await store.get("patient")).status == "IN_QUEUE"


async def test_a_job_that_began_in_time_is_held_to_nothing_not_even_put_back(store):
    await store.submit("a", b"{}", terms=Terms(start_within=0.2), max_waiting=9)
    claim = await store.claim("me")
    await asyncio.sleep(0.4)
    assert (await store.get("a")).status == "IN_PROGRESS"
    await store.release(claim, max_attempts=3)
    await asyncio.sleep(0.1)
    assert (await store.claim("me")).id == "a"


async def test_a_late_job_is_not_begun_even_before_it_is_ended(tmp_path):
    store = Store(open_database(tmp_path))
    await store.submit("a", b"{}", terms=Terms(start_within=0.001), max_waiting=9)
    await asyncio.sleep(0.01)
    assert await store.claim("me") is None
    await store.close()


async def test_orphans_that_nobody_claims_are_cancelled_running_or_not(store):
    for name in ("running", "waiting", "held"):
        await store.submit(name, b"{}", asked=name, max_waiting=9)
    await store.claim("me")
    orphans = Orphans(store)
    for name in ("running", "waiting"):
        await orphans.leave(name)
    await orphans.attend("held")
    assert await ended(store, "waiting") == 499
    assert (await store.get("running")).cancel_requested
    assert (await store.get("held")).status == "IN_QUEUE"


async def test_what_was_due_while_no_server_ran_is_ended_at_the_next_start(tmp_path):
    store = Store(open_database(tmp_path))
    await store.submit("a", b"{}", terms=Terms(start_within=0.01), max_waiting=9)
    await asyncio.sleep(0.02)
    keeping = asyncio.create_task(keep_deadlines(store, Bell(), orphan_seconds=60))
    assert await ended(store, "a") == 504
    keeping.cancel()
    await store.close()


@pytest.mark.parametrize("role", ["run", "queue"])
def test_a_caller_that_bounds_the_wait_is_told_504_and_by_whose_clock(launch, image, fake_command, role):
    with launch(command=fake_command(load_seconds=20)) as it:
        given = {"json": {"prompt": "a", "image_url": image}, "headers": {"X-Fal-Request-Timeout": "0.3"}}
        answer = it.http.post(f"/{role}/{ENDPOINT}", **given)
        if role == "queue":
            status = it.wait(answer.json())
            assert status["error_type"] == "request_timeout"
            answer = it.http.get(answer.json()["response_url"])
        assert answer.status_code == 504
        assert answer.headers["x-fal-request-timeout-type"] == "user"
        assert answer.headers["x-fal-error-type"] == answer.json()["error_type"] == "request_timeout"
