"""Permissions to upload: JWTs under a secret that all nodes share, so that any of them may be asked next.

A token lets its holder upload files for a key. A ticket lets anyone who holds it fill one file, whose id, name and
type are fixed: browsers put bytes at an address without a header of their own.
"""

import time
from dataclasses import asdict, dataclass
from typing import Any

import jwt

ALGORITHM = "HS256"
TOKEN, TICKET = "ltxd-upload-token", "ltxd-upload-ticket"
TOKEN_SECONDS = 3600
TICKET_SECONDS = 86_400


@dataclass(frozen=True, slots=True)
class Slot:
    """A file that may be uploaded. `keep_for`: seconds it is kept, None: as the settings say."""

    file_id: str
    name: str
    content_type: str
    key_id: str | None
    keep_for: float | None


class Tickets:
    """Issues and reads them."""

    def __init__(self, secret: bytes) -> None:
        self._secret = secret

    def token(self, key_id: str | None) -> tuple[str, float]:
        """A token for `key_id`, and when it ends, in seconds since 1970."""
        ends = int(time.time()) + TOKEN_SECONDS
        return self._sign(TOKEN, {"key_id": key_id}, ends=ends), ends

    def holder(self, token: str) -> "Holder | None":
        """For whom the token is; None if we did not issue it, or its time is over."""
        claims = self._read(TOKEN, token)
        return None if claims is None else Holder(claims["key_id"])

    def ticket(self, slot: Slot) -> str:
        """A ticket for `slot`."""
        return self._sign(TICKET, asdict(slot), ends=int(time.time()) + TICKET_SECONDS)

    def slot(self, ticket: str) -> Slot | None:
        """What the ticket is for; None if we did not issue it, or its time is over."""
        claims = self._read(TICKET, ticket)
        return None if claims is None else Slot(**{name: claims[name] for name in Slot.__dataclass_fields__})

    def _sign(self, audience: str, claims: dict[str, Any], *, ends: int) -> str:
        return jwt.encode(claims | {"aud": audience, "exp": ends}, self._secret, algorithm=ALGORITHM)

    def _read(self, audience: str, text: str) -> dict[str, Any] | None:
        try:
            return jwt.decode(
                text, self._secret, algorithms=[ALGORITHM], audience=audience, options={"require": ["exp", "aud"]}
            )
        except jwt.PyJWTError:
            return None


@dataclass(frozen=True, slots=True)
class Holder:
    """Who may upload: a key, or anyone while there are no keys."""

    key_id: str | None
