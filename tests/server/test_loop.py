"""The event loop goes on turning: watched during whole jobs, from submit to the clip that is read."""

import asyncio
import base64
import io
import selectors
import time
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

MOST = 0.050
"""Units: seconds that one turn of the loop may take."""


TRIES = 3


class Watch(selectors.DefaultSelector):
    """The selector of a loop, that measures each turn: from what it woke for until it waits again.

    Not counted is the time for which the system gave the processor to others, so that a busy machine is no failure.
    """

    def __init__(self) -> None:
        super().__init__()
        self.turns: list[float] = []
        self._woke: float | None = None

    def select(self, timeout: float | None = None) -> Any:
        if self._woke is not None:
            self.turns.append(own_time() - self._woke)
        events = super().select(timeout)
        self._woke = own_time()
        return events


def own_time() -> float:
    """A clock that stands still while this thread could run and another one does."""
    waited = int(Path("/proc/thread-self/schedstat").read_text().split()[1])
    return time.monotonic() - waited / 1e9


@pytest.fixture
def watched(launch):
    """A server, and the watch over its loop from the start on."""
    watch = Watch()
    with launch(selector=watch) as server:
        yield server, watch


@pytest.fixture
def noise() -> bytes:
    """A submit with a photo of about ten megabytes, the most that fal takes in a data URI."""
    buffer = io.BytesIO()
    Image.effect_noise((3200, 2400), 100).save(buffer, "PNG")
    uri = "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
    assert 9e6 < len(uri) < 14e6
    return f'{{"prompt": "slow log:hello", "image_url": "{uri}"}}'.encode()


def test_no_turn_of_the_loop_takes_long_during_whole_jobs(watched, noise, image):
    server, watch = watched
    # why: a thread that loses the processor while it holds the interpreter holds the loop too; that is the machine's
    # doing and does not come back, while what the server does wrong comes back every time
    longest = [watch_jobs(server, watch, noise, image)]
    while min(longest) >= MOST and len(longest) < TRIES:
        longest.append(watch_jobs(server, watch, noise, image))
    assert min(longest) < MOST, longest


def watch_jobs(server, watch, noise: bytes, image: str) -> float:
    """The longest turn during two jobs, from submit to the clip that is read."""
    watch.turns.clear()
    path = "/queue/fal-ai/ltx-2.3-quality/image-to-video"
    large = server.http.post(path, content=noise).json()
    small = server.submit(prompt="slow", image_url=image)
    for submitted in (large, small):
        assert "error" not in server.wait(submitted)
        output = server.http.get(submitted["response_url"]).json()
        assert server.http.get(output["video"]["url"]).status_code == 200
    assert len(watch.turns) > 200
    return max(watch.turns)


def test_a_turn_that_takes_long_is_seen_and_waiting_for_the_processor_is_not():
    watch = Watch()
    loop = asyncio.SelectorEventLoop(watch)
    loop.run_until_complete(_hold(0.08))
    assert max(watch.turns) >= MOST
    loop.close()


async def _hold(seconds: float) -> None:
    await asyncio.sleep(0)
    # why: a lock, a disk or a long call of C holds the loop like this
    time.sleep(seconds)  # noqa: ASYNC251 -- what the test is about
    await asyncio.sleep(0)
