"""The generating process with its model loaded: started at once, after every death, and as much smaller as it must be.

A residency belongs to one call of `ready`: what an attempt asked for is gone with the next that asks for nothing.
"""

import asyncio
import logging
import time
from collections import deque
from dataclasses import dataclass
from typing import Literal

from pipeline.types import LoadedModel
from pipeline.wire import Failed, Ready
from server.child import Child, ChildLostError, Command
from server.metrics import Metrics
from server.settings import Settings

MAX_BACKOFF = 60.0
MAX_FAILED_STARTS = 3
FAILED_WITHIN = 300.0

log = logging.getLogger("ltxd.model")


class ModelGivenUpError(Exception):
    """The model did not load, again and again: whoever supervises this program is to know."""


@dataclass(frozen=True, slots=True)
class ModelState:
    """Whether the model can generate; none: this node has none."""

    status: Literal["none", "loading", "ready", "failed"]
    model: LoadedModel | None = None
    error: str | None = None
    """For everyone to read: `/health` needs no key."""


class Model:
    """One generating process at a time. `stopping` ends every wait."""

    def __init__(self, settings: Settings, *, command: Command, stopping: asyncio.Event, metrics: Metrics) -> None:
        self.state = ModelState("loading")
        self.residency: str = settings.residency
        """The residency of a process that nobody asked another one of."""
        self._settings = settings
        self._command = command
        self._stopping = stopping
        self._metrics = metrics
        self._child: Child | None = None
        self._asked = ""
        """The residency that the running process was asked for."""
        self._killed_for = ""
        self._failures = 0
        self._failed_at: deque[float] = deque(maxlen=MAX_FAILED_STARTS)

    async def ready(self, residency: str | None = None) -> Child | None:
        """The process with its model loaded, with `residency` if one is named, or a smaller one if that cannot be had.

        None if it did not come up, after a pause that grows.
        Raises: ModelGivenUpError after three failures within five minutes, with no success between.
        """
        wanted = residency or self.residency
        if self._child is not None and self._child.alive:
            if self._asked == wanted:
                return self._child
            log.info("the process goes: the next has residency %s", wanted)
            await self.kill("residency")
        self.state = ModelState("loading")
        try:
            return await self._start_smaller(wanted)
        except ChildLostError as error:
            told, reason = str(error), error.with_last_line
        except OSError as error:
            told, reason = "cannot be started", f"cannot be started: {error}"
        await self.kill("load")
        if not self.stopping:
            await self._failed(told, reason)
        return None

    @property
    def stopping(self) -> bool:
        """Whether no process is started any more."""
        return self._stopping.is_set()

    def smaller_residency(self) -> str | None:
        """The next residency that needs less memory than the loaded one, or None."""
        return next(iter(self.state.model.smaller), None) if self.state.model is not None else None

    async def kill(self, why: str) -> None:
        """Ends the process now; `why` is what the start of the next one counts as."""
        if self._child is not None:
            self._killed_for = self._killed_for or why
            await self._child.kill()

    async def stop(self) -> None:
        """Lets the process leave."""
        if self._child is not None:
            await self._child.stop()

    async def _start_smaller(self, residency: str) -> Child | None:
        """A new process, once it is ready, with `residency`, or where memory runs out the first smaller that loads.

        Raises: ChildLostError, OSError.
        """
        left: list[str] = []
        while True:
            started = await self._start(residency)
            if not isinstance(started, Failed):
                return started
            if started.kind == "OutOfMemoryError":
                left = list(started.context.get("smaller", left))
            if not left:
                raise ChildLostError(f"said {started.kind}", detail=started.message)
            smaller = left.pop(0)
            log.warning("%s: %s; the next process has residency %s", started.kind, started.message, smaller)
            await self.kill("out of memory")
            if residency == self.residency:
                # why: it is the device that is so, whatever clip comes
                self.residency = smaller
            residency = smaller

    async def _start(self, residency: str) -> Child | Failed | None:
        """A new process, once it is ready, or what it says it failed with; None if none is to be any more.

        Raises: ChildLostError, OSError.
        """
        if self._child is not None:
            self._metrics.restarted(self._killed_for or "died")
        self._asked, self._killed_for = residency, ""
        self._metrics.holds(0)
        child = self._child = await Child.start(self._command, residency=residency)
        if self.stopping:
            return None
        match await child.next(within=self._settings.load_timeout):
            case Ready(model):
                self._failures = 0
                self._failed_at.clear()
                self.state = ModelState("ready", model)
                self._metrics.holds(model.device_bytes)
                log.info(
                    "model ready: %s, recipe %s, on %s, residency %s",
                    model.weights,
                    model.recipe,
                    model.device,
                    model.residency,
                )
                return child
            case Failed() as failure:
                return failure
            case message:
                raise ChildLostError(f"sent {type(message).__name__} before it was ready")

    async def _failed(self, told: str, reason: str) -> None:
        """Tells of a start that failed, and waits before the next.

        Raises: ModelGivenUpError.
        """
        self.state = ModelState("failed", error=f"the model did not load: the process {told}; the log says more")
        now = time.monotonic()
        self._failed_at.append(now)
        if len(self._failed_at) == MAX_FAILED_STARTS and now - self._failed_at[0] <= FAILED_WITHIN:
            raise ModelGivenUpError(
                f"the model did not load {MAX_FAILED_STARTS} times within {FAILED_WITHIN:g} s: the process {reason}"
            )
        self._failures += 1
        pause = min(2.0 ** (self._failures - 1), MAX_BACKOFF)
        log.error("the model did not load: %s; next try in %g s", reason, pause)
        try:
            async with asyncio.timeout(pause):
                await self._stopping.wait()
        except TimeoutError:
            return
