"""Puts the server together and runs it until it is told to stop."""

import asyncio
import contextlib
import logging
import socket
import ssl
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from ipaddress import ip_address

import uvicorn
from starlette.types import ASGIApp

from pipeline.errors import RecipeError
from pipeline.recipe import load as load_recipe
from server.access import Access
from server.agent import Agent
from server.app import create_app
from server.bell import Bell
from server.blobs import Blobs, LocalBlobs
from server.certificates import node_certificate, secrets_in
from server.child import Command
from server.control import listening
from server.database import open_database, own
from server.deadlines import keep_deadlines
from server.jobs import Jobs
from server.keys import Keys
from server.media import Media
from server.metrics import Metrics
from server.orphans import Orphans
from server.settings import Settings
from server.signing import Signer
from server.store import Store
from server.sweeper import keep_clean, watch
from server.tls import ssl_context
from server.tokens import Tokens
from server.tunnel import start_tunnel
from server.uploads import Uploads
from server.webhooks import Webhooks

CLOSE_SECONDS = 3
BACKLOG = 2048
KEEP_ALIVE_SECONDS = 75
"""Longer than clients keep an idle connection (httpx 5 s, Node 4 s): whoever closes first must not be the server, or a
request that is just being sent is lost, and Python's client sends it again."""

log = logging.getLogger("ltxd")


class StartError(Exception):
    """The server cannot start as it is set up."""


@dataclass(frozen=True, slots=True)
class Ports:
    """Where the server listens; `tls` and `proxy` are None when they are off."""

    http: int
    tls: int | None
    proxy: int | None = None


async def serve(
    settings: Settings, *, command: Command, stop: asyncio.Event, on_start: Callable[[Ports], None] = lambda _: None
) -> None:
    """Runs the server until `stop` is set, then ends it in order. `on_start` is called once the ports answer.

    Raises: StartError, StoreError, ModelGivenUpError.
    """
    if settings.proxy_port and not settings.tls_port:
        raise StartError("proxy_port is set and tls_port is 0: the proxy leads to the HTTPS port, so turn that on")
    try:
        recipe = load_recipe(settings.recipe, semantics=settings.semantics)
    except RecipeError as error:
        raise StartError(str(error)) from error
    bell = Bell()
    with contextlib.ExitStack() as held:
        http = held.enter_context(_listen(settings.host, settings.port))
        tls = held.enter_context(_listen(settings.host, settings.tls_port)) if settings.tls_port else None
        proxy = held.enter_context(_listen(settings.host, settings.proxy_port)) if settings.proxy_port else None
        if settings.database_url:
            # why: half-made clips and uploads lie in the folder, and are removed at the start
            held.enter_context(own(settings.data))
        database = await asyncio.to_thread(
            open_database, settings.data, url=settings.database_url, on_change=bell.ring
        )
        metrics = Metrics(settings.data)
        store = Store(database, metrics)
        try:
            keys = Keys(database)
            await keys.load()
            secrets = secrets_in(database, settings.data)
            await secrets.load()
            access = _access(settings, keys, Tokens(secrets))
            signer = Signer(secrets)
            if not database.shared and (back := await store.recover(max_attempts=settings.max_attempts)):
                log.info("%d jobs that were running when the server died wait again", back)
            blobs = _blobs(settings)
            jobs = Jobs(settings, store, blobs, bell, recipe=recipe)
            media = Media(settings, own_file=partial(jobs.file, max_bytes=settings.max_image_bytes))
            agent = Agent(settings, store, blobs, media, bell, metrics, recipe=recipe, command=command)
            orphans = Orphans(store)
            uploads = Uploads(settings, store, blobs)
            webhooks = Webhooks(database, jobs, signer, bell, metrics, allowed=settings.allow_private_networks)
            app = create_app(
                settings,
                store=store,
                blobs=blobs,
                jobs=jobs,
                agent=agent,
                metrics=metrics,
                orphans=orphans,
                uploads=uploads,
                access=access,
                signer=signer,
            )
            servers = [(_server(app), http)]
            if tls is not None:
                context = ssl_context(await node_certificate(settings, secrets))
                servers.append((_server(app, context), tls))
            working = asyncio.create_task(agent.run())
            keeping = [
                asyncio.create_task(keep_deadlines(store, bell, orphan_seconds=settings.orphan_seconds)),
                asyncio.create_task(watch(settings, store, held=lambda: agent.held)),
                asyncio.create_task(webhooks.run()),
                asyncio.create_task(keep_clean(settings, store, blobs, uploads)),
                asyncio.create_task(secrets.keep_fresh()),
            ]
            serving = [asyncio.create_task(server.serve(sockets=[on])) for server, on in servers]
            ports = Ports(
                http.getsockname()[1],
                None if tls is None else tls.getsockname()[1],
                None if proxy is None else proxy.getsockname()[1],
            )
            log.info("listening on %s, ports %d (HTTP) and %s (HTTPS)", settings.host, ports.http, ports.tls)
            tunnel = None
            if proxy is not None and tls is not None:
                tunnel = await start_tunnel(proxy, tls=tls.getsockname()[:2])
                log.info("HTTPS_PROXY=http://%s:%d leads fal's names here", settings.host, ports.proxy)
            if access.keyless:
                log.info("there are no keys: only programs on this machine may call")
            stopping = asyncio.create_task(stop.wait())
            async with listening(settings.data, keys, secrets):
                on_start(ports)
                await asyncio.wait({stopping, working, *serving}, return_when=asyncio.FIRST_COMPLETED)
            log.info("stopping")
            stopping.cancel()
            for task in keeping:
                task.cancel()
            await asyncio.gather(*keeping, return_exceptions=True)
            await agent.drain()
            for server, _ in servers:
                server.should_exit = True
            if tunnel is not None:
                tunnel.close()
            await asyncio.gather(*serving)
            await working
        finally:
            await store.close()


def _blobs(settings: Settings) -> Blobs:
    if not settings.blobs_url:
        return LocalBlobs(settings.data / "blobs")
    # why: its library takes a moment to load, which only clusters need to spend
    from server.bucket import BucketBlobs

    return BucketBlobs(settings.blobs_url, cache=settings.data / "cache" / "blobs")


class _QuietServer(uvicorn.Server):
    """A server that leaves the signals to us: the jobs are brought home before the connections are closed."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Captures none."""
        yield


def _server(app: ASGIApp, context: ssl.SSLContext | None = None) -> uvicorn.Server:
    config = uvicorn.Config(
        app,
        lifespan="off",
        # why: no route speaks it, and an answer over HTTP says so as for every other path
        ws="none",
        access_log=False,
        log_config=None,
        server_header=False,
        timeout_graceful_shutdown=CLOSE_SECONDS,
        backlog=BACKLOG,
        timeout_keep_alive=KEEP_ALIVE_SECONDS,
        ssl_context_factory=None if context is None else lambda _config, _default: context,
    )
    return _QuietServer(config)


def _listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # why: asyncio turns off delayed sending only for sockets that say they are TCP; without it every answer on a kept
    # connection waits 40 ms for the one before to be acknowledged
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
    except OSError as error:
        listener.close()
        raise StartError(f"cannot listen on {host} port {port}: {error.strerror or error}") from error
    listener.listen(BACKLOG)
    return listener


def _access(settings: Settings, keys: Keys, tokens: Tokens) -> Access:
    """What decides who calls.

    Raises: StartError if the server could be reached from elsewhere and there was never a key.
    """
    loopback = _is_loopback(settings.host)
    if not loopback and not keys.any:
        raise StartError(
            f"host is {settings.host!r}; without keys only a loopback address such as 127.0.0.1 is allowed, "
            "for anyone who reaches the port may use the device: make a key with `ltxd keys create`"
        )
    return Access(keys, tokens, loopback=loopback)


def _is_loopback(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
