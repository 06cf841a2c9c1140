import asyncio
import multiprocessing
import time
from pathlib import Path

import pytest

from server.errors import plain
from server.store import MAX_LOG_LINES, Claim, Sender, Store, StoredFile, StoreError
from server.terms import Terms


@pytest.fixture
async def store(tmp_path):
    it = Store(tmp_path)
    yield it
    await it.close()


async def submit(store: Store, *names: str, priority: int = 0) -> None:
    for name in names:
        assert await store.submit(name, b"{}", terms=Terms(priority), max_waiting=100) == "accepted"


async def claimed(store: Store) -> str | None:
    claim = await store.claim("me")
    return claim and claim.id


async def test_jobs_are_claimed_in_their_order_and_low_priority_last(store):
    await submit(store, "low", priority=1)
    await submit(store, "a", "b")
    assert [(await store.get(name)).position for name in ("a", "b", "low")] == [0, 1, 2]
    assert [await claimed(store) for _ in range(4)] == ["a", "b", "low", None]


async def test_a_released_job_goes_back_to_its_old_place(store):
    await submit(store, "a", "b")
    claim = await store.claim("me")
    assert await store.release(claim, max_attempts=3)
    assert (await store.get("a")).position == 0
    again = await store.claim("me")
    assert (again.id, again.attempt) == ("a", 2)


async def test_a_job_is_given_up_after_its_last_attempt(store):
    await submit(store, "a")
    for _ in range(3):
        await store.release(await store.claim("me"), max_attempts=3)
    job = await store.get("a")
    assert job.status == "COMPLETED"
    assert job.failure.status == 500
    assert await store.claim("me") is None


async def test_an_attempt_that_is_not_counted_costs_nothing(store):
    await submit(store, "a")
    for _ in range(5):
        await store.release(await store.claim("me"), max_attempts=3, counted=False)
    assert (await store.claim("me")).attempt == 1


async def test_a_job_ends_once_and_only_for_its_holder(store):
    await submit(store, "a")
    claim = await store.claim("me")
    stale = Claim("a", "me", 0, b"")
    stranger = Claim("a", "other", claim.attempt, b"")
    assert not await store.finish(stale, result={"x": 1})
    assert not await store.finish(stranger, result={"x": 1})
    assert not await store.release(stranger, max_attempts=3)
    assert await store.finish(claim, result={"x": 2}, seconds=1.5, units=3)
    assert not await store.finish(claim, result={"x": 3})
    job = await store.get("a")
    assert (job.result, job.inference_seconds, job.units, job.failure) == ({"x": 2}, 1.5, 3, None)


async def test_a_failure_is_kept_word_for_word(store):
    await submit(store, "a")
    failure = plain("bad_request", "no 日本語")
    await store.finish(await store.claim("me"), failure=failure)
    assert (await store.get("a")).failure == failure


async def test_cancel_ends_a_waiting_job_asks_a_running_one_and_comes_too_late_for_an_ended_one(store):
    await submit(store, "a", "b")
    claim = await store.claim("me")
    assert await store.cancel("b") == "CANCELLATION_REQUESTED"
    assert (await store.get("b")).failure.status == 499
    assert await store.cancel("a") == "CANCELLATION_REQUESTED"
    assert (await store.get("a")).cancel_requested
    await store.release(claim, max_attempts=3)
    assert (await store.get("a")).failure.error_type == "client_cancelled"
    assert await store.cancel("a") == "ALREADY_COMPLETED"
    assert await store.cancel("x") == "NOT_FOUND"


async def test_a_full_queue_takes_no_more(store):
    await submit(store, "a")
    assert await store.submit("b", b"{}", max_waiting=1) == "queue full"
    assert await store.get("b") is None


async def test_a_key_may_have_as_many_jobs_in_flight_as_its_limit(store):
    mine, other = Sender("mine", max_in_flight=2), Sender("other", max_in_flight=1)
    for name, sender in (("a", mine), ("b", mine), ("c", other)):
        assert await store.submit(name, b"{}", max_waiting=9, sender=sender) == "accepted"
    claim = await store.claim("me")
    assert await store.submit("d", b"{}", max_waiting=9, sender=mine) == "too many in flight"
    await store.finish(claim, result={})
    assert await store.submit("d", b"{}", max_waiting=9, sender=mine) == "accepted"
    assert (await store.get("d")).key_id == "mine"


async def test_jobs_of_a_dead_process_wait_again_at_their_place(tmp_path):
    first = Store(tmp_path)
    await submit(first, "a", "b", "worn", "unwanted")
    await first.claim("me")
    for _ in range(3):
        await first.release(await first.claim("me"), max_attempts=9)
    await first.close()
    second = Store(tmp_path)
    assert await second.recover(max_attempts=3) == 1
    assert [(await second.claim("me")).id for _ in range(2)] == ["a", "b"]
    await second.close()


async def test_recovering_ends_what_was_tried_too_often_and_what_was_cancelled(tmp_path):
    store = Store(tmp_path)
    await submit(store, "worn", "unwanted")
    await store.claim("me")
    await store.claim("me")
    await store.cancel("unwanted")
    assert await store.recover(max_attempts=1) == 0
    assert (await store.get("worn")).failure.status == 500
    assert (await store.get("unwanted")).failure.status == 499
    await store.close()


async def test_log_lines_keep_their_order_and_are_capped(store):
    await submit(store, "a")
    for n in range(MAX_LOG_LINES + 5):
        await store.log("a", f"line {n}" + "x" * 3000 * (n == 0))
    lines = await store.logs("a")
    assert len(lines) == MAX_LOG_LINES
    assert len(lines[0].message) == 2000
    assert [line.message for line in await store.logs("a", after=MAX_LOG_LINES - 2)] == ["line 498", "line 499"]


async def test_sweeping_forgets_expired_files_and_old_jobs(store):
    await submit(store, "old", "waiting")
    file = StoredFile("f" * 32, "old", "a.mp4", "video/mp4", 1, "0" * 64, time.time(), time.time() - 1)
    await store.log("old", "x")
    await store.finish(await store.claim("me"), result={}, file=file)
    assert await store.file(file.id) is None
    assert await store.sweep(row_retention=-1) == [file.id]
    assert await store.sweep(row_retention=-1) == []
    assert await store.get("old") is None
    assert await store.logs("old") == []
    assert (await store.get("waiting")).status == "IN_QUEUE"


async def test_a_change_rings_and_looking_does_not(tmp_path):
    rung: list[int] = []
    store = Store(tmp_path, on_change=lambda: rung.append(1))
    await submit(store, "a")
    assert len(rung) == 1
    await store.get("a")
    await store.waiting()
    assert await claimed(store) == "a"
    assert len(rung) == 2
    assert await claimed(store) is None
    assert len(rung) == 2
    await store.close()


async def test_a_folder_has_one_owner(tmp_path):
    store = Store(tmp_path)
    with pytest.raises(StoreError, match="another ltxd already owns"):
        Store(tmp_path)
    await store.close()
    await Store(tmp_path).close()


def submit_for_ever(folder: Path, told) -> None:
    async def go() -> None:
        store = Store(folder)
        for n in range(10_000):
            await store.submit(f"job {n}", b"{}", max_waiting=100_000)
            told.put(n)

    asyncio.run(go())


async def test_what_was_submitted_survives_a_kill(tmp_path):
    context = multiprocessing.get_context("spawn")
    told = context.Queue()
    process = context.Process(target=submit_for_ever, args=(tmp_path, told))
    process.start()
    last = await asyncio.to_thread(lambda: [told.get(timeout=20) for _ in range(20)][-1])
    process.kill()
    await asyncio.to_thread(process.join)
    store = Store(tmp_path)
    for n in range(last + 1):
        assert (await store.get(f"job {n}")).status == "IN_QUEUE"
    await store.close()
