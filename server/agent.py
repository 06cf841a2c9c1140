"""Takes jobs from the store, one at a time, and sees each to its end: claim, attempt, and again until drained."""

import asyncio
import logging
import secrets
import shutil

from pipeline.recipe import Recipe
from server.attempt import Attempt, Tools
from server.bell import Bell
from server.blobs import Blobs
from server.child import Command
from server.database import StoreUnavailableError
from server.disk import free_bytes
from server.media import Media
from server.metrics import Metrics
from server.model import Model, ModelGivenUpError, ModelState
from server.records import Claim
from server.settings import Settings
from server.start_images import StartImages
from server.store import Store

IDLE_SECONDS = 1.0

log = logging.getLogger("ltxd.agent")


class Agent:
    """The one that does the jobs. `run` is its life; `drain` ends it. On a node of role api it does none."""

    def __init__(
        self,
        settings: Settings,
        store: Store,
        blobs: Blobs,
        media: Media,
        bell: Bell,
        metrics: Metrics,
        *,
        recipe: Recipe,
        command: Command,
    ) -> None:
        self._owner = secrets.token_hex(8)
        self._settings = settings
        self._store = store
        self._bell = bell
        self._draining = asyncio.Event()
        self._idle = asyncio.Event()
        self._held: Claim | None = None
        self._model = Model(settings, command=command, stopping=self._draining, metrics=metrics)
        work = settings.data / "work"
        self._tools = Tools(
            settings=settings,
            store=store,
            blobs=blobs,
            images=StartImages(store, media, work=work),
            model=self._model,
            metrics=metrics,
            bell=bell,
            recipe=recipe,
            work=work,
            handing_back=asyncio.Event(),
        )

    @property
    def state(self) -> ModelState:
        """Whether the model can generate."""
        return ModelState("none") if self._settings.role == "api" else self._model.state

    @property
    def draining(self) -> bool:
        """Whether it takes no more jobs."""
        return self._draining.is_set()

    @property
    def running(self) -> bool:
        """Whether it does a job."""
        return self._held is not None

    @property
    def held(self) -> Claim | None:
        """The job that it does."""
        return self._held

    async def run(self) -> None:
        """Does jobs until drained.

        Raises: ModelGivenUpError once the model cannot be had; what waits goes on waiting.
        """
        if self._settings.role == "api":
            await self._draining.wait()
            self._idle.set()
            return
        # why: what an attempt left that died with its server is of no use to the next one
        await asyncio.to_thread(shutil.rmtree, self._tools.work, ignore_errors=True)
        self._tools.work.mkdir(parents=True)
        looking = asyncio.create_task(self._look_ahead())
        told = False
        try:
            while not self.draining:
                try:
                    await self._turn()
                    told = False
                except StoreUnavailableError as error:
                    # why: a database that is down for an hour is one line, not thousands
                    if not told:
                        log.error("no jobs are taken: %s", error)
                    told = True
                    await self._pause()
                except ModelGivenUpError:
                    raise
                except Exception:
                    log.exception("the agent goes on after a failure")
                    await self._pause()
        finally:
            looking.cancel()
            self._idle.set()
            await self._model.stop()

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
        self._tools.handing_back.set()
        self._bell.ring()
        if not self.running:
            await self._model.kill("drained")
        await self._idle.wait()

    async def _turn(self) -> None:
        """Does one job, or waits for one."""
        child = await self._model.ready()
        if child is None or self.draining:
            return
        seen = self._bell.rings
        claim = None
        # why: a claim that was written but not answered is nobody's, and goes back once its lease has run out
        if free_bytes(self._settings.data) >= self._settings.min_free_bytes:
            claim = await self._store.claim(self._owner, lease=self._settings.lease_seconds)
        if claim is None:
            await self._bell.wait(seen, at_most=IDLE_SECONDS)
            return
        self._held = claim
        try:
            await Attempt(claim, self._tools).run(child)
        finally:
            self._held = None

    async def _look_ahead(self) -> None:
        """Looks at the images of waiting jobs while the model loads."""
        while True:
            seen = self._bell.rings
            try:
                if self.state.status == "ready":
                    await self._tools.images.tidy()
                else:
                    await self._tools.images.look_ahead()
            except StoreUnavailableError:
                await asyncio.sleep(IDLE_SECONDS)
            except Exception:
                log.exception("looking ahead failed")
                await asyncio.sleep(IDLE_SECONDS)
            await self._bell.wait(seen, at_most=IDLE_SECONDS)

    async def _pause(self) -> None:
        try:
            async with asyncio.timeout(IDLE_SECONDS):
                await self._draining.wait()
        except TimeoutError:
            return
