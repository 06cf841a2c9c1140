"""The generating process with its model loaded: started at once, after every death, and with a smaller residency."""

import asyncio
import logging
from dataclasses import dataclass
from typing import Literal

from pipeline.types import RESIDENCIES, LoadedModel
from pipeline.wire import Failed, Ready
from server.child import Child, ChildLostError, Command
from server.metrics import Metrics
from server.settings import Settings

MAX_BACKOFF = 60.0

log = logging.getLogger("ltxd.model")


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
        """The residency that the next process is asked for."""
        self._settings = settings
        self._command = command
        self._stopping = stopping
        self._metrics = metrics
        self._child: Child | None = None
        self._failures = 0

    async def ready(self) -> Child | None:
        """The process with its model loaded; None if it did not come up, after a pause that grows."""
        if self._child is not None and self._child.alive:
            return self._child
        self.state = ModelState("loading")
        try:
            return await self._start()
        except ChildLostError as error:
            told, reason = str(error), error.with_last_line
        except OSError as error:
            told, reason = "cannot be started", f"cannot be started: {error}"
        await self.kill()
        if not self.stopping:
            self._failures += 1
            pause = min(2.0 ** (self._failures - 1), MAX_BACKOFF)
            self.state = ModelState("failed", error=f"the model did not load: the process {told}; the log says more")
            log.error("the model did not load: %s; next try in %g s", reason, pause)
            await self._pause(pause)
        return None

    @property
    def stopping(self) -> bool:
        """Whether no process is started any more."""
        return self._stopping.is_set()

    def smaller_residency(self) -> str | None:
        """The next residency that needs less memory than the loaded one, or None."""
        loaded = self.state.model.residency if self.state.model is not None else self.residency
        later = RESIDENCIES[RESIDENCIES.index(loaded) + 1 :] if loaded in RESIDENCIES else ()
        return later[0] if later else None

    async def kill(self) -> None:
        """Ends the process now."""
        if self._child is not None:
            await self._child.kill()

    async def stop(self) -> None:
        """Lets the process leave."""
        if self._child is not None:
            await self._child.stop()

    async def _start(self) -> Child | None:
        """A new process, once it is ready.

        Raises: ChildLostError, OSError.
        """
        if self._child is not None:
            self._metrics.restarted()
        child = self._child = await Child.start(self._command, residency=self.residency)
        if self.stopping:
            return None
        match await child.next(within=self._settings.load_timeout):
            case Ready(model):
                self._failures = 0
                self.state = ModelState("ready", model)
                log.info(
                    "model ready: %s, recipe %s, on %s, residency %s",
                    model.weights,
                    model.recipe,
                    model.device,
                    model.residency,
                )
                return child
            case Failed() as failure:
                raise ChildLostError(f"said {failure.kind}", detail=failure.message)
            case message:
                raise ChildLostError(f"sent {type(message).__name__} before it was ready")

    async def _pause(self, seconds: float) -> None:
        try:
            async with asyncio.timeout(seconds):
                await self._stopping.wait()
        except TimeoutError:
            return
