"""Tells callers of the ends of their jobs: an outbox in the store, written with the job, emptied at least once.

Nothing that ends a job knows of it: a row is due once its job has ended. A delivery holds its row for as long as it
may take; another node, or this one after a crash, tries again if it was lost.
"""

import asyncio
import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from ipaddress import ip_address, ip_network
from typing import Any
from urllib.parse import urlsplit

import httpcore2
import httpx2
from sqlalchemy import Connection, select, update

from server.bell import Bell
from server.database import Database
from server.egress import (
    PRIVATE,
    ForbiddenAddressError,
    GuardedBackend,
    GuardedTransport,
    Network,
    Resolve,
    permitted,
    public_trust,
    system_resolve,
)
from server.errors import FalError, plain
from server.jobs import JobNotFoundError, Jobs
from server.keys import Key
from server.metrics import Metrics
from server.records import Job, WebhookTarget
from server.signing import Signer
from server.tables import JOBS, WEBHOOKS

# Source: fal's documentation, page "Webhooks": the time a receiver has, and how often is tried again
FIRST_TIMEOUT = 15.0
RETRY_TIMEOUT = 120.0
MAX_RETRIES = 31
FIRST_WAIT = 5.0
LONGEST_WAIT = 3600.0

CONNECT_TIMEOUT = 5.0
LEASE_MARGIN = 30.0
AT_ONCE = 32
RECHECK_SECONDS = 1.0
MAX_URL = 2048
NO_KEY = "local"
"""How payloads name the caller where there are no keys."""

log = logging.getLogger("ltxd.webhooks")


@dataclass(frozen=True, slots=True)
class Due:
    """A webhook to deliver, ours for the time that takes. `tries` counts this one."""

    job_id: str
    url: str
    origin: str
    private: bool
    tries: int


class RefusedError(Exception):
    """There is no use in another try. `str(error)` is told in the job's log."""


class FailedError(Exception):
    """The receiver did not take it this time. `str(error)` is told in the job's log."""


def target(url: str, *, origin: str, key: Key | None, allowed: Sequence[Network]) -> WebhookTarget:
    """The webhook at `url`, if it can be one. Where a name leads is only seen when it is delivered.

    Raises: FalError.
    """
    try:
        urlsplit(url)  # stricter about brackets
        parsed = httpx2.URL(url)
    except (httpx2.InvalidURL, ValueError) as error:
        raise FalError(plain("bad_request", "fal_webhook is not a URL")) from error
    if len(url) > MAX_URL or parsed.scheme not in ("http", "https") or not parsed.host:
        message = f"fal_webhook must be a http:// or https:// URL of at most {MAX_URL} characters"
        raise FalError(plain("bad_request", message))
    private = key is not None and key.private_webhooks
    if not _may_lead_to(parsed.host, [*allowed, *(PRIVATE if private else ())]):
        message = (
            "fal_webhook leads to this machine or into a private network: this needs a key made with "
            "--private-webhooks, or the network in LTX_ALLOW_PRIVATE_NETWORKS"
        )
        raise FalError(plain("bad_request", message))
    return WebhookTarget(url, origin, private)


class Webhooks:
    """Delivers what is due. `run` is its life."""

    def __init__(
        self,
        database: Database,
        jobs: Jobs,
        signer: Signer,
        bell: Bell,
        metrics: Metrics,
        *,
        allowed: Sequence[Network],
        resolve: Resolve = system_resolve,
        connector: httpcore2.AsyncNetworkBackend | None = None,
    ) -> None:
        self._database = database
        # built once: it is asked at every change
        self._first = (
            select(WEBHOOKS.c.job_id, WEBHOOKS.c.tries)
            .join(JOBS, JOBS.c.id == WEBHOOKS.c.job_id)
            .where(JOBS.c.status == "COMPLETED", WEBHOOKS.c.next_try <= database.now)
            .order_by(WEBHOOKS.c.next_try)
            .limit(1)
        )
        self._jobs = jobs
        self._signer = signer
        self._bell = bell
        self._trust = public_trust()
        self._metrics = metrics
        connector = connector or httpcore2.AnyIOBackend()
        self._backends = {
            False: GuardedBackend(allowed, resolve=resolve, connector=connector),
            True: GuardedBackend([*allowed, *PRIVATE], resolve=resolve, connector=connector),
        }

    async def run(self) -> None:
        """Delivers for ever."""
        free = asyncio.Semaphore(AT_ONCE)

        async def deliver(due: Due) -> None:
            try:
                await self.deliver(due)
            except Exception:
                log.exception("webhook of job %s: try %d failed", due.job_id, due.tries)
            finally:
                free.release()

        async with asyncio.TaskGroup() as deliveries:
            while True:
                await free.acquire()
                seen = self._bell.rings
                try:
                    due = await self.claim()
                except Exception:
                    log.exception("webhooks cannot be read at the moment")
                    due = None
                if due is not None:
                    deliveries.create_task(deliver(due))
                    continue
                free.release()
                await self._bell.wait(seen, at_most=RECHECK_SECONDS)

    async def claim(self) -> Due | None:
        """A webhook that is due, from now on ours to deliver; None if there is none."""

        def work(connection: Connection) -> Due | None:
            found = connection.execute(self._first.with_for_update(of=WEBHOOKS, skip_locked=True)).one_or_none()
            if found is None:
                return None
            held = _timeout(found.tries + 1) + LEASE_MARGIN
            row = connection.execute(
                update(WEBHOOKS)
                .where(WEBHOOKS.c.job_id == found.job_id)
                .values(tries=found.tries + 1, next_try=self._database.now + held)
                .returning(WEBHOOKS)
            ).one()
            return Due(row.job_id, row.url, row.origin, bool(row.private), row.tries)

        # why: almost always there is none, and looking is cheaper than a turn at the writer
        if await self._database.read(lambda connection: connection.execute(self._first).one_or_none()) is None:
            return None
        return await self._database.write(work)

    async def deliver(self, due: Due) -> None:
        """Delivers once, and notes when to try again, or that there is no need to."""
        try:
            job = await self._jobs.get(due.job_id)
            await self._post(due, await self._body(job, due.origin), user_id=job.key_id or NO_KEY)
        except JobNotFoundError:
            return
        except RefusedError as error:
            await self._give_up(due, str(error))
        except FailedError as error:
            if due.tries > MAX_RETRIES:
                await self._give_up(due, str(error))
                return
            wait = min(FIRST_WAIT * 2 ** (due.tries - 1), LONGEST_WAIT)
            log.warning("webhook of job %s: try %d: %s; next in %g s", due.job_id, due.tries, error, wait)
            self._metrics.delivered(ok=False)
            await self._note(due, wait)
        else:
            log.info("webhook of job %s: delivered, try %d", due.job_id, due.tries)
            await self._note(due, None)
            self._metrics.delivered(ok=True)

    async def _body(self, job: Job, origin: str) -> bytes:
        """What is told of an ended job.

        Raises: RefusedError if its result has expired.
        """
        told: dict[str, Any] = {"request_id": job.id, "gateway_request_id": job.id}
        if job.failure is None:
            try:
                told |= {"status": "OK", "payload": await self._jobs.output(job, origin=origin)}
            except FalError as error:
                raise RefusedError("the result has expired") from error
        else:
            message = f"Invalid status code: {job.failure.status}"
            told |= {"status": "ERROR", "error": message, "payload": job.failure.body()}
        # why: the whole clip may be within
        return (await asyncio.to_thread(json.dumps, told)).encode()

    async def _post(self, due: Due, body: bytes, *, user_id: str) -> None:
        """Sends `body`.

        Raises: RefusedError, FailedError.
        """
        headers = self._signer.headers(body, request_id=due.job_id, user_id=user_id)
        headers |= {"content-type": "application/json", "user-agent": "ltxd"}
        timeout = _timeout(due.tries)
        client = httpx2.AsyncClient(
            transport=GuardedTransport(self._backends[due.private], self._trust),
            timeout=httpx2.Timeout(timeout, connect=CONNECT_TIMEOUT),
            follow_redirects=False,
            trust_env=False,
        )
        try:
            # why: what a receiver says besides its status is nothing to us, however long it is
            post = client.stream("POST", due.url, content=body, headers=headers)
            async with asyncio.timeout(timeout), client, post as answer:
                status = answer.status_code
        except ForbiddenAddressError as error:
            raise RefusedError("it leads into a private network") from error
        except TimeoutError as error:
            raise FailedError(f"no answer within {timeout:g} s") from error
        except (httpx2.HTTPError, httpx2.InvalidURL, httpcore2.ConnectError, OSError, ValueError) as error:
            raise FailedError(f"no proper answer ({type(error).__name__})") from error
        if 300 <= status < 400:
            raise RefusedError(f"it answers {status}, and redirects are not followed")
        if not 200 <= status < 300:
            raise FailedError(f"it answers {status}")

    async def _note(self, due: Due, wait: float | None) -> None:
        next_try = None if wait is None else self._database.now + wait
        # why: a delivery that outlasted its lease was tried again elsewhere, which then knows better
        mine = (WEBHOOKS.c.job_id == due.job_id, WEBHOOKS.c.tries == due.tries)
        note = update(WEBHOOKS).where(*mine).values(next_try=next_try)
        await self._database.write(lambda connection: connection.execute(note))

    async def _give_up(self, due: Due, reason: str) -> None:
        log.warning("webhook of job %s: given up after try %d: %s", due.job_id, due.tries, reason)
        self._metrics.delivered(ok=False)
        await self._note(due, None)
        await self._jobs.store.log(due.job_id, f"The webhook was given up: {reason}", level="WARN")


def _timeout(tries: int) -> float:
    return FIRST_TIMEOUT if tries == 1 else RETRY_TIMEOUT


def _may_lead_to(host: str, allowed: Sequence[Network]) -> bool:
    if host == "localhost" or host.endswith(".localhost"):
        return any(network.overlaps(ip_network("127.0.0.1")) for network in allowed if network.version == 4)
    try:
        return permitted(str(ip_address(host)), allowed)
    except ValueError:
        return True
