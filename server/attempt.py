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
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TypeVar

from opentelemetry import trace
from structlog.contextvars import bound_contextvars

from pipeline.errors import CallerError
from pipeline.plan import make_plan
from pipeline.recipe import Recipe
from pipeline.types import Generated
from pipeline.wire import failed
from server.bell import Bell
from server.blobs import Blobs, BlobsUnavailableError, digest
from server.child import Child, ChildLostError, ChildSilentError
from server.database import StoreUnavailableError
from server.driving import Clip
from server.endings import CANCELLED
from server.errors import Failure, FalError, from_worker, model_failure, plain, with_inputs
from server.metrics import Metrics
from server.model import Model, ModelGivenUpError
from server.records import Claim, StoredFile
from server.schema import ImageToVideoInput
from server.settings import Settings
from server.start_images import StartImages
from server.stopping import RECHECK_SECONDS, Reason, StoppedError, reason_to_stop, unless
from server.store import Store
from server.tracing import record_job
from server.words import to_request

DISK_TROUBLE = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO)

log = logging.getLogger("ltxd.attempt")
T = TypeVar("T")


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
        tools = self._tools
        stop = asyncio.create_task(
            reason_to_stop(
                self._claim, tools.store, settings=tools.settings, bell=tools.bell, handing_back=tools.handing_back
            )
        )
        try:
            given = await asyncio.to_thread(ImageToVideoInput.model_validate_json, self._claim.payload)
            await self._make(given, child, stop)
        except StoppedError as stopped:
            await self._stopped(stopped.reason)
        except FalError as error:
            await self._tell(str(error), level="ERROR")
            await self._fail(with_inputs(error.failure, given.model_dump()))
        except ChildLostError as error:
            await self._lost(error)
        except ModelGivenUpError:
            await self._put_back("no other process came up", counted=True)
            raise
        except OSError as error:
            log.error("the attempt failed: %s", error)
            await self._fail(_fault(error))
        except Exception as error:
            log.exception("the attempt failed")
            await self._tools.model.kill("failed")
            await self._fail(_fault(error))
        finally:
            stop.cancel()
            await self._tools.images.forget(self._claim.id)
            await asyncio.to_thread(self._output.unlink, missing_ok=True)

    # -- the way to a clip

    async def _make(self, given: ImageToVideoInput, child: Child, stop: asyncio.Task[Reason]) -> None:
        """Makes the clip that was asked for with `given` and ends the job with it.

        Raises: StoppedError, FalError, ChildLostError, OSError.
        """
        began = time.monotonic()
        # why: an image that was uploaded lies in the bucket too
        size = await unless(stop, self._insist(lambda: self._tools.images.fetch(self._claim.id, given)))
        fetched = time.monotonic() - began
        request = to_request(given, image=self._tools.images.path(self._claim.id), image_size=size)
        try:
            plan = make_plan(request, self._tools.recipe)
        except CallerError as error:
            raise FalError(from_worker(failed(error))) from error
        log.info("generating", extra={"plan": asdict(plan)})
        started = time.monotonic()
        clip = Clip(
            request,
            plan,
            self._output,
            stop,
            settings=self._settings,
            model=self._tools.model,
            metrics=self._tools.metrics,
            tell=self._tell,
        )
        generated = await clip.make(child)
        seconds = time.monotonic() - started
        generated = replace(generated, seconds={"fetch": fetched, **generated.seconds})
        await self._deliver(given, generated, stop, seconds=seconds, units=plan.megapixels)

    async def _deliver(
        self, given: ImageToVideoInput, generated: Generated, stop: asyncio.Task[Reason], *, seconds: float, units: int
    ) -> None:
        """Keeps the clip and ends the job with it.

        Raises: StoppedError, OSError.
        """
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
        await self._insist(lambda: self._store.add_file(file), stop)
        await self._insist(lambda: self._tools.blobs.put(file_id, generated.path), stop)
        stages = generated.seconds | {"store": time.time() - now}
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
        self._tools.metrics.generated(stages=stages, frames=generated.num_frames, megapixels=units)
        record_job(
            trace.get_tracer("ltxd"),
            request_id=self._claim.id,
            attempt=self._claim.attempt,
            created=self._claim.created,
            started=self._claim.started,
            stages=stages,
        )
        log.info("done", extra={"seconds": round(seconds, 3), "stages": stages})

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
        silent = isinstance(error, ChildSilentError)
        await self._tools.model.kill("silent" if silent else "died")
        await self._tell(f"Attempt {self._claim.attempt} was lost: the generating process {error}", level="WARN")
        await self._put_back(f"its generating process {error}", counted=True, silent=silent)

    async def _put_back(self, how: str, *, counted: bool, silent: bool = False) -> None:
        limit = self._settings.max_attempts
        await self._insist(
            lambda: self._store.release(self._claim, max_attempts=limit, counted=counted, silent=silent, how=how)
        )

    async def _fail(self, failure: Failure) -> None:
        await self._insist(lambda: self._store.finish(self._claim, failure=failure))

    # -- the database and the blobs, which may be away for a while

    async def _tell(self, message: str, *, level: str = "INFO") -> None:
        """Adds a line to the job's log, if the database is there."""
        with contextlib.suppress(StoreUnavailableError):
            await self._store.log(self._claim.id, message, level=level)

    async def _insist(self, work: Callable[[], Awaitable[T]], stop: asyncio.Task[Reason] | None = None) -> T:
        """What `work` gives, done again and again while database or blobs are away, and nothing says `stop`.

        A node that is to end gives up: its lease runs out, or the next start finds the job, and it is done again.
        Raises: StoppedError if it gives up.
        """
        told = False
        while not (told and self._tools.handing_back.is_set()):
            try:
                return await work()
            except (StoreUnavailableError, BlobsUnavailableError) as error:
                if not told:
                    log.error("the job waits for the database or the file store: %s", error)
                told = True
                if stop is not None and stop.done():
                    raise StoppedError(stop.result()) from error
                await asyncio.sleep(RECHECK_SECONDS)
        raise StoppedError("handed back")


def _fault(error: Exception) -> Failure:
    if isinstance(error, OSError) and error.errno in DISK_TROUBLE:
        return plain("storage_full", "The server could not keep the result: its disk is full or cannot be written")
    return model_failure("internal_server_error", "Internal server error")
