"""Start images, fetched and decoded; while the model loads even before a job begins, so a bad URL fails at once."""

import asyncio
import logging
from pathlib import Path

from pydantic import ValidationError

from pipeline.errors import CallerError
from pipeline.picture import open_picture, save_picture
from pipeline.types import Size
from pipeline.wire import failed
from server.errors import FalError, from_worker
from server.media import Media
from server.schema import ImageToVideoInput
from server.store import Store

AHEAD = 4
"""As many of the first waiting jobs are looked at; each keeps one decoded image on the disk."""

log = logging.getLogger("ltxd.images")


class StartImages:
    """The start images of one node, in the folder `work`."""

    def __init__(self, store: Store, media: Media, *, work: Path) -> None:
        self._store = store
        self._media = media
        self._work = work
        self._kept: dict[str, Size] = {}
        self._busy = asyncio.Lock()

    def path(self, job_id: str) -> Path:
        """Where the image of the job lies once it is fetched."""
        return self._work / f"{job_id}.png"

    async def fetch(self, job_id: str, given: ImageToVideoInput) -> Size:
        """The size of the job's start image, which then lies at its path.

        Raises: FalError, OSError.
        """
        async with self._busy:
            if (size := self._kept.pop(job_id, None)) is not None:
                return size
        return await self._fetch(job_id, given)

    async def forget(self, job_id: str) -> None:
        """Removes the job's image."""
        self._kept.pop(job_id, None)
        await asyncio.to_thread(self.path(job_id).unlink, missing_ok=True)

    async def look_ahead(self) -> None:
        """Fetches the images of the first waiting jobs, and ends those jobs that name a bad one.

        Raises: StoreUnavailableError.
        """
        async with self._busy:
            waiting = await self._store.next_waiting(AHEAD)
            await self._tidy(waiting)
            await asyncio.gather(*(self._try(job_id) for job_id in waiting if job_id not in self._kept))

    async def tidy(self) -> None:
        """Removes the images of jobs that wait no more.

        Raises: StoreUnavailableError.
        """
        async with self._busy:
            if self._kept:
                await self._tidy(await self._store.next_waiting(AHEAD))

    async def _tidy(self, waiting: list[str]) -> None:
        for gone in self._kept.keys() - set(waiting):
            await self.forget(gone)

    async def _try(self, job_id: str) -> None:
        payload = await self._store.payload(job_id)
        if payload is None:
            return
        try:
            given = await asyncio.to_thread(ImageToVideoInput.model_validate_json, payload)
            self._kept[job_id] = await self._fetch(job_id, given)
        except FalError as error:
            await self._store.log(job_id, str(error), level="ERROR")
            await self._store.refuse(job_id, error.failure)
        except (OSError, ValidationError):
            # why: what is wrong here is told when the job is done
            log.exception("job %s: its start image could not be fetched ahead", job_id)

    async def _fetch(self, job_id: str, given: ImageToVideoInput) -> Size:
        data = await self._media.fetch_image(given.image_url)

        def decode() -> Size:
            picture = open_picture(data)
            save_picture(picture, self.path(job_id))
            return Size(picture.width, picture.height)

        try:
            return await asyncio.to_thread(decode)
        except CallerError as error:
            raise FalError(from_worker(failed(error))) from error
