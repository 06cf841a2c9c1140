"""The machine of test_store_machine.py is worth its time: every fault that is put into the store makes it fail.

A mutant is a copy of the code with one text in the place of another. See docs/design/0055.
"""

import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
EXAMPLES, STEPS = 150, 50
TRY = f"""
import sys, tempfile
from pathlib import Path
from tests.server.test_store_machine import on_sqlite, try_hard
with tempfile.TemporaryDirectory(dir=sys.argv[1]) as root:
    try_hard(lambda: on_sqlite(Path(root)), examples={EXAMPLES}, steps={STEPS}, shrink=False)
"""


@dataclass(frozen=True)
class Mutant:
    """In the one place of `file` where `old` stands, `new` stands. `what` is the fault."""

    what: str
    file: str
    old: str
    new: str


STORE, ENDINGS, SWEEPER, ORPHANS = "store.py", "endings.py", "sweeper.py", "orphans.py"
WEBHOOKS, ATTEMPT, UPLOADS, LOOKING, JOBS = "webhooks.py", "attempt.py", "uploads.py", "looking.py", "jobs.py"
DEADLINES, BLOBS = "deadlines.py", "blobs.py"

ROW_THEN_BYTES = """        await self._insist(lambda: self._store.add_file(file), stop)
        await self._insist(lambda: self._tools.blobs.put(file_id, generated.path), stop)
"""
BYTES_THEN_ROW = "".join(reversed(ROW_THEN_BYTES.splitlines(keepends=True)))
BYTES_THEN_FORGET = "        await blobs.delete(file_id)\n        await _drop(store, file_id)\n"
FORGET_THEN_BYTES = "".join(reversed(BYTES_THEN_FORGET.splitlines(keepends=True)))

MUTANTS = [
    Mutant("owner check removed", STORE, "        JOBS.c.owner == claim.owner,\n", ""),
    Mutant("attempt check removed", STORE, "        JOBS.c.attempts == claim.attempt,\n", ""),
    Mutant("all fencing removed", STORE, "        JOBS.c.id == claim.id,\n        JOBS.c.status == \"IN_PROGRESS\",\n"
           "        JOBS.c.owner == claim.owner,\n        JOBS.c.attempts == claim.attempt,\n",
           "        JOBS.c.id == claim.id,\n"),
    Mutant("claims the last first", STORE, "order_by(JOBS.c.priority, JOBS.c.seq)\n            .limit",
           "order_by(JOBS.c.priority, JOBS.c.seq.desc())\n            .limit"),
    Mutant("claims low priority first", STORE, "order_by(JOBS.c.priority, JOBS.c.seq)\n            .limit",
           "order_by(JOBS.c.priority.desc(), JOBS.c.seq)\n            .limit"),
    Mutant("claims whatever the priority", STORE, "order_by(JOBS.c.priority, JOBS.c.seq)\n            .limit",
           "order_by(JOBS.c.seq)\n            .limit"),
    Mutant("claims what is too late", STORE, "JOBS.c.start_by > time.time())\n", "JOBS.c.start_by > 0)\n"),
    Mutant("a job put back may be too late", STORE, "JOBS.c.start_by.is_not(None), JOBS.c.started.is_(None)",
           "JOBS.c.start_by.is_not(None)"),
    Mutant("one attempt too many", ENDINGS, "row.attempts >= min(", "row.attempts > min("),
    Mutant("one attempt too few", ENDINGS, "row.attempts >= min(", "row.attempts + 1 >= min("),
    Mutant("an attempt that does not count counts", STORE,
           "claim.attempt if counted or failure else claim.attempt - 1", "claim.attempt"),
    Mutant("a job to be cancelled goes back", ENDINGS, "    if row.cancel_requested:\n", "    if None:\n"),
    Mutant("lease the wrong way round", STORE, "JOBS.c.lease_until <= self._database.now",
           "JOBS.c.lease_until >= self._database.now"),
    Mutant("a lease never ends", STORE, "JOBS.c.lease_until <= self._database.now",
           "JOBS.c.lease_until <= self._database.now - 9"),
    Mutant("a node takes the job that it does for lost", STORE, "        if but is not None:\n            lapsed",
           "        if None:\n            lapsed"),
    Mutant("a node leaves its job though it does it no more", STORE, "not_(_held(but))", "JOBS.c.id != but.id"),
    Mutant("renewing does nothing", STORE, "            .values(lease_until=self._database.now + lease)\n"
           "            .returning(JOBS.c.cancel_requested)",
           "            .values(lease_until=JOBS.c.lease_until)\n            .returning(JOBS.c.cancel_requested)"),
    Mutant("a start leaves running jobs", STORE, "return _put_back(connection, _RUNNING, max_attempts=max_attempts)",
           "return []"),
    Mutant("a start orphans nobody", STORE, "JOBS.c.orphaned > now).values", "JOBS.c.orphaned < 0).values"),
    Mutant("cancel ends a running job", STORE, 'waits = row.status == "IN_QUEUE"', "waits = True"),
    Mutant("cancel reopens an ended job", STORE,
           '            if row.status == "COMPLETED":\n                return "ALR',
           '            if row.status == "COMPLETE":\n                return "ALR'),
    Mutant("one more may wait", STORE, "    if waiting >= max_waiting:", "    if waiting > max_waiting:"),
    Mutant("bytes are not counted", STORE, "waiting and size + more > max_bytes", "waiting and more > max_bytes"),
    Mutant("a key has one more in flight", STORE, ">= sender.max_in_flight:", "> sender.max_in_flight:"),
    Mutant("a key is held to the jobs of all", STORE, "and_(JOBS.c.key_id == sender.key_id, JOBS.c.status",
           "and_(JOBS.c.status"),
    Mutant("what fails at once passes the limits", STORE,
           "full = _full(connection, 0, max_waiting=max_waiting, max_bytes=max_bytes, sender=sender)", "full = None"),
    Mutant("a webhook is forgotten at the submit", STORE, "    if sender.webhook is not None:\n", "    if None:\n"),
    Mutant("a stranger's key sees a job", JOBS,
           "        job = await self.get(job_id)\n        if job.key_id != key_id:",
           "        job = await self.get(job_id)\n        if None:"),
    Mutant("position counts the job itself", LOOKING, 'JOBS.c.seq < bindparam("seq")',
           'JOBS.c.seq <= bindparam("seq")'),
    Mutant("an expired file is served", LOOKING, "FILES.c.expires > time.time()", "FILES.c.expires > 0"),
    Mutant("the sweeper takes files that live", SWEEPER, "FILES.c.expires <= now)", "FILES.c.expires > 0)"),
    Mutant("the sweeper takes live files alone", SWEEPER, "FILES.c.expires <= now)", "FILES.c.expires >= now)"),
    Mutant("the sweeper forgets rows before bytes", SWEEPER, BYTES_THEN_FORGET, FORGET_THEN_BYTES),
    Mutant("the sweeper leaves the bytes", SWEEPER, "        await blobs.delete(file_id)\n", ""),
    Mutant("the sweeper forgets young jobs", SWEEPER, "JOBS.c.finished <= now - row_retention",
           "JOBS.c.finished <= now"),
    Mutant("the sweeper keeps old jobs", SWEEPER, "JOBS.c.finished <= now - row_retention", "JOBS.c.finished <= 0"),
    Mutant("the sweeper keeps webhooks", SWEEPER,
           "        connection.execute(delete(WEBHOOKS).where(WEBHOOKS.c.job_id.in_(old)))\n", ""),
    Mutant("the sweeper keeps logs", SWEEPER,
           "        connection.execute(delete(LOGS).where(LOGS.c.job_id.in_(old)))\n", ""),
    Mutant("a clip's bytes before its row", ATTEMPT, ROW_THEN_BYTES, BYTES_THEN_ROW),
    Mutant("a clip is not put", ATTEMPT, ROW_THEN_BYTES, ROW_THEN_BYTES.splitlines(keepends=True)[0]),
    Mutant("a clip's address follows from its job", ATTEMPT, "file_id = secrets.token_hex(16)",
           'file_id = self._claim.id.replace("-", "")'),
    Mutant("an upload's bytes before its row", UPLOADS, "        if known is None:\n",
           "        if known is None:\n            await self._blobs.put(slot.file_id, path)\n            shutil.copy("
           "await self._blobs.local(slot.file_id), path)\n"),
    Mutant("an upload takes the place of another", UPLOADS, "elif known.sha256 != blob.sha256:", "elif None:"),
    Mutant("a blob is copied under another name", BLOBS, "return self._root / blob_id[:2] / blob_id\n",
           "return self._root / blob_id[:2] / blob_id[:9]\n"),
    Mutant("any call adopts an orphan", ORPHANS, "        JOBS.c.asked == asked,\n",
           "        JOBS.c.asked.is_not(None),\n"),
    Mutant("the youngest orphan is adopted", ORPHANS, ".order_by(JOBS.c.seq).limit(1)",
           ".order_by(JOBS.c.seq.desc()).limit(1)"),
    Mutant("an orphan takes the place of a job that has begun", ORPHANS,
           ', JOBS.c.status == "IN_QUEUE")', ")"),
    Mutant("an orphan takes the place of a job beside it", ORPHANS, "and_(which, JOBS.c.seen < sel",
           "or_(which, JOBS.c.seen < sel"),
    Mutant("when a caller was seen is not written", ORPHANS, "orphaned=orphaned, seen=seen)", "orphaned=orphaned)"),
    Mutant("a caller who waits is an orphan", ORPHANS, "        JOBS.c.orphaned <= now,\n", ""),
    Mutant("a job to be cancelled is adopted", ORPHANS, "        JOBS.c.cancel_requested == 0,\n", ""),
    Mutant("an orphan is adopted twice", ORPHANS, "values(orphaned=now + ATTENDED_SECONDS, seen=now)",
           "values(orphaned=JOBS.c.orphaned)"),
    Mutant("a caller lost after the end is not found", ORPHANS, "func.coalesce(JOBS.c.finished, now)",
           "now"),
    Mutant("a lost caller's job ends at once", DEADLINES, "JOBS.c.orphaned <= now - orphan_seconds",
           "JOBS.c.orphaned <= now"),
    Mutant("a running orphan is ended under its node", DEADLINES,
           "where(unclaimed, running).values(cancel_requested=1)",
           "where(unclaimed, running).values(ended(failure=CANCELLED))"),
    Mutant("late jobs wait for ever", DEADLINES, "((late(now), NOT_STARTED), ", "((late(0.0), NOT_STARTED), "),
    Mutant("a webhook before the end", WEBHOOKS, 'where(JOBS.c.status == "COMPLETED", WEBHOOKS', "where(WEBHOOKS"),
    Mutant("a claimed webhook is due at once", WEBHOOKS, "next_try=self._database.now + held)",
           "next_try=self._database.now)"),
    Mutant("tries of a webhook are not counted", WEBHOOKS, "values(tries=found.tries + 1, ", "values("),
    Mutant("a late delivery is noted", WEBHOOKS, "WEBHOOKS.c.job_id == due.job_id, WEBHOOKS.c.tries == due.tries)",
           "WEBHOOKS.c.job_id == due.job_id,)"),
    Mutant("a delivered webhook comes again", WEBHOOKS, "next_try = None if wait is None else",
           "next_try = 0.0 if wait is None else"),
    Mutant("a refused webhook is given up", WEBHOOKS, "next_try = None if wait is None else",
           "next_try = None if wait else"),
]  # fmt: skip


@pytest.fixture(scope="module")
def copy(tmp_path_factory):
    folder = tmp_path_factory.mktemp("mutants")
    for name in ("server", "pipeline"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    (folder / "tests/server").mkdir(parents=True)
    for name in ("store_model.py", "test_store_machine.py"):
        shutil.copy(ROOT / "tests/server" / name, folder / "tests/server" / name)
    return folder


def survives(copy: Path) -> bool:
    """Whether the machine finds nothing wrong."""
    environment = {**os.environ, "PYTHONPATH": str(copy), "PYTHONDONTWRITEBYTECODE": "1"}
    memory = "/dev/shm"  # noqa: S108  # where a commit costs nothing
    where = memory if Path(memory).is_dir() else str(copy)
    done = subprocess.run(
        [sys.executable, "-c", TRY, where], cwd=copy, env=environment, capture_output=True, text=True, check=False
    )
    assert "ImportError" not in done.stderr
    assert "SyntaxError" not in done.stderr
    return done.returncode == 0


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_machine_finds_nothing_wrong_with_an_exact_copy(copy):
    assert survives(copy)


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.what)
def test_the_machine_fails_on_a_mutant(copy, mutant):
    path = copy / "server" / mutant.file
    whole = path.read_text()
    assert whole.count(mutant.old) == 1
    path.write_text(whole.replace(mutant.old, mutant.new))
    try:
        assert not survives(copy)
    finally:
        path.write_text(whole)
