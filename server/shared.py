"""Secrets that every node of one store shares: made by the first that asks, then the same for all, until turned over.

A secret has generations. A new one stands in the store for a while before it is used, so that all nodes, and those who
check signatures, know it by then; the one before it stays known for a while after. A row is named by its secret, and
from the second generation on also by when that begins: `webhook-signing-key@1764012345`.
"""

import asyncio
import logging
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal, get_args

from sqlalchemy import Connection, delete, func, insert, select, update
from sqlalchemy.exc import IntegrityError

from server.database import Database, StoreError
from server.tables import SECRETS

Name = Literal["authority", "webhook-signing-key", "token-secret"]
NAMES: tuple[Name, ...] = get_args(Name)

DAY = 86_400.0
REFRESH_SECONDS = 30.0
JWKS_SECONDS = 3600
"""How long a cache between may keep the published keys."""
# why: those who check webhooks keep the published keys for up to a day (fal's documentation, page "Webhooks"), and may
# have got them from a cache that asked a node which had not read the new one; clients on other machines must be given
# an authority by hand; a token is only read by nodes
LEAD: Mapping[Name, float] = {
    "authority": DAY,
    "webhook-signing-key": DAY + JWKS_SECONDS + 2 * REFRESH_SECONDS,
    "token-secret": 2 * REFRESH_SECONDS,
}
KEPT_SECONDS = DAY
"""How long a generation is known after the next has begun: no upload ticket lives longer."""

log = logging.getLogger("ltxd.secrets")


@dataclass(frozen=True, slots=True)
class Generation:
    """One value of a secret, used from `since` on, in seconds since 1970."""

    value: bytes
    since: float


class Secrets:
    """The secrets in the store, as last read. `make` makes one; `left` holds what may be a first one, never a next."""

    def __init__(
        self, database: Database, make: Mapping[Name, Callable[[], bytes]], *, left: Mapping[Name, bytes]
    ) -> None:
        self._database = database
        self._make = make
        self._left = left
        self._generations: dict[Name, list[Generation]] = {}

    async def load(self) -> None:
        """Reads the secrets from the store, and makes those that are not there."""
        found = await self._database.read(_read)
        for name in NAMES:
            if name not in found:
                found = await self._first(name)
        self._generations = found

    async def keep_fresh(self) -> None:
        """Reads them again and again: another node may have turned one over."""
        while True:
            await asyncio.sleep(REFRESH_SECONDS)
            try:
                await self.load()
            except StoreError as error:
                log.warning("the secrets cannot be read: %s", error)

    def current(self, name: Name) -> bytes:
        """The value that is used now."""
        now = time.time()
        return [generation for generation in self._generations[name] if generation.since <= now][-1].value

    def known(self, name: Name) -> list[bytes]:
        """Every value that may be met now or soon, the oldest first."""
        now, generations = time.time(), self._generations[name]
        ends = [after.since + KEPT_SECONDS for after in generations[1:]] + [math.inf]
        return [one.value for one, end in zip(generations, ends, strict=True) if now < end]

    async def rotate(self, name: Name, *, at_once: bool) -> float:
        """A new generation, and when it begins. `at_once`: now, and those before are void."""
        now = int(time.time())
        since = 0.0 if at_once else now + LEAD[name]
        made = self._make[name]()

        def work(connection: Connection) -> None:
            _alone(connection)
            begins = [generation.since for generation in _read(connection)[name]]
            current = max(at for at in begins if at <= now)
            oldest = current if current < now - KEPT_SECONDS else 0.0
            # why: one that waits for its time gives way, and those whose time is over go
            gone = [_row(name, at) for at in begins if at_once or not oldest <= at <= current]
            connection.execute(delete(SECRETS).where(SECRETS.c.name.in_(gone)))
            connection.execute(insert(SECRETS), {"name": _row(name, since), "value": made})

        await self._database.write(work)
        await self.load()
        return max(since, now)

    async def amend(self, name: Name, change: Callable[[bytes], bytes]) -> None:
        """Changes every generation of a secret in the store by `change`, where that makes a difference."""

        def work(connection: Connection) -> None:
            _alone(connection)
            for generation in _read(connection)[name]:
                changed = change(generation.value)
                if changed != generation.value:
                    row = SECRETS.c.name == _row(name, generation.since)
                    connection.execute(update(SECRETS).where(row).values(value=changed))

        if any(change(value) != value for value in self.known(name)):
            await self._database.write(work)
            await self.load()

    async def _first(self, name: Name) -> dict[Name, list[Generation]]:
        made = self._left[name] if name in self._left else self._make[name]()
        try:
            await self._database.write(
                lambda connection: connection.execute(insert(SECRETS), {"name": name, "value": made})
            )
        except IntegrityError:
            log.debug("another node was faster to make the secret %s", name)
        return await self._database.read(_read)


def _alone(connection: Connection) -> None:
    """Waits until no other node is changing secrets, and keeps them from it until the transaction ends."""
    if connection.dialect.name == "postgresql":
        # why: locked rows would not do, for the next one would not see what was inserted meanwhile
        connection.execute(select(func.pg_advisory_xact_lock(func.hashtext(SECRETS.name))))


def _read(connection: Connection) -> dict[Name, list[Generation]]:
    found: dict[Name, list[Generation]] = {}
    for row in connection.execute(select(SECRETS)):
        kind, since = _named(row.name)
        for name in NAMES:
            if name == kind:
                found.setdefault(name, []).append(Generation(bytes(row.value), since))
    return {name: sorted(generations, key=lambda one: one.since) for name, generations in found.items()}


def _row(name: Name, since: float) -> str:
    return f"{name}@{since:.0f}" if since else name


def _named(row: str) -> tuple[str, float]:
    name, _, since = row.partition("@")
    return name, float(since or 0)
