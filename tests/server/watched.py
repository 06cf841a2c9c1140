"""A watch over the turns of an event loop; as a program, `ltxd serve` under one: python -m tests.server.watched DATA.

It says its port once it answers, and at SIGTERM how many turns there were since then and how long the longest took.
"""

import asyncio
import json
import selectors
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any


def own_time() -> float:
    """A clock that stands still while this thread could run and another one does."""
    waited = int(Path("/proc/thread-self/schedstat").read_text().split()[1])
    return time.monotonic() - waited / 1e9


class Watch(selectors.DefaultSelector):
    """The selector of a loop, that measures each turn: from what it woke for until it waits again.

    Not counted is the time for which the system gave the processor to others, so that a busy machine is no failure;
    with `clock` time.monotonic it is.
    """

    def __init__(self, clock: Callable[[], float] = own_time) -> None:
        super().__init__()
        self.turns: list[float] = []
        self._clock = clock
        self._woke: float | None = None

    def select(self, timeout: float | None = None) -> Any:
        if self._woke is not None:
            self.turns.append(self._clock() - self._woke)
        events = super().select(timeout)
        self._woke = self._clock()
        return events

    def start(self) -> None:
        """Forgets what was, the turn that is being taken too."""
        self._woke = None
        self.turns.clear()


async def main(watch: Watch) -> None:
    from server.__main__ import settle
    from server.child import worker_command
    from server.logs import set_up_logs
    from server.serve import Ports, serve
    from server.settings import Settings

    set_up_logs("auto")
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)

    def on_start(ports: Ports) -> None:
        settle()
        watch.start()
        sys.stdout.write(f"{ports.http}\n")
        sys.stdout.flush()

    settings = Settings(data=Path(sys.argv[1]), port=0, tls_port=0, drain_timeout=0)
    watching = asyncio.create_task(serve(settings, command=worker_command(settings), stop=stop, on_start=on_start))
    await stop.wait()
    # why: the end of the server is no part of a job
    seen = {"turns": len(watch.turns), "longest": max(watch.turns)}
    await watching
    sys.stdout.write(json.dumps(seen) + "\n")


if __name__ == "__main__":
    its_watch = Watch(time.monotonic)
    with asyncio.Runner(loop_factory=lambda: asyncio.SelectorEventLoop(its_watch)) as runner:
        runner.run(main(its_watch))
