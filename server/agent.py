"""Takes jobs from the store, one at a time, and sees each to its end through the generating process.

The process is started at once and after every death. A job whose process dies goes back to its old place.
"""

import asyncio
import hashlib
import logging
import math
import secrets
import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pipeline.errors import CallerError
from pipeline.picture import open_picture, save_picture
from pipeline.plan import make_plan
from pipeline.recipe import Recipe
from pipeline.types import Generated, GenerationRequest, LoadedModel, Progress, Size
from pipeline.wire import Cancel, Cancelled, Done, Failed, Generate, Ready, failed
from server.bell import Bell
from server.blobs import Blobs, digest
from server.child import Child, ChildLostError, ChildSilentError, Command
from server.endings import CANCELLED
from server.errors import FalError, from_worker, model_failure, with_inputs
from server.media import Media
from server.records import Claim, StoredFile
from server.schema import ImageToVideoInput
from server.settings import Settings
from server.store import Store

IDLE_SECONDS = 1.0
LOG_SECONDS = 0.5
MAX_BACKOFF = 60.0

log = logging.getLogger("ltxd.agent")


@dataclass(frozen=True, slots=True)
class ModelState:
    """Whether the model can generate."""

    status: Literal["loading", "ready", "failed"]
    model: LoadedModel | None = None
    error: str | None = None


class CancelledError(Exception):
    """The caller wants the job no more."""


class Agent:
    """The one that does the jobs. `run` is its life; `drain` ends it."""

    def __init__(
        self,
        settings: Settings,
        store: Store,
        blobs: Blobs,
        media: Media,
        bell: Bell,
        *,
        recipe: Recipe,
        command: Command,
    ) -> None:
        self.state = ModelState("loading")
        self.owner = secrets.token_hex(8)
        self._settings = settings
        self._store = store
        self._blobs = blobs
        self._media = media
        self._bell = bell
        self._recipe = recipe
        self._command = command
        self._child: Child | None = None
        self._claim: Claim | None = None
        self._failures = 0
        self._draining = asyncio.Event()
        self._handing_back = False
        self._idle = asyncio.Event()
        self._work = settings.data / "work"

    @property
    def draining(self) -> bool:
        """Whether it takes no more jobs."""
        return self._draining.is_set()

    @property
    def running(self) -> bool:
        """Whether it does a job."""
        return self._claim is not None

    async def run(self) -> None:
        """Does jobs until drained."""
        # why: what an attempt left that died with its server is of no use to the next one
        await asyncio.to_thread(shutil.rmtree, self._work, ignore_errors=True)
        self._work.mkdir(parents=True)
        try:
            while not self.draining:
                try:
                    await self._turn()
                except Exception:
                    log.exception("the agent goes on after a failure")
                    await self._pause(IDLE_SECONDS)
        finally:
            self._idle.set()
            if self._child is not None:
                await self._child.stop()

    async def drain(self) -> None:
        """Takes no more jobs; lets the running one end within the time set for it, else hands it back."""
        self._draining.set()
        self._bell.ring()
        if self.running:
            try:
                async with asyncio.timeout(self._settings.drain_timeout):
                    await self._idle.wait()
            except TimeoutError:
                log.info("the running job is handed back: it did not end in time")
        self._handing_back = True
        if self._child is not None:
            await self._child.kill()
        await self._idle.wait()

    async def _turn(self) -> None:
        """Does one job, or waits for one."""
        if self._claim is not None:
            # why: its end could not be written, or it would be gone
            await self._store.release(self._claim, max_attempts=self._settings.max_attempts)
            self._claim = None
        child = await self._ready_child()
        if child is None:
            return
        seen = self._bell.rings
        self._claim = await self._store.claim(self.owner, lease=self._settings.lease_seconds)
        if self._claim is None:
            await self._bell.wait(seen, at_most=IDLE_SECONDS)
            return
        await self._attempt(child, self._claim)
        self._claim = None

    async def _ready_child(self) -> Child | None:
        """The generating process with its model loaded; None if it did not come up, after a pause that grows."""
        if self._child is not None and self._child.alive:
            return self._child
        self.state = ModelState("loading")
        reason = "it spoke out of turn"
        try:
            self._child = await Child.start(self._command)
            if self.draining:
                return None
            match await self._child.next(within=self._settings.load_timeout):
                case Ready(model):
                    self._failures = 0
                    self.state = ModelState("ready", model)
                    log.info("model ready: %s, recipe %s, on %s", model.weights, model.recipe, model.device)
                    return self._child
                case Failed() as failure:
                    reason = failure.message
        except ChildLostError as error:
            reason = str(error)
        except OSError as error:
            reason = f"it cannot be started: {error}"
        if self._child is not None:
            await self._child.kill()
        if not self.draining:
            self._failures += 1
            pause = min(2.0 ** (self._failures - 1), MAX_BACKOFF)
            self.state = ModelState("failed", error=reason)
            log.error("the model did not load: %s; next try in %g s", reason, pause)
            await self._pause(pause)
        return None

    async def _pause(self, seconds: float) -> None:
        try:
            async with asyncio.timeout(seconds):
                await self._draining.wait()
        except TimeoutError:
            return

    async def _attempt(self, child: Child, claim: Claim) -> None:
        """Does the job, or puts it back."""
        image, output = self._work / f"{claim.id}.png", self._work / f"{claim.id}.{claim.attempt}.mp4"
        try:
            await self._generate(child, claim, image=image, output=output)
        except CancelledError:
            await self._store.finish(claim, failure=CANCELLED)
        except FalError as error:
            await self._store.log(claim.id, str(error), level="ERROR")
            given = ImageToVideoInput.model_validate_json(claim.payload)
            await self._store.finish(claim, failure=with_inputs(error.failure, given.model_dump()))
        except ChildLostError as error:
            await child.kill()
            await self._lost(child, claim, str(error), silent=isinstance(error, ChildSilentError))
        except Exception:
            log.exception("job %s, attempt %d: failed", claim.id, claim.attempt)
            await child.kill()
            failure = model_failure("internal_server_error", "Internal server error")
            await self._store.finish(claim, failure=failure)
        finally:
            image.unlink(missing_ok=True)
            output.unlink(missing_ok=True)

    async def _lost(self, child: Child, claim: Claim, reason: str, *, silent: bool) -> None:
        if self._handing_back:
            await self._store.release(claim, max_attempts=self._settings.max_attempts, counted=False)
            return
        last = "\n".join(child.tail)
        log.error("job %s, attempt %d: the generating process: %s\n%s", claim.id, claim.attempt, reason, last)
        await self._store.log(
            claim.id, f"Attempt {claim.attempt} was lost: the generating process failed", level="WARN"
        )
        await self._store.release(claim, max_attempts=self._settings.max_attempts, silent=silent)

    async def _generate(self, child: Child, claim: Claim, *, image: Path, output: Path) -> None:
        """Makes the clip and ends the job with it.

        Raises: CancelledError, FalError, ChildLostError.
        """
        given = ImageToVideoInput.model_validate_json(claim.payload)
        cancel = asyncio.create_task(self._cancel_requested(claim))
        try:
            fetch = asyncio.create_task(self._prepare(given, image))
            await asyncio.wait({fetch, cancel}, return_when=asyncio.FIRST_COMPLETED)
            if cancel.done():
                fetch.cancel()
                await asyncio.gather(fetch, return_exceptions=True)
                raise CancelledError
            request = to_request(given, image=image, image_size=await fetch)
            try:
                plan = make_plan(request, self._recipe)
            except CallerError as error:
                raise FalError(from_worker(failed(error))) from error
            started = time.monotonic()
            child.send(Generate(request, output))
            cancel.add_done_callback(lambda task: None if task.cancelled() else child.send(Cancel()))
            generated = await self._drive(child, claim)
        finally:
            cancel.cancel()
        seconds = time.monotonic() - started
        await self._deliver(claim, given, generated, seconds=seconds, units=plan.megapixels)

    async def _cancel_requested(self, claim: Claim) -> None:
        """Renews the lease; returns once the job is to be cancelled or is no longer ours."""
        renewed = time.monotonic()
        while True:
            seen = self._bell.rings
            if time.monotonic() - renewed < self._settings.lease_seconds / 6:
                standing = await self._store.standing(claim)
            else:
                standing = await self._store.renew(claim, lease=self._settings.lease_seconds)
                renewed = time.monotonic()
            if standing != "held":
                return
            await self._bell.wait(seen, at_most=IDLE_SECONDS)

    async def _prepare(self, given: ImageToVideoInput, image: Path) -> Size:
        """Fetches the start image and writes it to `image`.

        Raises: FalError.
        """
        data = await self._media.fetch_image(given.image_url)

        def decode() -> Size:
            picture = open_picture(data)
            save_picture(picture, image)
            return Size(picture.width, picture.height)

        try:
            return await asyncio.to_thread(decode)
        except CallerError as error:
            raise FalError(from_worker(failed(error))) from error

    async def _drive(self, child: Child, claim: Claim) -> Generated:
        """Follows the running clip to its end.

        Raises: CancelledError, FalError, ChildLostError.
        """
        model = self.state.model
        if model is not None:
            await self._store.log(claim.id, f"Generating with {model.weights} on {model.device}")
        logged, stage = 0.0, ""
        while True:
            match await child.next(within=self._settings.step_timeout):
                case Progress() as progress:
                    if progress.message:
                        await self._store.log(claim.id, progress.message)
                    elif progress.stage != stage or time.monotonic() - logged >= LOG_SECONDS:
                        logged, stage = time.monotonic(), progress.stage
                        await self._store.log(claim.id, describe(progress))
                case Done(generated):
                    return generated
                case Cancelled():
                    raise CancelledError
                case Failed(field=None, kind=kind, message=message) as failure:
                    log.error("job %s, attempt %d: %s: %s", claim.id, claim.attempt, kind, message)
                    await child.kill()
                    if kind in ("GenerationError", "OutOfMemoryError"):
                        raise FalError(from_worker(failure))
                    raise ChildLostError(f"{kind}: {message}")
                case Failed() as failure:
                    raise FalError(from_worker(failure))
                case message:
                    raise ChildLostError(f"it sent {type(message).__name__} out of turn")

    async def _deliver(
        self, claim: Claim, given: ImageToVideoInput, generated: Generated, *, seconds: float, units: int
    ) -> None:
        # why: the name follows from the job, so that a second attempt writes over what the first one left
        file_id = hashlib.sha256(f"file:{claim.id}".encode()).hexdigest()[:32]
        blob = await asyncio.to_thread(digest, generated.path)
        now = time.time()
        file = StoredFile(
            id=file_id,
            job_id=claim.id,
            name=f"{file_id[:12]}.mp4",
            content_type="video/mp4",
            size=blob.size,
            sha256=blob.sha256,
            created=now,
            expires=now + (claim.keep_for or self._settings.result_retention),
        )
        await self._store.add_file(file)
        await self._blobs.put(file_id, generated.path)
        result = {
            "file": file_id,
            "seed": generated.seed,
            "prompt": generated.prompt,
            "sync_mode": given.sync_mode,
        }
        await self._store.log(claim.id, f"Done in {seconds:.1f} s: {generated.size}, {generated.num_frames} frames")
        await self._store.finish(claim, result=result, seconds=seconds, units=units)


def to_request(given: ImageToVideoInput, *, image: Path, image_size: Size) -> GenerationRequest:
    """The request in the model's words."""
    if given.seed is None:
        raise ValueError("the seed of a job is drawn when it is submitted")
    return GenerationRequest(
        prompt=given.prompt,
        image=image,
        image_size=image_size,
        seed=given.seed,
        negative_prompt=given.negative_prompt,
        size=given.size(),
        num_frames=given.num_frames,
        fps=given.frames_per_second,
        steps=given.num_inference_steps,
        guidance_scale=given.guidance_scale,
        strength=given.image_strength,
        audio=given.generate_audio,
        expand_prompt=given.enable_prompt_expansion,
        check_safety=given.enable_safety_checker,
        quality=given.video_quality,
        write_mode=given.video_write_mode,
    )


def describe(progress: Progress) -> str:
    """One line of a job's log."""
    step = f" {progress.step}/{progress.total}" if progress.total > 1 else ""
    left = "" if progress.eta is None else f", about {math.ceil(progress.eta)} s left"
    return f"{progress.stage}{step}{left}"
