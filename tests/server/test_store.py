import time
from dataclasses import replace

import pytest
from sqlalchemy import func, select, update

from server.errors import plain
from server.records import Claim, Sender, StoredFile
from server.store import MAX_LOG_CHARACTERS, MAX_LOG_LINES, Store
from server.sweeper import sweep
from server.tables import FILES, JOBS, LOGS
from server.terms import Terms

ROOM = 100


async def submit(store: Store, *names: str, priority: int = 0) -> None:
    for name in names:
        assert await store.submit(name, b"{}", terms=Terms(priority), max_waiting=ROOM) == "accepted"


async def claim(store: Store, owner: str = "me", *, lease: float = 60) -> Claim | None:
    return await store.claim(owner, lease=lease)


async def claimed(store: Store) -> str | None:
    it = await claim(store)
    return it and it.id


async def test_jobs_are_claimed_in_their_order_and_low_priority_last(store):
    await submit(store, "low", priority=1)
    await submit(store, "a", "b")
    assert [(await store.get(name)).position for name in ("a", "b", "low")] == [0, 1, 2]
    assert [await claimed(store) for _ in range(4)] == ["a", "b", "low", None]


async def test_a_released_job_goes_back_to_its_old_place(store):
    await submit(store, "a", "b")
    held = await claim(store)
    assert await store.release(held, max_attempts=3) == "waits"
    assert (await store.get("a")).position == 0
    again = await claim(store)
    assert (again.id, again.attempt) == ("a", 2)


async def test_a_job_is_given_up_after_its_last_attempt(store):
    await submit(store, "a")
    became = [await store.release(await claim(store), max_attempts=3) for _ in range(3)]
    job = await store.get("a")
    assert became == ["waits", "waits", job.failure]
    assert job.status == "COMPLETED"
    assert job.failure.status == 500
    assert await claim(store) is None


async def test_an_attempt_that_is_not_counted_costs_nothing(store):
    await submit(store, "a")
    for _ in range(5):
        await store.release(await claim(store), max_attempts=3, counted=False)
    assert (await claim(store)).attempt == 1


async def test_a_job_ends_once_and_only_for_its_holder(store):
    await submit(store, "a")
    held = await claim(store)
    stale = replace(held, attempt=0)
    stranger = replace(held, owner="other")
    assert not await store.finish(stale, result={"x": 1})
    assert not await store.finish(stranger, result={"x": 1})
    assert await store.release(stranger, max_attempts=3) == "lost"
    assert await store.finish(held, result={"x": 2}, seconds=1.5, units=3)
    assert not await store.finish(held, result={"x": 3})
    job = await store.get("a")
    assert (job.result, job.inference_seconds, job.units, job.failure) == ({"x": 2}, 1.5, 3, None)


async def test_a_failure_is_kept_word_for_word(store):
    await submit(store, "a")
    failure = plain("bad_request", "no 日本語")
    await store.finish(await claim(store), failure=failure)
    assert (await store.get("a")).failure == failure


async def test_cancel_ends_a_waiting_job_asks_a_running_one_and_comes_too_late_for_an_ended_one(store):
    await submit(store, "a", "b")
    held = await claim(store)
    assert await store.cancel("b") == "CANCELLATION_REQUESTED"
    assert (await store.get("b")).failure.status == 499
    assert await store.cancel("a") == "CANCELLATION_REQUESTED"
    assert (await store.get("a")).cancel_requested
    await store.release(held, max_attempts=3)
    assert (await store.get("a")).failure.error_type == "client_cancelled"
    assert await store.cancel("a") == "ALREADY_COMPLETED"
    assert await store.cancel("x") == "NOT_FOUND"


async def test_a_full_queue_takes_no_more(store):
    await submit(store, "a")
    assert await store.submit("b", b"{}", max_waiting=1) == "queue full"
    assert await store.get("b") is None


async def test_what_ended_before_it_began_is_held_to_the_same_limits(store):
    no, mine = plain("bad_request", "no"), Sender("mine", max_in_flight=1)
    assert await store.submit_failed("a", no, max_waiting=2) == "accepted"
    assert (await store.get("a")).failure == no
    assert await store.submit("b", b"x" * 10, max_waiting=2, sender=mine) == "accepted"
    assert await store.submit_failed("c", no, max_waiting=1) == "queue full"
    assert await store.submit_failed("c", no, max_waiting=2, max_bytes=9) == "queue too large"
    assert await store.submit_failed("c", no, max_waiting=2, sender=mine) == "too many in flight"
    assert await store.get("c") is None
    assert await store.submit_failed("c", no, max_waiting=2, max_bytes=10) == "accepted"


async def test_a_key_may_have_as_many_jobs_in_flight_as_its_limit(store):
    mine, other = Sender("mine", max_in_flight=2), Sender("other", max_in_flight=1)
    for name, sender in (("a", mine), ("b", mine), ("c", other)):
        assert await store.submit(name, b"{}", max_waiting=9, sender=sender) == "accepted"
    held = await claim(store)
    assert await store.submit("d", b"{}", max_waiting=9, sender=mine) == "too many in flight"
    await store.finish(held, result={})
    assert await store.submit("d", b"{}", max_waiting=9, sender=mine) == "accepted"
    assert (await store.get("d")).key_id == "mine"


async def test_a_queue_that_holds_too_many_bytes_takes_no_more_but_one_job_always_fits(store):
    assert await store.submit("a", b"x" * 20, max_waiting=9, max_bytes=10) == "accepted"
    assert await store.submit("b", b"x", max_waiting=9, max_bytes=10) == "queue too large"
    await claim(store)
    assert await store.submit("b", b"x", max_waiting=9, max_bytes=10) == "accepted"


async def test_jobs_whose_lease_ran_out_wait_again_at_their_place(store):
    await submit(store, "a", "b", "c")
    await claim(store, "dead", lease=-1)
    await claim(store, "alive")
    assert await store.reclaim(max_attempts=3) == 1
    assert await store.reclaim(max_attempts=3) == 0
    assert [await claimed(store) for _ in range(3)] == ["a", "c", None]


async def test_a_node_takes_back_every_job_that_nobody_does_but_not_the_one_that_it_does(store):
    await submit(store, "a", "b")
    lost, held = await claim(store, lease=-1), await claim(store, lease=-1)
    assert await store.reclaim(max_attempts=3, but=held) == 1
    assert await store.standing(lost) == "lost"
    assert await store.standing(held) == "held"
    again = await claim(store, lease=-1)
    assert await store.reclaim(max_attempts=3, but=lost) == 2
    assert await store.standing(again) == "lost"


async def test_a_renewed_lease_holds(store):
    await submit(store, "a")
    held = await claim(store, lease=-1)
    assert await store.renew(held, lease=60) == "held"
    assert await store.reclaim(max_attempts=3) == 0


async def test_a_holder_learns_that_its_job_is_unwanted_or_lost(store):
    await submit(store, "a")
    held = await claim(store, lease=-1)
    assert await store.standing(held) == "held"
    await store.cancel("a")
    assert await store.standing(held) == await store.renew(held, lease=-1) == "cancelled"
    await store.reclaim(max_attempts=3)
    assert await store.standing(held) == await store.renew(held, lease=60) == "lost"
    assert not await store.finish(held, result={})


async def test_recovering_ends_what_was_tried_too_often_and_what_was_cancelled(store):
    await submit(store, "worn", "unwanted", "again")
    for _ in range(3):
        await claim(store)
    await store.cancel("unwanted")
    assert await store.recover(max_attempts=1) == 3
    failure = (await store.get("worn")).failure
    assert failure.status == 500
    assert "tried once" in failure.summary()
    assert (await store.get("unwanted")).failure.status == 499


async def test_only_a_waiting_job_can_be_refused(store):
    await submit(store, "a", "b")
    await claim(store)
    assert not await store.refuse("a", plain("bad_request", "no"))
    assert await store.refuse("b", plain("bad_request", "no"))
    assert (await store.get("b")).failure == plain("bad_request", "no")
    assert await store.next_waiting(5) == []


async def test_log_lines_keep_their_order_and_are_capped(store):
    await submit(store, "many", "long")
    await store.log("many", "line 0")
    # as if most of the lines were written
    await store.write(lambda connection: connection.execute(update(JOBS).values(log_lines=MAX_LOG_LINES - 3)))
    for n in range(5):
        await store.log("many", f"line {n + 1}")
    lines = await store.logs("many")
    assert [line.message for line in lines] == ["line 0", "line 1", "line 2", "line 3"]
    assert [line.message for line in await store.logs("many", after=MAX_LOG_LINES - 1)] == ["line 3"]
    await store.write(lambda connection: connection.execute(update(JOBS).values(log_lines=0)))
    for _ in range(50):
        await store.log("long", "x" * 3000)
    lines = await store.logs("long")
    assert {len(line.message) for line in lines} == {2000}
    assert len(lines) == MAX_LOG_CHARACTERS // 2000
    await store.log("unknown", "x")
    assert await store.logs("unknown") == []


async def test_sweeping_forgets_expired_files_with_their_bytes_and_old_jobs(store, blobs, tmp_path):
    await submit(store, "old", "waiting")
    source = tmp_path / "clip"
    source.write_bytes(b"clip")
    file = StoredFile("f" * 32, "old", "a.mp4", "video/mp4", 4, "0" * 64, time.time(), time.time() - 1)
    await store.add_file(file)
    await blobs.put(file.id, source)
    await store.log("old", "x")
    await store.finish(await claim(store), result={})
    assert await store.file(file.id) is None
    await sweep(store, blobs, row_retention=-1)
    with pytest.raises(FileNotFoundError):
        await blobs.local(file.id)
    assert await store.get("old") is None
    assert await store.logs("old") == []
    assert (await store.get("waiting")).status == "IN_QUEUE"
    counts = [
        await store.read(lambda c, t=table: c.scalar(select(func.count()).select_from(t)))
        for table in (JOBS, LOGS, FILES)
    ]
    assert counts == [1, 0, 0]


async def test_a_file_written_again_takes_the_place_of_the_first(store):
    for size in (1, 2):
        await store.add_file(StoredFile("f" * 32, "a", "a.mp4", "video/mp4", size, "0" * 64, 0.0, time.time() + 60))
    assert (await store.file("f" * 32)).size == 2


async def test_a_change_rings_and_looking_does_not(store, rung):
    await submit(store, "a")
    assert len(rung) == 1
    await store.get("a")
    await store.waiting()
    assert await claimed(store) == "a"
    assert len(rung) == 2
    assert await claimed(store) is None
    assert len(rung) == 2


async def test_the_input_of_a_job_is_forgotten_when_it_ends(store):
    await submit(store, "a")
    held = await store.claim("me")
    assert held.payload == b"{}"
    await store.finish(held, result={})
    assert await store.read(lambda c: c.execute(select(JOBS.c.payload)).scalar_one()) is None
