"""Short-lived permissions: JWTs under a secret of all nodes, so that any of them may be asked next.

A token is handed to a browser in place of a key. An upload token lets its holder upload files for a key. A ticket lets
anyone who holds it fill one file, whose id, name and type are fixed: browsers put bytes at an address without a header
of their own. What was got by a token ends with it.
"""

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import jwt

from server.shared import Secrets

ALGORITHM = "HS256"
UPLOAD_SECONDS = 3600
TICKET_SECONDS = 86_400

Audience = Literal["ltxd", "ltxd-upload-token", "ltxd-upload-ticket"]


@dataclass(frozen=True, slots=True)
class Token:
    """What a valid token says: for which key, None while there were none, for which applications, and when it ends."""

    key_id: str | None
    apps: tuple[str, ...]
    ends: int


@dataclass(frozen=True, slots=True)
class Holder:
    """Who may upload: a key, or anyone while there are no keys. `until`: when the token ends it came by, or None."""

    key_id: str | None
    until: int | None = None


@dataclass(frozen=True, slots=True)
class Slot:
    """A file that may be uploaded. `keep_for`: seconds it is kept, None: as the settings say."""

    file_id: str
    name: str
    content_type: str
    key_id: str | None
    keep_for: float | None


class Tokens:
    """Issues and reads them. Times are in seconds since 1970."""

    def __init__(self, secrets: Secrets) -> None:
        self._secrets = secrets

    def token(self, key_id: str | None, *, apps: Sequence[str], seconds: int) -> str:
        """A token for `key_id` that is valid for `seconds`."""
        return self._sign("ltxd", {"sub": key_id or "", "apps": list(apps)}, ends=int(time.time()) + seconds)

    def read(self, text: str) -> Token | None:
        """What the token says; None if we did not issue it, or its time is over."""
        claims = self._read("ltxd", text)
        return None if claims is None else Token(claims["sub"] or None, tuple(claims["apps"]), claims["exp"])

    def upload_token(self, holder: Holder) -> tuple[str, int]:
        """A token for uploads, and when it ends."""
        ends = _at_most(UPLOAD_SECONDS, holder.until)
        return self._sign("ltxd-upload-token", asdict(holder), ends=ends), ends

    def holder(self, text: str) -> Holder | None:
        """For whom the upload token is; None if we did not issue it, or its time is over."""
        claims = self._read("ltxd-upload-token", text)
        return None if claims is None else Holder(claims["key_id"], claims["until"])

    def ticket(self, slot: Slot, *, until: int | None) -> str:
        """A ticket for `slot`."""
        return self._sign("ltxd-upload-ticket", asdict(slot), ends=_at_most(TICKET_SECONDS, until))

    def slot(self, text: str) -> Slot | None:
        """What the ticket is for; None if we did not issue it, or its time is over."""
        claims = self._read("ltxd-upload-ticket", text)
        return None if claims is None else Slot(**{name: claims[name] for name in Slot.__dataclass_fields__})

    def _sign(self, audience: Audience, claims: dict[str, Any], *, ends: int) -> str:
        secret = self._secrets.current("token-secret")
        return jwt.encode(claims | {"aud": audience, "exp": ends}, secret, algorithm=ALGORITHM)

    def _read(self, audience: Audience, text: str) -> dict[str, Any] | None:
        for secret in self._secrets.known("token-secret"):
            try:
                return jwt.decode(
                    text, secret, algorithms=[ALGORITHM], audience=audience, options={"require": ["exp", "aud"]}
                )
            except jwt.InvalidSignatureError:
                continue
            except jwt.PyJWTError:
                return None
        return None


def _at_most(seconds: int, until: int | None) -> int:
    ends = int(time.time()) + seconds
    return ends if until is None else min(ends, until)
