"""Short-lived tokens, which a program hands to a browser in place of its key: JWTs under a secret of all nodes."""

import time
from collections.abc import Sequence
from dataclasses import dataclass

import jwt

ALGORITHM = "HS256"
AUDIENCE = "ltxd"


@dataclass(frozen=True, slots=True)
class Token:
    """What a valid token says: for which key, None while there were none, and for which applications."""

    key_id: str | None
    apps: tuple[str, ...]


def issue(secret: bytes, key_id: str | None, *, apps: Sequence[str], seconds: int) -> str:
    """A token for `key_id` that is valid for `seconds`."""
    claims = {"aud": AUDIENCE, "sub": key_id or "", "apps": list(apps), "exp": int(time.time()) + seconds}
    return jwt.encode(claims, secret, algorithm=ALGORITHM)


def read(secret: bytes, text: str) -> Token | None:
    """What the token says; None if we did not issue it, or its time is over."""
    try:
        claims = jwt.decode(
            text, secret, algorithms=[ALGORITHM], audience=AUDIENCE, options={"require": ["exp", "sub"]}
        )
    except jwt.PyJWTError:
        return None
    return Token(claims["sub"] or None, tuple(claims["apps"]))
