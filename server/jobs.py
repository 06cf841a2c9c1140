"""From the bytes of a request to a job in the store, and from a job to what its caller is told."""

import asyncio
import base64
import json
import secrets
import uuid
from typing import Any

from pydantic import ValidationError

from pipeline.errors import CallerError
from pipeline.plan import check_budget, snapped, snapped_frames
from pipeline.recipe import Recipe
from pipeline.wire import failed
from server.bell import Bell
from server.blobs import Blobs
from server.board import Board
from server.database import StoreUnavailableError
from server.defaults import filled
from server.disk import free_bytes
from server.errors import Failure, FalError, from_worker, invalid, model_failure, not_json, plain, with_inputs
from server.media import too_large
from server.records import NOBODY, Job, Sender, SubmitOutcome
from server.schema import File, ImageToVideoInput, ImageToVideoOutput
from server.settings import Settings
from server.statuses import Status
from server.store import Store
from server.terms import Terms

RECHECK_SECONDS = 1.0
LARGE_BYTES = 100_000
"""From here on JSON is read and written on another thread: an image within takes milliseconds for each megabyte."""


def parse(body: bytes, recipe: Recipe) -> ImageToVideoInput:
    """The input in `body`, whatever its content type, if it is within its rules and `recipe` can make its size.

    A field that was not sent has the recipe's value. A size that follows from the image is only known once that is
    fetched.

    Raises: FalError.
    """
    try:
        value = json.loads(body)
    except RecursionError as error:
        raise FalError(not_json("nested too deeply")) from error
    except ValueError as error:
        raise FalError(not_json(str(error), position=getattr(error, "pos", 0))) from error
    try:
        given = filled(ImageToVideoInput.model_validate(value), recipe)
    except ValidationError as error:
        raise FalError(invalid(error)) from error
    if (size := given.size()) is not None:
        try:
            frames = snapped_frames(given.num_frames)
            check_budget(recipe, size=snapped(size, cell=recipe.cell), num_frames=frames, field="size")
        except CallerError as error:
            raise FalError(with_inputs(from_worker(failed(error)), given.model_dump())) from error
    return given


def freeze(given: ImageToVideoInput) -> bytes:
    """The payload of a job: every input, with the seed drawn, so that a retry makes the same clip.

    A drawn seed is below 2^31, which JavaScript keeps exactly.
    """
    seed = secrets.randbelow(2**31) if given.seed is None else given.seed
    return given.model_copy(update={"seed": seed}).model_dump_json().encode()


class Jobs:
    """Submits jobs, waits for them, and words their results."""

    def __init__(self, settings: Settings, store: Store, blobs: Blobs, bell: Bell, *, recipe: Recipe) -> None:
        self.store = store
        self.recipe = recipe
        self._settings = settings
        self._blobs = blobs
        self._bell = bell
        self._board = Board(store, bell)

    async def parse(self, body: bytes) -> ImageToVideoInput:
        """The input in `body`, see `parse`; the event loop goes on meanwhile.

        Raises: FalError.
        """
        if len(body) < LARGE_BYTES:
            return parse(body, self.recipe)
        return await asyncio.to_thread(parse, body, self.recipe)

    async def submit(
        self,
        given: ImageToVideoInput,
        *,
        terms: Terms,
        asked: str | None = None,
        max_waiting: int,
        sender: Sender = NOBODY,
    ) -> str:
        """The id of a new job; `asked` is the digest of what its caller asks, if he waits for the answer.

        Raises: FalError if too many jobs or bytes wait, or too many of the sender's are in flight.
        """
        self._check_disk()
        job_id = str(uuid.uuid4())
        large = len(given.image_url) >= LARGE_BYTES
        payload = await asyncio.to_thread(freeze, given) if large else freeze(given)
        max_bytes = self._settings.max_queue_bytes
        outcome = await self.store.submit(
            job_id, payload, terms=terms, asked=asked, max_waiting=max_waiting, max_bytes=max_bytes, sender=sender
        )
        _taken(outcome, max_waiting=max_waiting, max_bytes=max_bytes, sender=sender)
        return job_id

    async def submit_failed(self, failure: Failure, *, max_waiting: int, sender: Sender = NOBODY) -> str:
        """The id of a new job that has ended with `failure`.

        Raises: FalError where `submit` does: what ended at once is kept like what waits.
        """
        self._check_disk()
        job_id, max_bytes = str(uuid.uuid4()), self._settings.max_queue_bytes
        outcome = await self.store.submit_failed(
            job_id, failure, max_waiting=max_waiting, max_bytes=max_bytes, sender=sender
        )
        _taken(outcome, max_waiting=max_waiting, max_bytes=max_bytes, sender=sender)
        return job_id

    def _check_disk(self) -> None:
        """Returns if the disk has room for another job.

        Raises: FalError.
        """
        free, least = free_bytes(self._settings.data), self._settings.min_free_bytes
        if free < least:
            raise FalError(plain("queue_full", f"The server's disk has {free} bytes left; at least {least} are kept"))

    async def get(self, job_id: str) -> Job:
        """The job.

        Raises: JobNotFoundError.
        """
        job = await self.store.get(job_id)
        if job is None:
            raise JobNotFoundError(job_id)
        return job

    async def look(self, job_id: str, key_id: str | None, *, logs: bool, base: str) -> Status:
        """The status of the job, if it is the caller's as `own` says: as cheap as it is asked for often.

        Raises: JobNotFoundError.
        """
        status = await self._board.look(job_id, logs=logs, base=base)
        if status is None or status.key_id != key_id:
            raise JobNotFoundError(job_id)
        return status

    async def own(self, job_id: str, key_id: str | None) -> Job:
        """The job, if it is of the key `key_id`, or of nobody while there are no keys.

        Raises: JobNotFoundError.
        """
        job = await self.get(job_id)
        if job.key_id != key_id:
            raise JobNotFoundError(job_id)
        return job

    async def change(self, seen: int) -> None:
        """Returns when a job may have changed since the bell had rung `seen` times."""
        await self._bell.wait(seen, at_most=RECHECK_SECONDS)

    @property
    def rings(self) -> int:
        """How often something has changed."""
        return self._bell.rings

    async def ended(self, job_id: str) -> Job:
        """The job, once it has ended."""
        while True:
            seen = self.rings
            try:
                job = await self.get(job_id)
            except StoreUnavailableError:
                # why: the job goes on, so its caller may as well
                await asyncio.sleep(RECHECK_SECONDS)
                continue
            if job.status == "COMPLETED":
                return job
            await self.change(seen)

    async def file(self, file_id: str, *, max_bytes: int) -> bytes | None:
        """The bytes of the file, or None if there is none or it has expired.

        Raises: FieldError if it has more than `max_bytes`, BlobsUnavailableError.
        """
        file = await self.store.file(file_id)
        if file is None:
            return None
        if file.size > max_bytes:
            raise too_large(max_bytes)
        return await self._bytes(file_id)

    async def output(self, job: Job, *, origin: str) -> dict[str, Any]:
        """What the caller gets for an ended job, with file URLs that begin with `origin`.

        Raises: FalError.
        """
        if job.failure is not None or job.result is None:
            raise FalError(job.failure or model_failure("internal_server_error", "Internal server error"))
        file = await self.store.file(job.result["file"])
        if file is None:
            raise _expired()
        url = f"{origin}/files/{file.id}/{file.name}"
        if job.result["sync_mode"]:
            data = await self._bytes(file.id)
            if data is None:
                raise _expired()
            url = await asyncio.to_thread(_data_uri, data, file.content_type)
        video = File(url=url, content_type=file.content_type, file_name=file.name, file_size=file.size)
        output = ImageToVideoOutput(video=video, seed=job.result["seed"], prompt=job.result["prompt"])
        return output.model_dump()

    async def _bytes(self, file_id: str) -> bytes | None:
        """The bytes of a file; None for a row without them, as a node that was killed or a backup leaves it."""
        try:
            return await self._blobs.read(file_id)
        except FileNotFoundError:
            return None


def _data_uri(data: bytes, content_type: str) -> str:
    return f"data:{content_type};base64,{base64.b64encode(data).decode('ascii')}"


def _expired() -> FalError:
    return FalError(plain("not_found", "The result has expired"))


def _taken(outcome: SubmitOutcome, *, max_waiting: int, max_bytes: int, sender: Sender) -> None:
    """Returns if the store took the job.

    Raises: FalError.
    """
    match outcome:
        case "queue full":
            raise FalError(plain("queue_full", f"Too many requests are waiting; at most {max_waiting} may"))
        case "queue too large":
            message = f"The waiting requests hold too many bytes; at most {max_bytes} are kept"
            raise FalError(plain("queue_full", message))
        case "too many in flight":
            message = f"This key has {sender.max_in_flight} requests in flight, which is its limit"
            raise FalError(plain("concurrent_requests_limit", message))


class JobNotFoundError(Exception):
    """No job has this id."""
