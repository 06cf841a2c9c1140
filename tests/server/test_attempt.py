"""One attempt with a generating process that says what a test lets it say."""

import asyncio
import shutil
import threading
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families
from sqlalchemy import delete, select, update

from pipeline.recipe import load as load_recipe
from pipeline.types import Generated, Size
from pipeline.wire import Done, Message
from server.attempt import Attempt, Tools
from server.bell import Bell
from server.blobs import BlobsUnavailableError, LocalBlobs
from server.child import ChildLostError
from server.media import Media
from server.metrics import Metrics
from server.model import ModelState
from server.records import Claim
from server.schema import ImageToVideoInput
from server.settings import Settings
from server.start_images import StartImages
from server.store import Store
from server.sweeper import sweep
from server.tables import FILES, JOBS


class LoadedModel:
    """A model whose process is another object."""

    state = ModelState("ready")

    async def kill(self, why: str) -> None:
        """Nothing is to be killed."""


class ScriptedChild:
    """A process that does `meanwhile`, and then has made the clip, or is lost where there is none."""

    def __init__(self, clip: Path | None, meanwhile: Callable[[], Awaitable[object]] | None = None) -> None:
        self.clip, self.meanwhile = clip, meanwhile

    def send(self, message: Message) -> None:
        self.output = message.output

    async def next(self, *, within: float) -> Message:
        assert within > 0
        if self.meanwhile is not None:
            await self.meanwhile()
        if self.clip is None:
            raise ChildLostError("was lost")
        shutil.copy(self.clip, self.output)
        return Done(Generated(self.output, "a", 1, Size(64, 64), 9, 24.0, False, {"denoise": 1.0}))


class LostBlobs(LocalBlobs):
    """Blobs that are away."""

    async def put(self, blob_id: str, source: Path) -> None:
        raise BlobsUnavailableError(f"cannot keep {blob_id} of {source}")


@pytest.fixture
def tools(tmp_path, database):
    metrics = Metrics(tmp_path)
    store = Store(database, metrics)
    settings = Settings(data=tmp_path / "data", max_attempts=1)
    work = tmp_path / "work"
    work.mkdir()
    return Tools(
        settings=settings,
        store=store,
        blobs=LocalBlobs(tmp_path / "blobs"),
        images=StartImages(store, Media.standalone(settings), work=work),
        model=LoadedModel(),
        metrics=metrics,
        bell=Bell(),
        recipe=load_recipe("demo"),
        work=work,
        handing_back=asyncio.Event(),
    )


async def claim(tools: Tools, image: str) -> Claim | None:
    given = ImageToVideoInput(prompt="a", image_url=image, seed=1)
    await tools.store.submit("job", given.model_dump_json().encode(), max_waiting=9)
    return await tools.store.claim("me", lease=600)


def counted(tools: Tools) -> dict[str, float]:
    """How many jobs ended, by type of error."""
    text = tools.metrics.exposition(waiting=[], running=False, ready=True).decode()
    (family,) = (it for it in text_string_to_metric_families(text) if it.name == "ltx_requests")
    return {it.labels["error_type"]: it.value for it in family.samples if it.name == "ltx_requests_total"}


async def files(tools: Tools) -> list[str]:
    return list(await tools.store.read(lambda connection: connection.scalars(select(FILES.c.id)).all()))


async def test_the_address_of_a_clip_does_not_follow_from_its_request(tools, image, clip):
    for _ in range(2):
        await Attempt(await claim(tools, image), tools).run(ScriptedChild(clip))
        await tools.store.write(lambda connection: connection.execute(delete(JOBS)))
    assert len(await files(tools)) == 2


async def test_an_attempt_that_comes_too_late_leaves_the_clip_alone_counts_nothing_and_is_swept(
    tools, database, image, clip
):
    held = await claim(tools, image)
    metrics = Metrics(tools.work)
    elsewhere = replace(tools, metrics=metrics, store=Store(database, metrics))

    async def another_node_does_it() -> None:
        await tools.store.release(held, max_attempts=9)
        await Attempt(await tools.store.claim("other", lease=600), elsewhere).run(ScriptedChild(clip))

    other = clip.read_bytes() + b"another clip"
    late = tools.work / "late.mp4"
    late.write_bytes(other)
    await Attempt(held, tools).run(ScriptedChild(late, another_node_does_it))
    delivered = (await tools.store.get("job")).result["file"]
    assert (counted(tools), counted(elsewhere)) == ({}, {"": 1})
    assert await tools.blobs.read(delivered) == clip.read_bytes()
    (left,) = set(await files(tools)) - {delivered}
    expired = update(FILES).where(FILES.c.id == left).values(expires=0)
    await tools.store.write(lambda connection: connection.execute(expired))
    await sweep(tools.store, tools.blobs, row_retention=600)
    assert await files(tools) == [delivered]
    with pytest.raises(FileNotFoundError):
        await tools.blobs.read(left)


async def test_a_payload_is_read_once_and_beside_the_loop_also_where_its_image_is_bad(tools, monkeypatch):
    held = await claim(tools, "data:image/png;base64,bm8=")
    read = ImageToVideoInput.model_validate_json
    threads = []

    def watched(payload):
        threads.append(threading.current_thread())
        return read(payload)

    monkeypatch.setattr(ImageToVideoInput, "model_validate_json", watched)
    await Attempt(held, tools).run(ScriptedChild(None))
    assert (await tools.store.get("job")).failure.status == 422
    assert len(threads) == 1
    assert threads[0] is not threading.main_thread()


async def test_a_job_that_ends_with_its_last_lost_attempt_is_counted(tools, image):
    await Attempt(await claim(tools, image), tools).run(ScriptedChild(None))
    assert counted(tools) == {"internal_server_error": 1}


async def test_a_job_that_waits_again_is_not_counted(tools, image):
    more = replace(tools, settings=tools.settings.model_copy(update={"max_attempts": 2}))
    await Attempt(await claim(more, image), more).run(ScriptedChild(None))
    assert (await tools.store.get("job")).status == "IN_QUEUE"
    assert counted(more) == {}


async def test_a_failure_that_comes_too_late_is_not_counted(tools, image):
    held = await claim(tools, image)
    unreadable = ScriptedChild(tools.work / "gone.mp4", lambda: tools.store.release(held, max_attempts=9))
    await Attempt(held, tools).run(unreadable)
    assert (await tools.store.get("job")).status == "IN_QUEUE"
    assert counted(tools) == {}


async def test_a_node_that_must_leave_before_the_clip_is_kept_gives_the_job_back(tools, image, clip):
    lost = replace(tools, blobs=LostBlobs(tools.work / "blobs"))
    held = await claim(tools, image)

    async def drain() -> None:
        tools.handing_back.set()

    await Attempt(held, lost).run(ScriptedChild(clip, drain))
    assert (await tools.store.get("job")).status == "IN_QUEUE"
    assert counted(tools) == {}
