"""What a test knows of a store: jobs, their calls and webhooks, files. And a node, whose process may be killed."""

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal, cast

import httpcore2

from pipeline.recipe import load
from pipeline.types import Generated, Size
from pipeline.wire import Done, Generate
from server.attempt import Attempt, Tools
from server.bell import Bell
from server.blobs import Blobs
from server.child import Child
from server.database import Database
from server.jobs import Jobs
from server.metrics import Metrics
from server.model import Model, ModelState
from server.orphans import Orphans
from server.records import Claim
from server.settings import Settings
from server.shared import Secrets
from server.signing import Signer, make_signing_key
from server.start_images import StartImages
from server.store import Store
from server.uploads import Uploads
from server.webhooks import Webhooks

MAX_ATTEMPTS = 3
CLIP = b"a clip"
RECIPE = load("demo")
KEY = make_signing_key()
SIGNER = Signer(cast("Secrets", SimpleNamespace(current=lambda _name: KEY)))

Death = Literal["before put", "after put", "before delete", "after delete"]


@dataclass
class Hook:
    """A job's webhook. waits: its time has not come, or who delivers it was killed."""

    state: Literal["due", "waits", "done"] = "due"
    tries: int = 0


@dataclass
class KnownJob:
    """`place` is that of its submit, `code` the status that it ended with, `old`: retention is over.

    `created` and `seen` count what happened to callers until its submit, and until its caller was last seen.
    """

    place: int
    priority: int
    key: str | None
    size: int
    hook: Hook | None = None
    asked: str | None = None
    call: Literal["attended", "lost", "long lost"] | None = None
    created: int = 0
    seen: int = 0
    must_begin: Literal["some day", "by then", "too late"] = "some day"
    status: str = "IN_QUEUE"
    attempts: int = 0
    owner: str | None = None
    begun: bool = False
    cancelled: bool = False
    lapsed: bool = False
    code: int | None = None
    file: str | None = None
    old: bool = False

    @property
    def late(self) -> bool:
        return self.status == "IN_QUEUE" and not self.begun and self.must_begin == "too late"

    @property
    def adoptable(self) -> bool:
        lost = self.call in ("lost", "long lost")
        return lost and not self.cancelled and not self.old and self.code != 499

    def end(self, code: int) -> None:
        assert self.code is None
        self.status, self.owner, self.code, self.size = "COMPLETED", None, code, 0

    def give_up(self, *, counted: bool = True) -> None:
        if self.cancelled:
            self.end(499)
        elif counted and self.attempts >= MAX_ATTEMPTS:
            self.end(500)
        else:
            self.status, self.owner = "IN_QUEUE", None
            self.attempts -= not counted


@dataclass
class KnownFile:
    """A file's row, and whether its bytes are there. `expired`: when, in the order of these files."""

    content: bytes
    has_bytes: bool = False
    expired: int | None = None


class KilledError(BaseException):
    """The process has died: nothing catches it, and nothing is written any more."""


class Mortal:
    """Blobs whose process is killed at the moment that `dies` names, once."""

    def __init__(self, inner: Blobs) -> None:
        self.inner = inner
        self.dies: Death | None = None

    def _at(self, moment: Death) -> None:
        if self.dies == moment:
            self.dies = None
            raise KilledError

    async def put(self, blob_id: str, source: Path) -> None:
        self._at("before put")
        await self.inner.put(blob_id, source)
        self._at("after put")

    async def read(self, blob_id: str) -> bytes:
        return await self.inner.read(blob_id)

    async def local(self, blob_id: str) -> Path:
        return await self.inner.local(blob_id)

    async def delete(self, blob_id: str) -> None:
        self._at("before delete")
        await self.inner.delete(blob_id)
        self._at("after delete")

    async def check(self) -> None:
        await self.inner.check()


class Receiver(httpcore2.AsyncNetworkBackend):
    """Who gets webhooks, and answers each with `status`."""

    status = 200

    async def connect_tcp(self, *_where: Any) -> httpcore2.AsyncNetworkStream:
        return httpcore2.AsyncMockStream([f"HTTP/1.1 {self.status} x\r\ncontent-length: 0\r\n\r\n".encode()])


async def resolve(_host: str, _port: int) -> list[str]:
    return ["93.184.215.14"]


class Node:
    """One process: the product's own code around one database and one place for blobs."""

    def __init__(self, name: str, database: Database, blobs: Blobs, *, data: Path) -> None:
        self.name = name
        self.database = database
        self.blobs = Mortal(blobs)
        self.settings = Settings(data=data, min_free_bytes=0)
        self.store = Store(database)
        self.jobs = Jobs(self.settings, self.store, self.blobs, Bell(), recipe=RECIPE)
        self.orphans = Orphans(self.store)
        self.receiver = Receiver()
        (data / "work").mkdir(parents=True, exist_ok=True)

    # why: what they need takes a while to make, and many examples need none

    @cached_property
    def uploads(self) -> Uploads:
        return Uploads(self.settings, self.store, self.blobs)

    @cached_property
    def metrics(self) -> Metrics:
        return Metrics(self.settings.data)

    @cached_property
    def webhooks(self) -> Webhooks:
        where = {"allowed": (), "resolve": resolve, "connector": self.receiver}
        return Webhooks(self.database, self.jobs, SIGNER, Bell(), self.metrics, **where)

    @contextmanager
    def dying(self, at: Death | None) -> Iterator[None]:
        """Its process dies in the block, if it comes to that moment."""
        self.blobs.dies = at
        try:
            yield
        except KilledError:
            pass
        finally:
            self.blobs.dies = None

    async def attempt(self, claim: Claim) -> None:
        """One attempt at the job of `claim`; its clip is made at once."""

        class Quick:
            def send(self, message: object) -> None:
                if isinstance(message, Generate):
                    self.made = message
                    message.output.write_bytes(CLIP)

            async def next(self, *, within: float) -> Done:
                assert within > 0
                request = self.made.request
                return Done(
                    Generated(self.made.output, "a", request.seed, Size(64, 64), 9, 24.0, False, {"denoise": 1.0})
                )

        async def nothing(*_given: object) -> None:
            return

        async def fetch(*_given: object) -> Size:
            return Size(64, 64)

        images = SimpleNamespace(fetch=fetch, forget=nothing, path=lambda _id: Path("image.png"))
        model = SimpleNamespace(state=ModelState("none"), kill=nothing)
        tools = Tools(
            settings=self.settings,
            store=self.store,
            blobs=self.blobs,
            images=cast("StartImages", images),
            model=cast("Model", model),
            metrics=self.metrics,
            bell=Bell(),
            recipe=RECIPE,
            work=self.settings.data / "work",
            handing_back=asyncio.Event(),
        )
        await Attempt(claim, tools).run(cast("Child", Quick()))


@dataclass(frozen=True)
class Place:
    """Where one example lives: what opens every node's database and blobs, and what lists all blobs."""

    folder: Path
    open_nodes: Callable[[], list[tuple[Database, Blobs]]]
    blob_ids: Callable[[], set[str]]

    def nodes(self, names: tuple[str, ...]) -> list[Node]:
        opened = zip(names, self.open_nodes(), strict=False)
        return [Node(name, database, blobs, data=self.folder / name) for name, (database, blobs) in opened]
