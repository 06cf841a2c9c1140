import os
import socket
import subprocess
import sys
import threading
from collections.abc import Generator
from pathlib import Path

import pytest

from pipeline.errors import ContentError, NoRoomError
from pipeline.types import Generated, GenerationRequest, Progress, Size
from pipeline.wire import Cancel, Cancelled, Done, Failed, Generate, Stop, pack, receive
from pipeline.worker import EXIT_FAILED, NICENESS, work

JOB = Generate(
    GenerationRequest(
        prompt="p",
        image=Path("i.png"),
        image_size=Size(64, 64),
        seed=1,
        negative_prompt="",
        size=None,
        num_frames=9,
        fps=24.0,
        steps=8,
        guidance_scale=1.0,
        strength=1.0,
        audio=False,
        expand_prompt=False,
        check_safety=False,
        quality="low",
        write_mode="fast",
    ),
    Path("o.mp4"),
)
MADE = Generated(Path("o.mp4"), "p", 1, Size(8, 8), 9, 24.0, False, {})


class Script:
    """A worker in a thread that makes each clip by the next of `clips`."""

    def __init__(self, *clips, held=lambda: 0) -> None:
        self.ours, theirs = socket.socketpair()
        self.ours.settimeout(10)
        left = list(clips)
        self.status: list[int] = []

        def run() -> None:
            with theirs:
                self.status.append(work(theirs, lambda _job: left.pop(0)(), held=held))

        self.thread = threading.Thread(target=run)
        self.thread.start()

    def send(self, *messages) -> None:
        for message in messages:
            self.ours.sendall(pack(message))

    def end(self) -> int:
        self.thread.join(10)
        self.ours.close()
        return self.status[0]


def short() -> Generator[Progress, None, Generated]:
    yield Progress("denoise", 1, 1)
    return MADE


def test_each_clip_is_made_and_stop_ends_the_work():
    script = Script(short, short)
    for _ in range(2):
        script.send(JOB)
        assert receive(script.ours) == Progress("denoise", 1, 1)
        assert receive(script.ours) == Done(MADE)
    script.send(Stop())
    assert script.end() == 0


def test_every_progress_says_what_is_held_of_the_device():
    script = Script(short, held=lambda: 7)
    script.send(JOB)
    assert receive(script.ours) == Progress("denoise", 1, 1, device_bytes=7)
    assert receive(script.ours) == Done(MADE)
    script.send(Stop())
    assert script.end() == 0


def test_a_cancel_closes_the_generator_after_the_step_it_meets():
    closed = threading.Event()
    go = threading.Event()

    def endless() -> Generator[Progress, None, Generated]:
        try:
            for step in range(10_000):
                yield Progress("denoise", step, 10_000)
                go.wait(10)
        finally:
            closed.set()
        return MADE

    script = Script(endless, short)
    script.send(JOB)
    assert receive(script.ours) == Progress("denoise", 0, 10_000)
    script.send(Cancel())
    go.set()
    steps = 0
    while isinstance(answer := receive(script.ours), Progress):
        steps += 1
    assert answer == Cancelled()
    assert closed.is_set()
    assert steps < 10_000
    script.send(JOB)
    assert receive(script.ours) == Progress("denoise", 1, 1)
    assert receive(script.ours) == Done(MADE)
    script.send(Stop())
    assert script.end() == 0


def test_a_cancel_that_comes_late_does_not_stop_the_next_clip():
    script = Script(short, short)
    script.send(JOB)
    receive(script.ours)
    assert receive(script.ours) == Done(MADE)
    script.send(Cancel(), JOB)
    receive(script.ours)
    assert receive(script.ours) == Done(MADE)
    script.send(Stop())
    assert script.end() == 0


def test_a_callers_error_leaves_the_process_running():
    def refused() -> Generator[Progress, None, Generated]:
        raise ContentError("flagged", field="prompt")
        yield

    script = Script(refused, short)
    script.send(JOB)
    assert receive(script.ours) == Failed("ContentError", "flagged", "prompt", {})
    script.send(JOB)
    receive(script.ours)
    assert receive(script.ours) == Done(MADE)
    script.send(Stop())
    assert script.end() == 0


def test_a_clip_there_is_no_room_for_leaves_the_process_running_and_says_what_would_help():
    def refused() -> Generator[Progress, None, Generated]:
        raise NoRoomError("too large", context={"residency": "stream"})
        yield

    script = Script(refused, short)
    script.send(JOB)
    assert receive(script.ours) == Failed("NoRoomError", "too large", None, {"residency": "stream"})
    script.send(JOB)
    receive(script.ours)
    assert receive(script.ours) == Done(MADE)
    script.send(Stop())
    assert script.end() == 0


def test_any_other_error_ends_the_process_after_it_was_told():
    def broken() -> Generator[Progress, None, Generated]:
        yield Progress("denoise", 1, 8)
        raise RuntimeError("CUDA error: device-side assert triggered")

    script = Script(broken)
    script.send(JOB)
    receive(script.ours)
    assert receive(script.ours) == Failed("RuntimeError", "CUDA error: device-side assert triggered", None, {})
    assert script.end() == EXIT_FAILED


@pytest.fixture
def program(tmp_path):
    """The real program, with nothing to load."""
    ours, theirs = socket.socketpair()
    flags = [f"--fd={theirs.fileno()}", "--recipe=no-such-recipe", f"--models={tmp_path}", "--safety-threshold=0.8"]
    argv = ["-m", "pipeline.worker", *flags]
    with (
        ours,
        subprocess.Popen(
            [sys.executable, *argv],
            pass_fds=[theirs.fileno()],
            cwd=Path(__file__).parents[2],
            stderr=subprocess.DEVNULL,
        ) as process,
    ):
        theirs.close()
        ours.settimeout(120)
        yield process, ours
        process.kill()


def test_a_model_that_does_not_load_is_said_and_ends_the_process(program):
    process, ours = program
    answer = receive(ours)
    assert isinstance(answer, Failed)
    assert answer.kind == "RecipeError"
    assert "no-such-recipe" in answer.message
    assert process.wait(30) == EXIT_FAILED


STEP_BACK = """
import os
from pipeline.worker import AUTOGROUP, protect
protect()
print(os.nice(0), AUTOGROUP.read_text().split()[-1] if AUTOGROUP.exists() else "none")
"""


def test_a_process_steps_back_behind_the_server_and_so_does_its_session():
    command = [sys.executable, "-c", STEP_BACK]
    done = subprocess.run(command, start_new_session=True, capture_output=True, text=True, check=True)
    niceness, of_session = done.stdout.split()
    assert int(niceness) == min(19, os.nice(0) + NICENESS)
    # a kernel that does not weigh sessions has no such file
    assert of_session in (str(NICENESS), "none")
