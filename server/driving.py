"""One clip, as an attempt has it made: asked of the generating process, followed to its end, tried in less memory."""

import asyncio
import errno
import logging
import time
from collections.abc import Awaitable
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn, Protocol

from pipeline.plan import Plan
from pipeline.types import Generated, GenerationRequest, Progress
from pipeline.wire import Cancel, Cancelled, Done, Failed, Generate
from server.child import Child, ChildLostError
from server.errors import FalError, from_worker, model_failure
from server.metrics import Metrics
from server.model import Model
from server.settings import Settings
from server.silence import allowed_after
from server.stopping import Reason, StoppedError, unless
from server.words import describe, out_of_memory

LOG_SECONDS = 0.5

log = logging.getLogger("ltxd.attempt")


class Tell(Protocol):
    """Adds a line to the job's log."""

    def __call__(self, message: str, *, level: str = "INFO") -> Awaitable[None]:
        """Adds it, if that can be done."""


@dataclass(frozen=True, slots=True)
class Clip:
    """A clip to be made into the file `output`, unless there is a reason to `stop`."""

    request: GenerationRequest
    plan: Plan
    output: Path
    stop: asyncio.Task[Reason]
    settings: Settings
    model: Model
    metrics: Metrics
    tell: Tell

    async def make(self, child: Child) -> Generated:
        """The clip, made by `child`; where the device has too little memory, once more by one that keeps less on it.

        Raises: StoppedError, FalError, ChildLostError, OSError.
        """
        first = await self._follow(child)
        if isinstance(first, Generated):
            return first
        if ran_out := first.kind == "OutOfMemoryError":
            await self.model.kill("out of memory")
        smaller = self.model.smaller_residency() if ran_out else str(first.context["residency"])
        if smaller is None:
            raise FalError(out_of_memory(self.plan, first, tried=None))
        log.warning("%s; tried again with residency %s", first.message, smaller)
        self.metrics.retried("out of memory" if ran_out else "no room")
        short = "The device ran out of memory" if ran_out else "The device has too little memory as it is loaded"
        await self.tell(f"{short}: tried again with residency {smaller}", level="WARN")
        again = await unless(self.stop, self.model.ready(smaller))
        if again is None:
            if self.model.stopping:
                raise StoppedError("handed back")
            raise ChildLostError(f"did not come up with residency {smaller}")
        second = await self._follow(again)
        if isinstance(second, Generated):
            if ran_out:
                # why: the reckoning was wrong for this device, and would be for the next such clip
                self.model.residency = smaller
            return second
        raise FalError(out_of_memory(self.plan, second, tried=smaller))

    async def _follow(self, child: Child) -> Generated | Failed:
        """The clip that `child` makes; or how it failed, if less of the model on the device may help.

        Raises: StoppedError, FalError, ChildLostError, OSError.
        """
        if (model := self.model.state.model) is not None:
            await self.tell(f"Generating with {model.weights} on {model.device}")
        child.send(Generate(self.request, self.output))
        asked = asyncio.create_task(self._pass_on_stop(child))
        last: Progress | None = None
        logged = stepped = 0.0
        try:
            while True:
                match await child.next(within=allowed_after(last, self.settings)):
                    case Progress() as progress:
                        new_stage = last is None or progress.stage != last.stage
                        if not new_stage and progress.stage == "denoise":
                            self.metrics.step(time.monotonic() - stepped)
                        self.metrics.holds(progress.device_bytes)
                        stepped = time.monotonic()
                        last = progress
                        if progress.message:
                            await self.tell(progress.message)
                        elif new_stage or time.monotonic() - logged >= LOG_SECONDS:
                            logged = time.monotonic()
                            await self.tell(describe(progress))
                    case Done(generated) if generated.path == self.output:
                        return generated
                    case Cancelled():
                        raise StoppedError(await self.stop)
                    case Failed(kind="OutOfMemoryError" | "NoRoomError") as failure:
                        return failure
                    case Failed(field=None) as failure:
                        await self._failed(failure)
                    case Failed() as failure:
                        raise FalError(from_worker(failure))
                    case message:
                        raise ChildLostError(f"sent {type(message).__name__} out of turn")
        except ChildLostError:
            if self.stop.done():
                # why: one that is only slow would go on with this clip while the next job waits for its own
                await self.model.kill("silent")
                raise StoppedError(self.stop.result()) from None
            raise
        finally:
            asked.cancel()

    async def _pass_on_stop(self, child: Child) -> None:
        """Tells the process to stop once there is a reason."""
        reason = await asyncio.shield(self.stop)
        if reason == "handed back":
            await child.kill()
        else:
            child.send(Cancel())

    async def _failed(self, failure: Failed) -> NoReturn:
        """Sorts what went wrong in the process through no fault of the caller.

        Raises: FalError, ChildLostError, OSError.
        """
        log.error("%s: %s", failure.kind, failure.message)
        if failure.kind == "StorageError":
            raise OSError(errno.ENOSPC, failure.message)
        await self.model.kill("failed")
        if failure.kind == "NumericalError":
            # why: the seed is fixed, so it would come again
            raise FalError(model_failure("internal_server_error", failure.message))
        if failure.kind == "GenerationError":
            raise FalError(from_worker(failure))
        raise ChildLostError(f"failed with {failure.kind}", detail=failure.message)
