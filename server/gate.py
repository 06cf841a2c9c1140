"""Who may call a server without keys: programs on this machine, and pages that come from it or are listed.

Any web page can make its visitor's browser send requests to a loopback address. The browser then names the page's
origin, or says that the request crosses sites; and a name that a stranger points at 127.0.0.1 stands in Host.
Where a key is needed, any page may call that has one; no cookie is ever read, so a browser adds nothing to a request.
"""

from collections.abc import Mapping
from ipaddress import ip_address
from urllib.parse import urlsplit

from server.roles import HOSTS, hostname
from server.settings import Settings

# why: not all browsers know the star, and none takes it for authorization
ALLOW_HEADERS = (
    "authorization, content-type, accept, range, x-fal-target-url, x-fal-queue-priority, x-fal-request-timeout, "
    "x-fal-runner-hint, x-fal-object-lifecycle, x-fal-object-lifecycle-preference, x-fal-no-retry, x-fal-store-io, "
    "x-fal-file-name, x-fal-retry-config, x-fal-tags, x-fal-cdn-token, x-app-fal-disable-fallback, "
    "x-app-fal-can-disable-filter, *"
)
EXPOSE_HEADERS = (
    "x-fal-request-id, x-fal-error-type, x-fal-billable-units, x-fal-request-timeout-type, x-fal-retryable, "
    "x-fal-needs-retry, content-length, content-range, accept-ranges, etag"
)


def refusal(headers: Mapping[str, str], settings: Settings, *, any_page: bool) -> str | None:
    """Why the request is refused, or None. `any_page`: whether it does not matter what page it comes from."""
    host = headers.get("host", "")
    if not _is_ours(hostname(host), settings):
        return f"this server is not called {host!r}: add the name to LTX_TRUSTED_HOSTS if it is"
    if any_page:
        return None
    origin = headers.get("origin")
    if origin is not None:
        if may_read(origin, host, settings):
            return None
        return f"pages from {origin!r} may not call this server: add the origin to LTX_CORS_ORIGINS if they may"
    site = headers.get("sec-fetch-site")
    # why: another port of this machine is the same site, and so is a neighbour's page under the same domain
    if site == "cross-site" or (site == "same-site" and not _is_loopback(hostname(host))):
        return "pages of other sites may not call this server: add their origin to LTX_CORS_ORIGINS if they may"
    return None


def may_read(origin: str, host: str, settings: Settings) -> bool:
    """Whether a page from `origin` may call the server it calls `host`."""
    if origin in settings.cors_origins or "*" in settings.cors_origins:
        return True
    try:
        url = urlsplit(origin)
        name = url.hostname or ""
    except ValueError:
        return False
    return url.netloc == host or _is_loopback(name)


def cors(origin: str | None) -> dict[str, str]:
    """The headers that let a page from `origin`, which may, read an answer. None: any page."""
    if origin is None:
        return {"access-control-allow-origin": "*", "access-control-expose-headers": EXPOSE_HEADERS}
    return {
        "access-control-allow-origin": origin,
        "access-control-expose-headers": EXPOSE_HEADERS,
        "vary": "Origin",
    }


def preflight() -> dict[str, str]:
    """The further headers that answer a browser's question before a request."""
    return {
        "access-control-allow-methods": "GET, HEAD, POST, PUT, DELETE, OPTIONS",
        "access-control-allow-headers": ALLOW_HEADERS,
        "access-control-allow-private-network": "true",
        "access-control-max-age": "600",
    }


def _is_ours(name: str, settings: Settings) -> bool:
    return name in HOSTS or name in settings.trusted_hosts or _is_loopback(name) or _is_address(name)


def _is_loopback(name: str) -> bool:
    return name == "localhost" or name.endswith(".localhost") or (_is_address(name) and ip_address(name).is_loopback)


def _is_address(name: str) -> bool:
    try:
        ip_address(name)
    except ValueError:
        return False
    return True
