import contextlib
import re
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import httpx2
import pytest
from sqlalchemy import create_engine, select, update

from server.database import open_database
from server.endings import CANCELLED
from server.metrics import Metrics
from server.orphans import Orphans
from server.store import Store
from server.tables import JOBS
from tests.server.test_chaos import ENDPOINT, Node

CALLED = (JOBS.c.id, JOBS.c.status, JOBS.c.http_status)


async def ask(store: Store, job_id: str, asked: str = "digest") -> None:
    assert await store.submit(job_id, b"{}", asked=asked, max_waiting=9)


async def test_a_job_is_adopted_once_and_only_by_an_equal_call(store):
    orphans = Orphans(store)
    await ask(store, "a")
    assert await orphans.adopt("digest") is None
    await orphans.leave("a")
    assert await orphans.adopt("another") is None
    assert await orphans.adopt("digest") == "a"
    assert await orphans.adopt("digest") is None


async def test_of_two_orphans_the_older_is_adopted_first(store):
    orphans = Orphans(store)
    for name in ("a", "b"):
        await ask(store, name)
    for name in ("b", "a"):
        await orphans.leave(name)
    assert [await orphans.adopt("digest") for _ in range(3)] == ["a", "b", None]


@pytest.mark.parametrize(("seconds_ago", "found"), [(590, True), (610, False)])
async def test_an_orphan_that_has_ended_is_remembered_for_ten_minutes(store, seconds_ago, found):
    orphans = Orphans(store)
    await ask(store, "a")
    await store.finish(await store.claim("me"), result={})
    await orphans.leave("a")
    await store.change(lambda c: c.execute(update(JOBS).values(finished=time.time() - seconds_ago, orphaned=1.0)))
    assert (await orphans.adopt("digest") == "a") is found


async def move(store: Store, **times: float) -> None:
    """Sets times of all jobs, in seconds from now."""
    values = {name: time.time() + seconds for name, seconds in times.items()}
    await store.change(lambda connection: connection.execute(update(JOBS).values(**values)))


async def die(store: Store, job_id: str) -> None:
    """The node on which the call waits dies before any later one, and time goes by until that is known."""
    lost = update(JOBS).where(JOBS.c.id == job_id).values(orphaned=time.time() - 1, seen=JOBS.c.created)
    await store.change(lambda connection: connection.execute(lost))


async def test_of_two_equal_calls_at_one_time_the_second_does_not_take_the_job_of_the_first_whose_caller_left(store):
    orphans = Orphans(store)
    for name in ("first", "second"):
        await ask(store, name)
    await orphans.leave("first")
    assert await orphans.adopt("digest", instead_of="second") is None
    assert (await store.get("second")).status == "IN_QUEUE"
    assert await orphans.adopt("digest") == "first"


async def test_a_job_that_ends_for_an_older_one_is_counted(database, tmp_path):
    metrics = Metrics(tmp_path)
    store = Store(database, metrics)
    for name in ("first", "again"):
        await ask(store, name)
    await die(store, "first")
    assert await Orphans(store).adopt("digest", instead_of="again") == "first"
    text = metrics.exposition(waiting=[], running=False, ready=True).decode()
    (count,) = re.findall(rf'^ltx_requests_total{{.*"{CANCELLED.error_type}".*}} (\S+)$', text, re.MULTILINE)
    assert float(count) == 1


async def test_a_call_that_came_again_too_early_gets_its_older_job_once_that_is_an_orphan(store):
    orphans = Orphans(store)
    for name in ("first", "again", "begun"):
        await ask(store, name)
    assert await orphans.adopt("digest", instead_of="again") is None
    await die(store, "first")
    assert await orphans.adopt("digest", instead_of="again") == "first"
    assert (await store.get("again")).failure == CANCELLED
    assert (await store.get("first")).status == "IN_QUEUE"


async def test_an_orphan_takes_no_place_of_a_job_that_has_begun_or_is_older(store):
    orphans = Orphans(store)
    for name in ("older", "orphan", "begun"):
        await ask(store, name)
    await die(store, "orphan")
    assert await orphans.adopt("digest", instead_of="older") is None
    await store.cancel("older")
    for name in ("orphan", "begun"):
        assert (await store.claim("me")).id == name
    assert await orphans.adopt("digest", instead_of="begun") is None
    assert (await store.get("begun")).status == "IN_PROGRESS"
    assert await orphans.adopt("digest") == "orphan"


async def test_a_call_that_no_server_attends_to_any_more_is_an_orphan(store):
    orphans = Orphans(store)
    await ask(store, "a")
    await move(store, orphaned=-1)
    await orphans.attend("a")
    assert await orphans.adopt("digest") is None
    await move(store, orphaned=-1)
    assert await orphans.adopt("digest") == "a"


async def test_a_job_whose_caller_got_the_answer_is_no_orphan_later(store):
    await ask(store, "a")
    await store.finish(await store.claim("me"), result={})
    await move(store, finished=-60, orphaned=-30)
    assert await Orphans(store).adopt("digest") is None


async def test_a_job_whose_caller_was_lost_as_it_ended_is_an_orphan(store):
    await ask(store, "a")
    await store.finish(await store.claim("me"), result={})
    await Orphans(store).leave("a")
    assert await Orphans(store).adopt("digest") == "a"
    assert await Orphans(store).adopt("digest") is None


async def test_a_cancelled_orphan_is_not_adopted(store):
    orphans = Orphans(store)
    for name in ("running", "waiting"):
        await ask(store, name)
    await store.claim("me")
    for name in ("running", "waiting"):
        await orphans.leave(name)
        await store.cancel(name)
    assert await orphans.adopt("digest") is None


async def test_a_job_that_nobody_waits_for_is_never_an_orphan(store):
    await store.submit("a", b"{}", max_waiting=9)
    await Orphans(store).leave("a")
    await store.recover(max_attempts=3)
    assert (await store.read(lambda c: c.scalar(JOBS.select().with_only_columns(JOBS.c.orphaned)))) is None


async def test_callers_find_their_jobs_again_after_the_server_was_started_anew(tmp_path):
    store = Store(open_database(tmp_path))
    for name in ("a", "b"):
        await ask(store, name, asked=name)
    await store.claim("me")
    await store.close()
    store = Store(open_database(tmp_path))
    await store.recover(max_attempts=3)
    assert [await Orphans(store).adopt(name) for name in ("a", "b")] == ["a", "b"]
    await store.close()


@pytest.mark.full
def test_a_call_whose_node_died_finds_its_job_again_on_another_node(
    launch, image, clip, tmp_path, postgres, bucket, monkeypatch
):
    monkeypatch.setattr("server.routes.run.ATTEND_SECONDS", 0.1)
    url = postgres()
    shared = {"database_url": url, "blobs_url": bucket(monkeypatch)}
    environment = {f"LTX_{name.upper()}": value for name, value in shared.items()}
    dying, working = (Node(tmp_path / role, clip, LTX_ROLE=role, **environment) for role in ("api", "worker"))
    engine = create_engine(url.replace("postgresql:", "postgresql+psycopg:"))
    given = {"prompt": "a", "image_url": image}

    def jobs() -> list[tuple[str, str, int | None]]:
        with engine.connect() as connection:
            return [tuple(row) for row in connection.execute(select(*CALLED).order_by(JOBS.c.seq))]

    def wait_until(done: Callable[[], bool]) -> None:
        deadline = time.monotonic() + 30
        while not done():
            assert time.monotonic() < deadline
            time.sleep(0.02)

    with contextlib.ExitStack() as left, ThreadPoolExecutor() as threads, launch(**shared, role="api") as it:
        left.callback(engine.dispose)
        dying.start()
        lost = threads.submit(httpx2.post, f"{dying.url}/{ENDPOINT}", json=given, timeout=60, trust_env=False)
        wait_until(lambda: len(jobs()) == 1)
        dying.kill()
        assert isinstance(lost.exception(), httpx2.HTTPError)
        again = threads.submit(it.run, **given)
        wait_until(lambda: len(jobs()) == 2)
        with engine.begin() as connection:
            # the time goes by after which nobody can have attended to the first call
            connection.execute(update(JOBS).where(JOBS.c.id == jobs()[0][0]).values(orphaned=time.time() - 1))
        wait_until(lambda: jobs()[1][1:] == ("COMPLETED", 499))
        working.start()
        left.callback(working.kill)
        answer = again.result()
        assert answer.status_code == 200, answer.text
        assert answer.headers["x-fal-request-id"] == jobs()[0][0]
        assert jobs()[0][1:] == ("COMPLETED", 200)
