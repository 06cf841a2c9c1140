"""The store against a model of it: any order of what callers ask, nodes do and time brings, with kills in between.

What the product does is done by its own code: attempts, uploads, the sweeper, webhooks, orphans, deadlines. Time is
moved by writing to the rows what a clock would have made of them.
"""

import asyncio
import base64
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import obstore
import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test
from sqlalchemy import select, update

from server.blobs import LocalBlobs
from server.bucket import BucketBlobs
from server.database import open_database
from server.deadlines import _end_due
from server.errors import FalError, plain
from server.jobs import JobNotFoundError, freeze
from server.records import Claim, Sender, WebhookTarget
from server.schema import ImageToVideoInput
from server.sweeper import sweep
from server.tables import FILES, JOBS, LOGS, WEBHOOKS
from server.terms import Terms
from server.uploads import new_slot
from server.webhooks import Due
from tests.server.store_model import CLIP, MAX_ATTEMPTS, Death, Hook, KnownFile, KnownJob, Place

NODES = ("node 0", "node 1")
LIMITS = {"careful": 2, "free": None, None: None}
"""The keys, and nobody's, with the jobs each may have in flight."""
MAX_WAITING = (3, 9)  # in turn, so that now this limit and now that of bytes is met first
PAYLOAD = freeze(ImageToVideoInput(prompt="a", image_url="data:,x", seed=1, sync_mode=True))
PAGE = 60.0
RETENTION = 3600.0
NO = plain("bad_request", "no")

node = st.integers(0, 1)
one_of = st.integers(0, 30)
key = st.sampled_from(list(LIMITS))
hooked = st.sampled_from([False, False, True])


class StoreMachine(RuleBasedStateMachine):
    def __init__(self, place: Place) -> None:
        super().__init__()
        self.place = place
        self.runner = asyncio.Runner()
        self.run = self.runner.run
        self.jobs: dict[str, KnownJob] = {}
        self.files: dict[str, KnownFile] = {}
        self.slots = [new_slot("a", "image/png", key_id=None, keep_for=None) for _ in range(3)]
        self.claims: list[Claim] = []
        self.deliveries: list[Due] = []
        self.submits = self.clock = self.seen = 0
        self.nodes = place.nodes(NODES)

    def teardown(self) -> None:
        for it in self.nodes:
            self.run(it.database.close())
        self.runner.close()

    def at(self, number: int):
        return self.nodes[number % len(self.nodes)]

    def held(self, claim: Claim) -> bool:
        job = self.jobs.get(claim.id)
        mine = (claim.owner, claim.attempt)
        return job is not None and job.status == "IN_PROGRESS" and (job.owner, job.attempts) == mine

    def pick(self, number: int, *, held: bool) -> Claim | None:
        """One of the claims that are held, or of those that came too late, those first whose job is another's now."""
        fitting = [claim for claim in self.claims if self.held(claim) is held]
        taken = [claim for claim in fitting if not held and self.running(claim.id)]
        fitting = taken or fitting
        return fitting[number % len(fitting)] if fitting else None

    def running(self, name: str) -> bool:
        return name in self.jobs and self.jobs[name].status == "IN_PROGRESS"

    def job(self, number: int) -> tuple[str, KnownJob | None]:
        names = [*self.jobs, "unknown"]
        return names[number % len(names)], self.jobs.get(names[number % len(names)])

    def write(self, statement) -> None:
        self.run(self.nodes[0].store.write(lambda connection: connection.execute(statement)))

    # -- what callers ask

    def take(self, outcome: str, name: str, job: KnownJob) -> None:
        """Holds the outcome of a submit against the limits."""
        waiting = [other.size for other in self.jobs.values() if other.status == "IN_QUEUE"]
        limit = LIMITS[job.key]
        busy = sum(other.key == job.key and other.status != "COMPLETED" for other in self.jobs.values())
        if len(waiting) >= MAX_WAITING[self.submits % 2]:
            assert outcome == "queue full"
        elif waiting and sum(waiting) + job.size > 4 * len(PAYLOAD):
            assert outcome == "queue too large"
        elif limit is not None and busy >= limit:
            assert outcome == "too many in flight"
        else:
            assert outcome == "accepted"
            self.jobs[name] = job

    def tick(self) -> int:
        self.seen += 1
        return self.seen

    def sender(self, key: str | None, hooked: bool) -> Sender:
        target = WebhookTarget("http://receiver.example/", "http://me", private=False) if hooked else None
        return Sender(key, LIMITS[key], target)

    def limits(self, key: str | None, hooked: bool) -> dict:
        bounds = {"max_waiting": MAX_WAITING[self.submits % 2], "max_bytes": 4 * len(PAYLOAD)}
        return {"sender": self.sender(key, hooked), **bounds}

    @initialize(priorities=st.lists(st.integers(0, 1), min_size=1, max_size=5))
    def submit_some(self, priorities: list[int]) -> None:
        for priority in priorities:
            self.submit(0, "free", priority, False, "x", True)
        self.submit_what_is_wrong(0, "free", True)

    @rule(node=node, key=key, priority=st.integers(0, 1), hooked=hooked, asked=st.sampled_from([None, "x", "y"]),
          bounded=st.booleans())  # fmt: skip
    def submit(
        self, node: int, key: str | None, priority: int, hooked: bool, asked: str | None, bounded: bool
    ) -> None:
        name = f"job {self.submits}"
        job = KnownJob(self.submits, priority, key, len(PAYLOAD), Hook() if hooked else None, asked)
        job.created = job.seen = self.tick()
        job.call, job.must_begin = asked and "attended", "by then" if bounded else "some day"
        terms = Terms(priority, start_within=1000.0 if bounded else None)
        store = self.at(node).store
        self.take(
            self.run(store.submit(name, PAYLOAD, terms=terms, asked=asked, **self.limits(key, hooked))), name, job
        )
        self.submits += 1

    @rule(node=node, key=key, hooked=hooked)
    def submit_what_is_wrong(self, node: int, key: str | None, hooked: bool) -> None:
        name = f"job {self.submits}"
        job = KnownJob(self.submits, 0, key, 0, Hook() if hooked else None, begun=True)
        self.take(self.run(self.at(node).store.submit_failed(name, NO, **self.limits(key, hooked))), name, job)
        if name in self.jobs:
            job.end(NO.status)
            self.run(self.at(node).store.log(name, "wrong"))
        self.submits += 1

    @rule(node=node, number=one_of)
    def cancel(self, node: int, number: int) -> None:
        name, job = self.job(number)
        outcome = self.run(self.at(node).store.cancel(name))
        if job is None:
            assert outcome == "NOT_FOUND"
        elif job.status == "COMPLETED":
            assert outcome == "ALREADY_COMPLETED"
        else:
            assert outcome == "CANCELLATION_REQUESTED"
            if job.status == "IN_QUEUE":
                job.end(499)
            else:
                job.cancelled = True

    @rule(node=node, number=one_of, stays=st.booleans())
    def wait_on(self, node: int, number: int, stays: bool) -> None:
        """A caller who waits is seen to, or is gone."""
        name, job = self.job(number)
        orphans = self.at(node).orphans
        self.run(orphans.attend(name) if stays else orphans.leave(name))
        if job is not None and job.call is not None:
            job.call, job.seen = "attended" if stays else "lost", self.tick()

    @rule(node=node, asked=st.sampled_from(["x", "y", "z"]), number=st.none() | one_of)
    def adopt(self, node: int, asked: str, number: int | None) -> None:
        """An equal call comes: for the first time, or it waits for its own job already."""
        own, job = (None, None) if number is None else self.job(number)
        before = self.tick() if own is None else 0 if job is None else job.created
        orphans = [
            (orphan.place, name)
            for name, orphan in self.jobs.items()
            if orphan.asked == asked and orphan.adoptable and orphan.seen < before
        ]
        _, oldest = min(orphans, default=(0, None))
        if own is not None and (job is None or job.status != "IN_QUEUE"):
            oldest = None
        assert self.run(self.at(node).orphans.adopt(asked, instead_of=own)) == oldest
        if oldest is not None:
            self.jobs[oldest].call, self.jobs[oldest].seen = "attended", self.tick()
            if job is not None:
                job.end(499)

    @rule(node=node, number=one_of, other=st.booleans(), dies=st.sampled_from([None, "before put", "after put"]))
    def upload(self, node: int, number: int, other: bool, dies: Death | None) -> None:
        slot = self.slots[number % len(self.slots)]
        it, known = self.at(node), self.files.get(slot.file_id)
        live = known is not None and known.expired is None
        content = b"others" if other and live else slot.file_id.encode()

        async def body():
            yield content

        with it.dying(dies):
            try:
                self.run(it.uploads.put(slot, body()))
            except FalError:
                assert live
                assert content == b"others"
                return
        assert content != b"others"
        if not live:
            known = self.files[slot.file_id] = KnownFile(content, has_bytes=known is not None and known.has_bytes)
        known.has_bytes |= dies != "before put"

    # -- what nodes do

    @rule(node=node)
    def claim(self, node: int) -> None:
        claim = self.run(self.at(node).store.claim(NODES[node], lease=600))
        ready = [(j.priority, j.place, name) for name, j in self.jobs.items() if j.status == "IN_QUEUE" and not j.late]
        assert (claim and claim.id) == (min(ready)[2] if ready else None)
        if claim is not None:
            job = self.jobs[claim.id]
            job.status, job.owner, job.attempts = "IN_PROGRESS", claim.owner, job.attempts + 1
            job.lapsed, job.begun = False, True
            assert claim.attempt == job.attempts <= MAX_ATTEMPTS
            self.claims.append(claim)

    @rule(node=node, number=one_of, held=st.booleans(),
          dies=st.sampled_from([None, None, "before put", "after put"]))  # fmt: skip
    def make_the_clip(self, node: int, number: int, held: bool, dies: Death | None) -> None:
        claim = self.pick(number, held=held)
        if claim is None:
            return
        it = self.at(node)
        with it.dying(dies):
            self.run(it.attempt(claim))
        [made] = self.rows(FILES.c.id) - self.files.keys()
        self.files[made] = KnownFile(CLIP, has_bytes=dies != "before put")
        if held and dies is None:
            self.jobs[claim.id].end(200)
            self.jobs[claim.id].file = made

    @rule(node=node, number=one_of, held=st.booleans())
    def fail(self, node: int, number: int, held: bool) -> None:
        if (claim := self.pick(number, held=held)) is not None:
            assert self.run(self.at(node).store.finish(claim, failure=NO)) is held
            if held:
                self.jobs[claim.id].end(NO.status)

    @rule(node=node, number=one_of, held=st.booleans(), counted=st.booleans())
    def release(self, node: int, number: int, held: bool, counted: bool) -> None:
        if (claim := self.pick(number, held=held)) is None:
            return
        became = self.run(self.at(node).store.release(claim, max_attempts=MAX_ATTEMPTS, counted=counted))
        assert (became != "lost") is held
        if held:
            self.jobs[claim.id].give_up(counted=counted)
            assert (became == "waits") == (self.jobs[claim.id].status == "IN_QUEUE")

    @rule(node=node, number=one_of, counted=st.booleans(), long=st.booleans())
    def change_hands(self, node: int, number: int, counted: bool, long: bool) -> None:
        """A node gives its job up, and one takes the next, at once or later: often the same job, or the same node."""
        held = self.pick(number, held=True)
        self.release(node, number, True, counted)
        if held is not None and long:
            self.age(held.id)
        self.claim(node)

    @rule(node=node, number=one_of, held=st.booleans())
    def renew(self, node: int, number: int, held: bool) -> None:
        if (claim := self.pick(number, held=held)) is None:
            return
        job, store = self.jobs.get(claim.id), self.at(node).store
        standing = "lost" if not held else "cancelled" if job.cancelled else "held"
        assert self.run(store.standing(claim)) == self.run(store.renew(claim, lease=600)) == standing
        if held:
            job.lapsed = False

    @rule(node=node, number=st.none() | one_of, held=st.booleans())
    def reclaim(self, node: int, number: int | None, held: bool) -> None:
        """A node that does a job, or none, or thinks that it does one."""
        but = None if number is None else self.pick(number, held=held)
        lost = [
            job
            for name, job in self.jobs.items()
            if job.status == "IN_PROGRESS" and job.lapsed and not (held and but and but.id == name)
        ]
        assert self.run(self.at(node).store.reclaim(max_attempts=MAX_ATTEMPTS, but=but)) == len(lost)
        for job in lost:
            job.give_up()

    @rule(node=node, dies=st.sampled_from([None, None, "before delete", "after delete"]))
    def sweep(self, node: int, dies: Death | None) -> None:
        it = self.at(node)
        with it.dying(dies):
            self.run(sweep(it.store, it.blobs, row_retention=RETENTION))
        expired = sorted((f.expired, file_id) for file_id, f in self.files.items() if f.expired is not None)
        if expired and dies is not None:
            self.files[expired[0][1]].has_bytes &= dies != "after delete"
            return
        for _, file_id in expired:
            del self.files[file_id]
        self.jobs = {name: job for name, job in self.jobs.items() if not job.old}

    @rule(node=node)
    def end_what_is_due(self, node: int) -> None:
        self.run(self.at(node).store.change(lambda connection: _end_due(connection, PAGE)))
        for job in self.jobs.values():
            if job.late:
                job.end(504)
            elif job.call == "long lost" and job.status == "IN_QUEUE":
                job.end(499)
            elif job.call == "long lost" and job.status == "IN_PROGRESS":
                job.cancelled = True

    @rule(node=node)
    def take_a_webhook(self, node: int) -> None:
        due = self.run(self.at(node).webhooks.claim())
        ready = {n for n, j in self.jobs.items() if j.hook and j.hook.state == "due" and j.status == "COMPLETED"}
        assert (due.job_id in ready) if due is not None else not ready
        if due is not None:
            hook = self.jobs[due.job_id].hook
            hook.state, hook.tries = "waits", hook.tries + 1
            assert due.tries == hook.tries
            self.deliveries.append(due)

    @rule(node=node, taken=st.booleans(), late=st.booleans())
    def take_and_deliver(self, node: int, taken: bool, late: bool) -> None:
        """A webhook's whole turn; or its time was over by then, and another delivers it before."""
        self.take_a_webhook(node)
        if not self.deliveries:
            return
        last = len(self.deliveries) - 1
        if late:
            if self.deliveries[last].job_id in self.jobs:
                self.age(self.deliveries[last].job_id)
            self.take_a_webhook(node)
        self.deliver(node, last, taken)
        self.take_a_webhook(node)

    @rule(node=node, number=one_of, taken=st.booleans())
    def deliver(self, node: int, number: int, taken: bool) -> None:
        """A webhook that was claimed, by one that is in time or long overdue."""
        if not self.deliveries:
            return
        due, it = self.deliveries.pop(number % len(self.deliveries)), self.at(node)
        it.receiver.status = 200 if taken else 500
        self.run(it.webhooks.deliver(due))
        job = self.jobs.get(due.job_id)
        if job is None or job.hook.tries != due.tries:
            return
        file = self.files.get(job.file)
        expired = job.file is not None and (file is None or file.expired is not None)
        job.hook.state = "done" if taken or expired else "waits"

    # -- what time and misfortune bring

    @rule(node=node, number=one_of, then=st.sampled_from([None, "renewed", "looked for", "done on"]))
    def lose_lease(self, node: int, number: int, then: str | None) -> None:
        """The node was killed, or cut off: nothing renews its lease, and time goes by; or it does so just in time.

        Then the leases are looked at, by one who thinks that he does some job, or by the node that does this one.
        """
        if (claim := self.pick(number, held=True)) is not None:
            self.write(update(JOBS).where(JOBS.c.id == claim.id).values(lease_until=time.time() - 1))
            self.jobs[claim.id].lapsed = True
            if then == "renewed":
                self.renew(node, number, True)
            elif then is not None:
                self.reclaim(node, number, then == "done on")

    @rule(number=one_of)
    def wait_long(self, number: int) -> None:
        """For one job, an hour goes by."""
        name, job = self.job(number)
        if job is not None:
            self.age(name)

    def age(self, name: str) -> None:
        job = self.jobs[name]
        past = time.time() - RETENTION - 1
        mine = update(JOBS).where(JOBS.c.id == name)
        if job.must_begin != "some day":
            self.write(mine.values(start_by=past))
            job.must_begin = "too late"
        if job.status == "COMPLETED":
            self.write(mine.values(finished=past))
            job.old = True
        elif job.call is not None:
            self.write(mine.values(orphaned=past, seen=past))
            job.call, job.seen = "long lost", 0
        if job.hook is not None and job.hook.state == "waits":
            self.write(update(WEBHOOKS).where(WEBHOOKS.c.job_id == name).values(next_try=0.0))
            job.hook.state = "due"

    @rule(number=one_of)
    def expire(self, number: int) -> None:
        if live := [file_id for file_id, file in self.files.items() if file.expired is None]:
            file_id = live[number % len(live)]
            self.clock += 1
            self.write(update(FILES).where(FILES.c.id == file_id).values(expires=float(self.clock)))
            self.files[file_id].expired = self.clock

    @rule()
    def restart(self) -> None:
        """Every node is killed and started again."""
        shared = self.nodes[0].database.shared
        for it in self.nodes:
            self.run(it.database.close())
        self.nodes = self.place.nodes(NODES)
        if shared:
            return
        running = [job for job in self.jobs.values() if job.status == "IN_PROGRESS"]
        assert self.run(self.nodes[0].store.recover(max_attempts=MAX_ATTEMPTS)) == len(running)
        for job in self.jobs.values():
            if job.status != "COMPLETED" and job.call == "attended":
                job.call = "lost"
        for job in running:
            job.give_up()

    # -- what must hold

    def rows(self, column) -> set[str]:
        return set(self.run(self.nodes[0].store.read(lambda c: c.scalars(select(column)).all())))

    @invariant()
    def every_job_is_as_the_model_says_and_its_key_alone_sees_it(self) -> None:
        assert self.rows(JOBS.c.id) == self.jobs.keys()
        for name, known in self.jobs.items():
            job = self.run(self.nodes[-1].jobs.own(name, known.key))
            assert (job.status, job.attempts, job.cancel_requested) == (known.status, known.attempts, known.cancelled)
            code = None if job.status != "COMPLETED" else job.failure.status if job.failure else 200
            assert code == known.code
            ahead = [j for j in self.jobs.values()
                     if j.status == "IN_QUEUE" and (j.priority, j.place) < (known.priority, known.place)]  # fmt: skip
            assert job.position == (len(ahead) if known.status == "IN_QUEUE" else 0)
            stranger = next(key for key in LIMITS if key != known.key)
            with pytest.raises(JobNotFoundError):
                self.run(self.nodes[-1].jobs.own(name, stranger))

    @invariant()
    def leases_and_calls_are_kept_or_lost_as_the_model_says(self) -> None:
        query = select(JOBS.c.id, JOBS.c.lease_until, JOBS.c.orphaned).where(JOBS.c.status != "COMPLETED")
        for name, lease, orphaned in self.run(self.nodes[0].store.read(lambda c: c.execute(query).all())):
            job = self.jobs[name]
            assert (lease is not None) == (job.status == "IN_PROGRESS")
            assert lease is None or (lease < time.time()) == job.lapsed
            assert (orphaned is not None) == (job.call is not None)
            assert orphaned is None or (orphaned > time.time()) == (job.call == "attended")

    @invariant()
    def every_result_and_every_file_is_there_until_it_expires(self) -> None:
        it = self.nodes[-1]
        for file_id, known in self.files.items():
            there = known.has_bytes and known.expired is None
            assert self.run(it.jobs.file(file_id, max_bytes=1000)) == (known.content if there else None)
        for name, known in self.jobs.items():
            if known.file is None:
                continue
            file, job = self.files.get(known.file), self.run(it.jobs.get(name))
            if file is None or file.expired is not None:
                with pytest.raises(FalError, match="expired"):
                    self.run(it.jobs.output(job, origin=""))
            else:
                url = self.run(it.jobs.output(job, origin=""))["video"]["url"]
                assert base64.b64decode(url.partition(",")[2]) == CLIP

    @invariant()
    def nothing_lies_about_that_no_row_leads_to(self) -> None:
        assert self.rows(FILES.c.id) == self.files.keys()
        assert self.place.blob_ids() == {file_id for file_id, file in self.files.items() if file.has_bytes}
        assert self.rows(LOGS.c.job_id) <= self.jobs.keys()
        hooks = self.run(self.nodes[0].store.read(lambda c: c.execute(select(WEBHOOKS)).all()))
        left = {row.job_id: (row.tries, row.next_try is None) for row in hooks}
        assert left == {n: (j.hook.tries, j.hook.state == "done") for n, j in self.jobs.items() if j.hook}


def try_hard(make: Callable[[], Place], *, examples: int, steps: int, shrink: bool = True) -> None:
    run_state_machine_as_test(
        lambda: StoreMachine(make()),
        settings=settings(
            max_examples=examples,
            stateful_step_count=steps,
            deadline=None,
            database=None,
            report_multiple_bugs=shrink,
            phases=[Phase.generate, Phase.shrink] if shrink else [Phase.generate],
            suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
        ),
    )


def on_sqlite(root: Path) -> Place:
    folder = Path(tempfile.mkdtemp(dir=root))
    blobs = folder / "blobs"
    return Place(
        folder,
        lambda: [(open_database(folder), LocalBlobs(blobs))],
        lambda: {path.name for path in blobs.rglob("*") if path.is_file()},
    )


@pytest.fixture
def fast(tmp_path):
    """A folder where a commit costs nothing, if the machine has one."""
    memory = Path("/dev/shm")  # noqa: S108
    with tempfile.TemporaryDirectory(dir=memory if memory.is_dir() else tmp_path) as root:
        yield Path(root)


@pytest.fixture
def on_postgres(fast, postgres, bucket, monkeypatch):
    def make() -> Place:
        folder = Path(tempfile.mkdtemp(dir=fast))
        url, files = postgres(), bucket(monkeypatch)
        blobs = [BucketBlobs(files, cache=folder / f"{name} cache") for name in NODES]
        return Place(
            folder,
            lambda: [(open_database(folder, url=url), it) for it in blobs],
            lambda: {Path(found["path"]).name for page in obstore.list(blobs[0]._store) for found in page},
        )

    return make


def test_sqlite_and_a_folder_do_as_the_model_says(fast):
    try_hard(lambda: on_sqlite(fast), examples=15, steps=30)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_sqlite_and_a_folder_do_as_the_model_says_at_length(fast):
    try_hard(lambda: on_sqlite(fast), examples=400, steps=80)


@pytest.mark.full
@pytest.mark.timeout(900)
def test_two_nodes_on_postgres_and_a_bucket_do_as_the_model_says(on_postgres):
    try_hard(on_postgres, examples=5, steps=25)


@pytest.mark.slow
@pytest.mark.full
@pytest.mark.timeout(1800)
def test_two_nodes_on_postgres_and_a_bucket_do_as_the_model_says_at_length(on_postgres):
    try_hard(on_postgres, examples=60, steps=60)
