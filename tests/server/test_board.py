"""A status is read once for each change, and never one that is out of date."""

import asyncio
import json
import socket

from server.bell import Bell
from server.board import Board
from server.records import Job, LogLine
from server.serve import _listen


class Counted:
    """A store of one job that counts how often it is read."""

    def __init__(self, *, shared: bool = False) -> None:
        self.shared = shared
        self.status = "IN_QUEUE"
        self.reads = 0
        self.hold = asyncio.Event()
        self.hold.set()

    async def look(self, job_id, *, logs):
        self.reads += 1
        found = job(self.status) if job_id == "job" else None
        await self.hold.wait()
        return found, [LogLine(0.0, "INFO", "hello")] if logs and found else None


def job(status: str) -> Job:
    """A job of nobody."""
    times = {"created": 0.0, "started": None, "finished": None, "inference_seconds": None}
    kept = {"cancel_requested": False, "result": None, "failure": None, "units": 0, "attempts": 0, "position": 0}
    return Job(id="job", key_id=None, status=status, **kept, **times)


async def told(board: Board, *, logs: bool = False, base: str = "http://a") -> dict:
    """What the board says of the job."""
    return json.loads((await board.look("job", logs=logs, base=base)).body)


async def told_status(board: Board) -> str:
    """The one word of it."""
    return (await told(board))["status"]


async def begun() -> None:
    """Lets every task come to where it waits."""
    for _ in range(5):
        await asyncio.sleep(0)


async def test_what_has_not_changed_is_read_once():
    store, bell = Counted(), Bell()
    board = Board(store, bell)
    assert set(await asyncio.gather(*(told_status(board) for _ in range(50)))) == {"IN_QUEUE"}
    assert store.reads == 1
    assert (await told(board))["logs"] is None
    assert [line["message"] for line in (await told(board, logs=True))["logs"]] == ["hello"]
    assert store.reads == 2


async def test_callers_under_two_names_of_the_server_get_links_to_their_own():
    board = Board(Counted(), Bell())
    for base in ("http://a", "https://b", "http://a"):
        assert (await told(board, base=base))["status_url"].startswith(f"{base}/")


async def test_a_status_is_kept_once_however_many_names_the_server_is_called_by():
    board = Board(Counted(), Bell())
    for n in range(100):
        await told(board, base=f"http://{n}.localhost")
    assert len(board._lookups) == 1


async def test_a_change_is_seen_by_the_next_look():
    store, bell = Counted(), Bell()
    board = Board(store, bell)
    assert await told_status(board) == "IN_QUEUE"
    store.status = "COMPLETED"
    bell.ring()
    assert await told_status(board) == "COMPLETED"


async def test_a_look_that_began_before_a_change_is_not_given_to_who_asks_after_it():
    store, bell = Counted(), Bell()
    board = Board(store, bell)
    store.hold.clear()
    before = asyncio.create_task(told_status(board))
    await begun()
    store.status = "COMPLETED"
    bell.ring()
    after = asyncio.create_task(told_status(board))
    await begun()
    store.hold.set()
    assert await before == "IN_QUEUE"
    assert await after == "COMPLETED"


async def test_one_who_goes_away_does_not_take_the_answer_from_the_others():
    store = Counted()
    board = Board(store, Bell())
    store.hold.clear()
    gone, stays = (asyncio.create_task(told_status(board)) for _ in range(2))
    await begun()
    gone.cancel()
    await begun()
    store.hold.set()
    assert await stays == "IN_QUEUE"


async def test_what_does_not_exist_is_not_kept_and_a_shared_database_is_always_read():
    store = Counted()
    board = Board(store, Bell())
    for _ in range(2):
        assert await board.look("no job", logs=False, base="http://a") is None
    assert store.reads == 2
    shared = Counted(shared=True)
    board = Board(shared, Bell())
    for _ in range(2):
        await told(board)
    assert shared.reads == 2


async def test_answers_on_a_kept_connection_are_sent_without_delay():
    seen = asyncio.get_running_loop().create_future()

    async def answer(_reader, writer):
        seen.set_result(writer.get_extra_info("socket").getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY))
        writer.close()

    with _listen("127.0.0.1", 0) as listener:
        async with await asyncio.start_server(answer, sock=listener):
            _, writer = await asyncio.open_connection(*listener.getsockname())
            assert await seen == 1
            writer.close()
            await writer.wait_closed()
