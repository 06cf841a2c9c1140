"""The store against a model of it: any order of submits, claims, ends, kills and lost leases, on two nodes."""

import asyncio
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, invariant, rule, run_state_machine_as_test
from sqlalchemy import update

from server.database import Database, open_database
from server.records import Claim
from server.store import Store
from server.tables import JOBS
from server.terms import Terms

MAX_ATTEMPTS = 3
NODES = ("node 0", "node 1")


@dataclass
class Known:
    """What the model knows of a job. `place` is that of its submit."""

    place: int
    priority: int
    status: str = "IN_QUEUE"
    attempts: int = 0
    owner: str | None = None
    cancelled: bool = False
    lapsed: bool = False
    ends: int = 0

    def end(self) -> None:
        self.status, self.owner = "COMPLETED", None
        self.ends += 1

    def give_up(self, *, counted: bool = True) -> None:
        if self.cancelled or (counted and self.attempts >= MAX_ATTEMPTS):
            self.end()
        else:
            self.status, self.owner = "IN_QUEUE", None
            self.attempts -= not counted


class StoreMachine(RuleBasedStateMachine):
    """`open_nodes` opens one database for each node; a database that only one process may open is given once."""

    claims = Bundle("claims")

    def __init__(self, open_nodes: Callable[[], list[Database]]) -> None:
        super().__init__()
        self.open_nodes = open_nodes
        self.runner = asyncio.Runner()
        self.jobs: dict[str, Known] = {}
        self.open()

    def open(self) -> None:
        self.databases = self.open_nodes()
        self.stores = [Store(database) for database in self.databases]

    def teardown(self) -> None:
        for database in self.databases:
            self.runner.run(database.close())
        self.runner.close()

    def store(self, node: int) -> Store:
        return self.stores[node % len(self.stores)]

    def held(self, claim: Claim) -> bool:
        job = self.jobs[claim.id]
        return job.status == "IN_PROGRESS" and (job.owner, job.attempts) == (claim.owner, claim.attempt)

    @rule(node=st.integers(0, 1), priority=st.integers(0, 1))
    def submit(self, node: int, priority: int) -> None:
        name = f"job {len(self.jobs)}"
        done = self.runner.run(self.store(node).submit(name, b"{}", terms=Terms(priority), max_waiting=1000))
        assert done == "accepted"
        self.jobs[name] = Known(len(self.jobs), priority)

    @rule(node=st.integers(0, 1), target=claims)
    def claim(self, node: int) -> Claim | None:
        claim = self.runner.run(self.store(node).claim(NODES[node], lease=600))
        waiting = [(job.priority, job.place, name) for name, job in self.jobs.items() if job.status == "IN_QUEUE"]
        assert (claim and claim.id) == (min(waiting)[2] if waiting else None)
        if claim is not None:
            job = self.jobs[claim.id]
            job.status, job.owner, job.attempts, job.lapsed = "IN_PROGRESS", claim.owner, job.attempts + 1, False
            assert claim.attempt == job.attempts <= MAX_ATTEMPTS
        return claim

    # what was once claimed may be finished again and again, by one that was killed and one that took over
    @rule(node=st.integers(0, 1), claim=claims)
    def finish(self, node: int, claim: Claim | None) -> None:
        if claim is None:
            return
        done = self.runner.run(self.store(node).finish(claim, result={"by": claim.attempt}))
        assert done == self.held(claim)
        if done:
            self.jobs[claim.id].end()

    @rule(node=st.integers(0, 1), claim=claims, counted=st.booleans())
    def release(self, node: int, claim: Claim | None, counted: bool) -> None:
        if claim is None:
            return
        done = self.runner.run(self.store(node).release(claim, max_attempts=MAX_ATTEMPTS, counted=counted))
        assert (done != "lost") == self.held(claim)
        if done != "lost":
            self.jobs[claim.id].give_up(counted=counted)
            assert (done == "waits") == (self.jobs[claim.id].status == "IN_QUEUE")

    @rule(node=st.integers(0, 1), claim=claims)
    def renew(self, node: int, claim: Claim | None) -> None:
        if claim is None:
            return
        standing = self.runner.run(self.store(node).renew(claim, lease=600))
        job = self.jobs[claim.id]
        assert standing == (("cancelled" if job.cancelled else "held") if self.held(claim) else "lost")
        if self.held(claim):
            job.lapsed = False

    @rule(node=st.integers(0, 1), number=st.integers(0, 20))
    def cancel(self, node: int, number: int) -> None:
        name = f"job {number}"
        outcome = self.runner.run(self.store(node).cancel(name))
        job = self.jobs.get(name)
        if job is None:
            assert outcome == "NOT_FOUND"
        elif job.status == "COMPLETED":
            assert outcome == "ALREADY_COMPLETED"
        else:
            assert outcome == "CANCELLATION_REQUESTED"
            if job.status == "IN_QUEUE":
                job.end()
            else:
                job.cancelled = True

    @rule(claim=claims)
    def lose_lease(self, claim: Claim | None) -> None:
        """The node was killed, or cut off: nothing renews its lease, and time goes by."""
        if claim is not None and self.held(claim):
            past = update(JOBS).where(JOBS.c.id == claim.id).values(lease_until=0.0)
            self.runner.run(self.store(0).write(lambda connection: connection.execute(past)))
            self.jobs[claim.id].lapsed = True

    @rule(node=st.integers(0, 1))
    def reclaim(self, node: int) -> None:
        lost = [j for j in self.jobs.values() if j.status == "IN_PROGRESS" and j.lapsed and j.owner != NODES[node]]
        found = self.runner.run(self.store(node).reclaim(max_attempts=MAX_ATTEMPTS, but=NODES[node]))
        assert found == len(lost)
        for job in lost:
            job.give_up()

    @rule()
    def restart(self) -> None:
        """Every node is killed and started again."""
        shared = self.databases[0].shared
        for database in self.databases:
            self.runner.run(database.close())
        self.open()
        if not shared:
            self.runner.run(self.store(0).recover(max_attempts=MAX_ATTEMPTS))
            for job in self.jobs.values():
                if job.status == "IN_PROGRESS":
                    job.give_up()

    @invariant()
    def every_job_is_as_the_model_says_and_ended_at_most_once(self) -> None:
        for name, known in self.jobs.items():
            job = self.runner.run(self.stores[-1].get(name))
            assert (job.status, job.attempts, job.cancel_requested) == (known.status, known.attempts, known.cancelled)
            assert known.ends == (known.status == "COMPLETED")
            if known.status == "IN_QUEUE":
                ahead = [
                    j
                    for j in self.jobs.values()
                    if j.status == "IN_QUEUE" and (j.priority, j.place) < (known.priority, known.place)
                ]
                assert job.position == len(ahead)


def try_hard(open_nodes: Callable[[], Callable[[], list[Database]]], *, examples: int, steps: int) -> None:
    run_state_machine_as_test(
        lambda: StoreMachine(open_nodes()),
        settings=settings(
            max_examples=examples,
            stateful_step_count=steps,
            deadline=None,
            suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
        ),
    )


def sqlite_nodes(root: Path) -> Callable[[], list[Database]]:
    folder = Path(tempfile.mkdtemp(dir=root))
    return lambda: [open_database(folder)]


def postgres_nodes(create: Callable[[], str]) -> Callable[[], list[Database]]:
    url = create()
    return lambda: [open_database(Path(), url=url) for _ in NODES]


def test_sqlite_does_as_the_model_says(tmp_path):
    memory = Path("/dev/shm")  # noqa: S108  # where a commit costs nothing
    with tempfile.TemporaryDirectory(dir=memory if memory.is_dir() else tmp_path) as root:
        try_hard(lambda: sqlite_nodes(Path(root)), examples=12, steps=30)


@pytest.mark.full
def test_two_nodes_on_postgres_do_as_the_model_says(postgres):
    try_hard(lambda: postgres_nodes(postgres), examples=8, steps=25)
