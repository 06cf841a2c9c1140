"""Keys: who may call, and for whom a job is done. A key is `id:secret`; only the digest of the secret is stored.

A secret has 256 random bits, so a plain digest is as safe as a slow one. A revoked key stays in the table: once there
was a key, nobody calls without one.
"""

import hashlib
import hmac
import logging
import secrets
import time
from dataclasses import dataclass

from sqlalchemy import Connection, insert, select, update

from server.database import Database, StoreUnavailableError
from server.records import NOBODY, Sender, WebhookTarget
from server.tables import KEYS

REFRESH_SECONDS = 1.0
"""How long a key that another node revoked may go on."""

NO_DIGEST = hashlib.sha256(b"").hexdigest()

log = logging.getLogger("ltxd.keys")


@dataclass(frozen=True, slots=True)
class Key:
    """What is known of a key. None as `max_in_flight`: any number of jobs."""

    id: str
    name: str
    max_in_flight: int | None
    private_webhooks: bool
    created: float
    revoked: float | None


class Keys:
    """The keys in the store, remembered for a moment: every request asks for one."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._known: dict[str, tuple[Key, str]] = {}
        self._read_at = float("-inf")

    async def load(self) -> None:
        """Reads the keys from the store."""
        self._read_at = time.monotonic()

        def work(connection: Connection) -> dict[str, tuple[Key, str]]:
            rows = connection.execute(select(KEYS).order_by(KEYS.c.created)).all()
            return {
                row.id: (
                    Key(row.id, row.name, row.max_in_flight, bool(row.private_webhooks), row.created, row.revoked),
                    row.hash,
                )
                for row in rows
            }

        self._known = await self._database.read(work)

    async def refresh(self) -> None:
        """Reads the keys again if that was long ago. A store that fails now is no reason to turn everyone away."""
        if time.monotonic() - self._read_at >= REFRESH_SECONDS:
            try:
                await self.load()
            except StoreUnavailableError as error:
                log.warning("the keys cannot be read: %s", error)

    @property
    def any(self) -> bool:
        """Whether there ever was a key."""
        return bool(self._known)

    @property
    def all(self) -> list[Key]:
        """Every key, the oldest first."""
        return [key for key, _ in self._known.values()]

    def get(self, key_id: str) -> Key | None:
        """The key, unless there is none or it is revoked."""
        key, _ = self._known.get(key_id, (None, ""))
        return key if key is not None and key.revoked is None else None

    def match(self, credentials: str) -> Key | None:
        """The key that `credentials` are, in a time that does not tell how much of the secret was right."""
        key_id, _, secret = credentials.partition(":")
        _, digest = self._known.get(key_id, (None, NO_DIGEST))
        right = hmac.compare_digest(digest, _digest(secret))
        return self.get(key_id) if right else None

    async def create(
        self, name: str, *, max_in_flight: int | None = None, private_webhooks: bool = False
    ) -> tuple[Key, str]:
        """A new key, and its credentials, which are told this once."""
        secret = secrets.token_hex(32)
        key = Key(secrets.token_hex(8), name, max_in_flight, private_webhooks, time.time(), None)
        row = {
            "id": key.id,
            "name": name,
            "hash": _digest(secret),
            "max_in_flight": max_in_flight,
            "private_webhooks": int(private_webhooks),
            "created": key.created,
        }
        await self._database.write(lambda connection: connection.execute(insert(KEYS), row))
        await self.load()
        return key, f"{key.id}:{secret}"

    async def revoke(self, key_id: str) -> bool:
        """Ends the key; False if there is none of this id, or it was revoked before."""
        query = update(KEYS).where(KEYS.c.id == key_id, KEYS.c.revoked.is_(None)).values(revoked=time.time())
        revoked = await self._database.write(lambda connection: connection.execute(query).rowcount) > 0
        await self.load()
        return revoked


def sender_of(key: Key | None, webhook: WebhookTarget | None = None) -> Sender:
    """The sender that a job of `key` is written down for."""
    if key is None:
        return NOBODY if webhook is None else Sender(webhook=webhook)
    return Sender(key.id, key.max_in_flight, webhook)


def _digest(secret: str) -> str:
    return hashlib.sha256(secret.encode("utf-8", "surrogatepass")).hexdigest()
