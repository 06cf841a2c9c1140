"""Which of fal's services a request is meant for, and how the caller called this server.

By `x-fal-target-url` (what the JavaScript client sends through `proxyUrl`), else by Host (fal's own names, mapped
here), else by the first segment of the path; a bare path is `run`. Each role's routes stand under `/{role}` inside.
"""

import re
from dataclasses import dataclass
from typing import Final, Literal
from urllib.parse import unquote, urlsplit

from server.schema import APP, ENDPOINT

Role = Literal["run", "queue", "rest", "cdn", "site"]

HOSTS: dict[str, Role] = {
    "fal.run": "run",
    "ws.fal.run": "run",
    "falrun.com": "run",
    "queue.fal.run": "queue",
    "queue.falrun.com": "queue",
    "rest.fal.ai": "rest",
    "rest.alpha.fal.ai": "rest",
    "v3.fal.media": "cdn",
    "v3b.fal.media": "cdn",
    "fal.media": "cdn",
    "fal.ai": "site",
}
PREFIXES: dict[str, Role] = {"run": "run", "queue": "queue", "rest": "rest", "cdn": "cdn"}
SITE = ("health", "metrics", "files", "docs", "models", "api")
PROXY_PATH = "/api/fal/proxy"

# why: it stands in answers and is kept with them, so nothing is taken that is no name or is longer than one
HOST: Final = re.compile(r"(?:\[(?P<v6>[\w.:%-]{1,100})\]|(?P<name>[\w.-]{0,253}))(?::[0-9]{0,5})?", re.ASCII)


@dataclass(frozen=True, slots=True)
class Caller:
    """How this server was called. URLs of requests in answers begin with `base`, those of files with `origin`."""

    role: Role
    base: str
    origin: str
    path: str
    """As the caller wrote it."""


@dataclass(frozen=True, slots=True)
class Target:
    """Where a request goes: `path` is the path of a route; `query` replaces the request's, unless None."""

    caller: Caller
    path: str
    query: str | None = None


class NotFalError(Exception):
    """The target URL names none of fal's services."""


def resolve(*, scheme: str, host: str, path: str, target_url: str | None) -> Target:
    """Where a request for `path` on `host` goes.

    Raises: NotFalError.
    """
    origin = f"{scheme}://{host}"
    if target_url is not None:
        try:
            url = urlsplit(target_url)
            role = HOSTS.get(hostname(url.netloc))
        except ValueError as error:
            raise NotFalError(target_url) from error
        if role is None or url.scheme != "https":
            raise NotFalError(target_url)
        return _target(role, unquote(url.path), base=f"https://{url.netloc}", origin=origin, query=url.query)
    first, _, rest = path.removeprefix("/").partition("/")
    if first in SITE:
        return Target(Caller("site", origin, origin, path), _bare(path))
    named = HOSTS.get(hostname(host))
    if named is not None:
        return _target(named, path, base=origin, origin=origin)
    if first in PREFIXES:
        return _target(PREFIXES[first], f"/{rest}", base=f"{origin}/{first}", origin=origin)
    if first == ".well-known":
        return _target("rest", path, base=origin, origin=origin)
    if path == "/":
        return Target(Caller("site", origin, origin, path), path)
    return _target("run", path, base=origin, origin=origin)


def hostname(host: str) -> str:
    """The name in a Host header, without the port; empty if there is none, or it is not of the form of a host."""
    found = HOST.fullmatch(host)
    return "" if found is None else (found["v6"] or found["name"] or "").lower()


def _target(role: Role, path: str, *, base: str, origin: str, query: str | None = None) -> Target:
    # why: a path of a request means the same everywhere, and clients build it from either host
    if role in ("run", "queue") and path.startswith((f"/{APP}/requests/", f"/{ENDPOINT}/requests/")):
        role = "queue"
    # why: a file has one address, under whatever name it is asked for
    file = role == "cdn" and path.startswith("/files/")
    # why: only the site's own pages; every other path is that of another role's route, or of none
    page = role == "site" and (path == "/" or path.removeprefix("/").partition("/")[0] in SITE)
    inside = _bare(path) if file or page else f"/{role}{_bare(path)}"
    return Target(Caller(role, base, origin, path), inside, query)


def _bare(path: str) -> str:
    # why: Postgres takes no NUL in a text, and nothing here has one in its name
    return path.replace("\0", "\ufffd").rstrip("/") or "/"
