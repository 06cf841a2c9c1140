"""One attempt at a job: its image fetched, the clip made by the generating process, the file kept, the end written.

Whatever the database does meanwhile, the clip goes on; what must be written is written once the database is back.
"""

import asyncio
import contextlib
import errno
import logging
import secrets
import time
from collections.abc import Awaitable, Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal, NoReturn, TypeVar

from opentelemetry import trace
from structlog.contextvars import bound_contextvars

from pipeline.errors import CallerError
from pipeline.plan import Plan, make_plan
from pipeline.recipe import Recipe
from pipeline.types import Generated, GenerationRequest, Progress
from pipeline.wire import Cancel, Cancelled, Done, Failed, Generate, failed
from server.bell import Bell
from server.blobs import Blobs, BlobsUnavailableError, digest
from server.child import Child, ChildLostError, ChildSilentError
from server.database import StoreUnavailableError
from server.endings import CANCELLED
from server.errors import Failure, FalError, from_worker, model_failure, plain, with_inputs
from server.metrics import Metrics, outcome_of
from server.model import Model
from server.records import Claim, StoredFile
from server.schema import ImageToVideoInput
from server.settings import Settings
from server.silence import allowed_after
from server.start_images import StartImages
from server.store import Store
from server.tracing import record_job
from server.words import describe, out_of_memory, to_request

RECHECK_SECONDS = 1.0
LOG_SECONDS = 0.5
DISK_TROUBLE = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO)

Reason = Literal["cancelled", "lost", "late", "handed back"]
"""Why an attempt stops early: its caller's wish, another node has the job, the job's time is over, the node drains."""

log = logging.getLogger("ltxd.attempt")
T = TypeVar("T")


class StoppedError(Exception):
    """The attempt is to end without a clip."""

    def __init__(self, reason: Reason) -> None:
        super().__init__(reason)
        self.reason = reason


@dataclass(frozen=True, slots=True)
class Tools:
    """What every attempt of a node works with. `handing_back` is set once running jobs are to be given up."""

    settings: Settings
    store: Store
    blobs: Blobs
    images: StartImages
    model: Model
    metrics: Metrics
    bell: Bell
    recipe: Recipe
    work: Path
    handing_back: asyncio.Event


class Attempt:
    """One attempt. `run` is all of it."""

    def __init__(self, claim: Claim, tools: Tools) -> None:
        self._claim = claim
        self._tools = tools
        self._settings = tools.settings
        self._store = tools.store
        self._output = tools.work / f"{claim.id}.{claim.attempt}.mp4"

    async def run(self, child: Child) -> None:
        """Does the job with the process `child`: ends it or puts it back, or leaves it to its lease."""
        self._tools.metrics.started(created=self._claim.created)
        with (
            bound_contextvars(request_id=self._claim.id, attempt=self._claim.attempt),
            # why: its end could not be written before the node has to leave
            contextlib.suppress(StoppedError),
        ):
            await self._run(child)

    async def _run(self, child: Child) -> None:
        stop = asyncio.create_task(self._reason_to_stop())
        try:
            await self._make(child, stop)
        except StoppedError as stopped:
            await self._stopped(stopped.reason)
        except FalError as error:
            await self._tell(str(error), level="ERROR")
            given = ImageToVideoInput.model_validate_json(self._claim.payload)
            await self._fail(with_inputs(error.failure, given.model_dump()))
        except ChildLostError as error:
            await self._lost(error)
        except OSError as error:
            log.error("the attempt failed: %s", error)
            await self._fail(_fault(error))
        except Exception as error:
            log.exception("the attempt failed")
            await self._tools.model.kill()
            await self._fail(_fault(error))
        finally:
            stop.cancel()
            await self._tools.images.forget(self._claim.id)
            await asyncio.to_thread(self._output.unlink, missing_ok=True)

    # -- the way to a clip

    async def _make(self, child: Child, stop: asyncio.Task[Reason]) -> None:
        """Makes the clip and ends the job with it.

        Raises: StoppedError, FalError, ChildLostError, OSError.
        """
        given = await asyncio.to_thread(ImageToVideoInput.model_validate_json, self._claim.payload)
        size = await _unless(stop, self._tools.images.fetch(self._claim.id, given))
        request = to_request(given, image=self._tools.images.path(self._claim.id), image_size=size)
        try:
            plan = make_plan(request, self._tools.recipe)
        except CallerError as error:
            raise FalError(from_worker(failed(error))) from error
        log.info("generating", extra={"plan": asdict(plan)})
        started = time.monotonic()
        generated = await self._generate(child, request, plan, stop)
        seconds = time.monotonic() - started
        await self._deliver(given, generated, seconds=seconds, units=plan.megapixels)

    async def _generate(
        self, child: Child, request: GenerationRequest, plan: Plan, stop: asyncio.Task[Reason]
    ) -> Generated:
        """The clip. A process that runs out of memory is followed by one that keeps less on the device.

        Raises: StoppedError, FalError, ChildLostError.
        """
        first = await self._drive(child, request, stop)
        if first is not None:
            return first
        model = self._tools.model
        await model.kill()
        before, smaller = model.residency, model.smaller_residency()
        if smaller is None:
            raise FalError(out_of_memory(plan, tried=None))
        log.warning("out of memory; the next process has the residency %s", smaller)
        self._tools.metrics.retried("out of memory")
        await self._tell(f"The device ran out of memory: tried again with residency {smaller}", level="WARN")
        model.residency = smaller
        again = await _unless(stop, model.ready())
        if again is None and model.stopping:
            raise StoppedError("handed back")
        second = None if again is None else await self._drive(again, request, stop)
        if second is None:
            # why: less on the device did not help, and is slower
            model.residency = before
            await model.kill()
            raise FalError(out_of_memory(plan, tried=None if again is None else smaller))
        return second

    async def _drive(self, child: Child, request: GenerationRequest, stop: asyncio.Task[Reason]) -> Generated | None:
        """Follows the running clip to its end; None if the device ran out of memory.

        Raises: StoppedError, FalError, ChildLostError, OSError.
        """
        if (model := self._tools.model.state.model) is not None:
            await self._tell(f"Generating with {model.weights} on {model.device}")
        child.send(Generate(request, self._output))
        asked = asyncio.create_task(self._pass_on(stop, child))
        last: Progress | None = None
        logged = stepped = 0.0
        try:
            while True:
                match await child.next(within=allowed_after(last, self._settings)):
                    case Progress() as progress:
                        new_stage = last is None or progress.stage != last.stage
                        if not new_stage and progress.stage == "denoise":
                            self._tools.metrics.step(time.monotonic() - stepped)
                        stepped = time.monotonic()
                        last = progress
                        if progress.message:
                            await self._tell(progress.message)
                        elif new_stage or time.monotonic() - logged >= LOG_SECONDS:
                            logged = time.monotonic()
                            await self._tell(describe(progress))
                    case Done(generated) if generated.path == self._output:
                        return generated
                    case Cancelled():
                        raise StoppedError(await stop)
                    case Failed(kind="OutOfMemoryError"):
                        return None
                    case Failed(field=None) as failure:
                        await self._failed(failure)
                    case Failed() as failure:
                        raise FalError(from_worker(failure))
                    case message:
                        raise ChildLostError(f"sent {type(message).__name__} out of turn")
        except ChildLostError:
            if stop.done():
                # why: one that is only slow would go on with this clip while the next job waits for its own
                await self._tools.model.kill()
                raise StoppedError(stop.result()) from None
            raise
        finally:
            asked.cancel()

    async def _pass_on(self, stop: asyncio.Task[Reason], child: Child) -> None:
        """Tells the process to stop once there is a reason."""
        reason = await asyncio.shield(stop)
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
        await self._tools.model.kill()
        if failure.kind == "GenerationError":
            raise FalError(from_worker(failure))
        raise ChildLostError(f"failed with {failure.kind}", detail=failure.message)

    async def _deliver(self, given: ImageToVideoInput, generated: Generated, *, seconds: float, units: int) -> None:
        # why: files are read without a key, and an attempt that comes too late must not touch the delivered clip
        file_id = secrets.token_hex(16)
        blob = await asyncio.to_thread(digest, generated.path)
        now = time.time()
        file = StoredFile(
            id=file_id,
            job_id=self._claim.id,
            name=f"{file_id[:12]}.mp4",
            content_type="video/mp4",
            size=blob.size,
            sha256=blob.sha256,
            created=now,
            expires=now + (self._claim.keep_for or self._settings.result_retention),
        )
        await self._insist(lambda: self._store.add_file(file))
        await self._insist(lambda: self._tools.blobs.put(file_id, generated.path))
        result = {
            "file": file_id,
            "seed": generated.seed,
            "prompt": generated.prompt,
            "sync_mode": given.sync_mode,
        }
        await self._tell(f"Done in {seconds:.1f} s: {generated.size}, {generated.num_frames} frames")
        if not await self._insist(
            lambda: self._store.finish(self._claim, result=result, seconds=seconds, units=units)
        ):
            log.warning("the clip came too late: another node has the job, or it has ended")
            return
        self._tools.metrics.ended("ok", created=self._claim.created)
        self._tools.metrics.generated(stages=generated.seconds, frames=generated.num_frames, megapixels=units)
        record_job(
            trace.get_tracer("ltxd"),
            request_id=self._claim.id,
            attempt=self._claim.attempt,
            created=self._claim.created,
            started=self._claim.started,
            stages=generated.seconds,
        )
        log.info("done", extra={"seconds": round(seconds, 3), "stages": generated.seconds})

    # -- other ends

    async def _stopped(self, reason: Reason) -> None:
        match reason:
            case "cancelled":
                await self._fail(CANCELLED)
            case "late":
                limit = self._settings.job_timeout
                await self._fail(model_failure("generation_timeout", f"Generation timeout: not done in {limit:g} s"))
            case "handed back":
                await self._put_back("its node stopped", counted=False)
            case "lost":
                log.warning("another node has the job now")

    async def _lost(self, error: ChildLostError) -> None:
        log.error("the generating process %s", error.with_last_words)
        await self._tools.model.kill()
        await self._tell(f"Attempt {self._claim.attempt} was lost: the generating process {error}", level="WARN")
        silent = isinstance(error, ChildSilentError)
        self._tools.metrics.retried("silent" if silent else "died")
        await self._put_back(f"its generating process {error}", counted=True, silent=silent)

    async def _put_back(self, how: str, *, counted: bool, silent: bool = False) -> None:
        limit = self._settings.max_attempts
        became = await self._insist(
            lambda: self._store.release(self._claim, max_attempts=limit, counted=counted, silent=silent, how=how)
        )
        if isinstance(became, Failure):
            self._count(became)

    async def _fail(self, failure: Failure) -> None:
        if await self._insist(lambda: self._store.finish(self._claim, failure=failure)):
            self._count(failure)

    def _count(self, failure: Failure) -> None:
        self._tools.metrics.ended(
            outcome_of(failure.error_type), created=self._claim.created, error_type=failure.error_type
        )

    # -- the database and the blobs, which may be away for a while

    async def _reason_to_stop(self) -> Reason:
        """Keeps the lease; returns once the attempt is to stop."""
        renewed = time.monotonic()
        while True:
            seen = self._tools.bell.rings
            if self._tools.handing_back.is_set():
                return "handed back"
            if time.time() - self._claim.started > self._settings.job_timeout:
                return "late"
            with contextlib.suppress(StoreUnavailableError):
                if time.monotonic() - renewed < self._settings.lease_seconds / 6:
                    standing = await self._store.standing(self._claim)
                else:
                    standing = await self._store.renew(self._claim, lease=self._settings.lease_seconds)
                    renewed = time.monotonic()
                if standing != "held":
                    return standing
            await self._tools.bell.wait(seen, at_most=RECHECK_SECONDS)

    async def _tell(self, message: str, *, level: str = "INFO") -> None:
        """Adds a line to the job's log, if the database is there."""
        with contextlib.suppress(StoreUnavailableError):
            await self._store.log(self._claim.id, message, level=level)

    async def _insist(self, write: Callable[[], Awaitable[T]]) -> T:
        """What `write` gives, done again and again while database or blobs are away.

        A node that is to end gives up: its lease runs out, or the next start finds the job, and it is done again.
        Raises: StoppedError if it gives up.
        """
        told = False
        while not (told and self._tools.handing_back.is_set()):
            try:
                return await write()
            except (StoreUnavailableError, BlobsUnavailableError) as error:
                if not told:
                    log.error("the job's end waits to be written: %s", error)
                told = True
                await asyncio.sleep(RECHECK_SECONDS)
        raise StoppedError("handed back")


async def _unless(stop: asyncio.Task[Reason], work: Awaitable[T]) -> T:
    """What `work` gives.

    Raises: StoppedError if there is a reason to stop before it is done.
    """
    task = asyncio.ensure_future(work)
    await asyncio.wait({task, stop}, return_when=asyncio.FIRST_COMPLETED)
    if not task.done():
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        raise StoppedError(stop.result())
    return task.result()


def _fault(error: Exception) -> Failure:
    if isinstance(error, OSError) and error.errno in DISK_TROUBLE:
        return plain("storage_full", "The server could not keep the result: its disk is full or cannot be written")
    return model_failure("internal_server_error", "Internal server error")
