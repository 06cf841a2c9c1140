"""Who calls. While there are no keys, anyone on this machine does; once there was one, a request carries a key.

`Authorization` holds the key, or a short-lived token in its place, after `Key` or `Bearer`. Browsers cannot set
headers everywhere: `?fal_jwt_token=` holds a token too.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from urllib.parse import parse_qs

from server.keys import Key, Keys
from server.roles import Target
from server.schema import APP, ENDPOINT
from server.tokens import Tokens

TOKENS_PATH = "/rest/tokens"
JWKS_PATH = "/rest/.well-known/jwks.json"

CLOSED_ROLES = ("run", "queue", "rest")
"""Their routes need a key. The pages of the site and stored files are for all; uploads bring a token of their own."""

APP_NAMES = frozenset({APP, APP.partition("/")[2], ENDPOINT})
"""How a token may name this application; clients leave out the owner."""


class UnauthorizedError(Exception):
    """The request does not show who calls. `str(error)` is told to the caller."""


@dataclass(frozen=True, slots=True)
class Access:
    """What decides who calls. `loopback`: whether the server can only be reached from this machine."""

    keys: Keys
    tokens: Tokens
    loopback: bool

    @property
    def keyless(self) -> bool:
        """Whether nobody needs a key."""
        return self.loopback and not self.keys.any

    def may_upload(self, key_id: str | None) -> bool:
        """Whether this key is valid, or with None: whether nobody needs one. Uploads show tickets that name it."""
        return self.keyless if key_id is None else self.keys.get(key_id) is not None

    def key(self, target: Target, headers: Mapping[str, str], query: str) -> tuple[Key | None, int | None]:
        """The key of who calls, None if none is needed; and when the token ends by which they call, None without one.

        Raises: UnauthorizedError.
        """
        # why: the path is what chooses the route, whatever role the caller named
        closed = target.path.removeprefix("/").partition("/")[0] in CLOSED_ROLES
        if self.keyless or not closed or target.path == JWKS_PATH:
            return None, None
        credentials, token = _credentials(headers, query)
        if not token:
            raise UnauthorizedError(
                f'Cannot access application "{APP}". Authentication is required to access this application.'
            )
        if (key := self.keys.match(credentials)) is not None:
            return key, None
        key, until = self._of_token(target, token)
        if key is None:
            raise UnauthorizedError("invalid key credentials")
        return key, until

    def _of_token(self, target: Target, text: str) -> tuple[Key | None, int | None]:
        token = self.tokens.read(text)
        # why: a token that could get another one would never end
        if token is None or token.key_id is None or target.path.startswith(TOKENS_PATH):
            return None, None
        if APP_NAMES.isdisjoint(token.apps):
            return None, None
        return self.keys.get(token.key_id), token.ends


def _credentials(headers: Mapping[str, str], query: str) -> tuple[str, str]:
    """What may be a key, and what may be a token."""
    scheme, _, given = headers.get("authorization", "").strip().partition(" ")
    credentials = given.strip() if scheme.lower() in ("key", "bearer") else ""
    # why: addresses end up in logs, so no key may stand in one
    return credentials, credentials or parse_qs(query).get("fal_jwt_token", [""])[0]
