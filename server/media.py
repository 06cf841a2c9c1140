"""Gets the start image: from a data URI, from one of our own files, or over HTTP but never from a private network."""

import asyncio
import base64
import binascii
from collections.abc import Awaitable, Callable
from urllib.parse import unquote_to_bytes

import httpcore2
import httpx2

from server.egress import (
    ForbiddenAddressError,
    GuardedBackend,
    GuardedTransport,
    Resolve,
    public_trust,
    system_resolve,
)
from server.errors import FieldError
from server.settings import Settings

MAX_REDIRECTS = 5
MAX_URL = 8_192
MAX_PADDING = 2
PIECE = 1 << 20
"""Units: characters of base64 that are decoded at once; a multiple of 4."""

CONNECT_TIMEOUT = 5.0

OwnFile = Callable[[str], Awaitable[bytes | None]]
"""The bytes of one of our own files by its id, if there is one."""


class Media:
    """Fetches start images under the limits of `settings`."""

    def __init__(
        self,
        settings: Settings,
        *,
        own_file: OwnFile,
        resolve: Resolve = system_resolve,
        connector: httpcore2.AsyncNetworkBackend | None = None,
    ) -> None:
        self._settings = settings
        self._own_file = own_file
        self._trust = public_trust()
        self._backend = GuardedBackend(
            settings.allow_private_networks, resolve=resolve, connector=connector or httpcore2.AnyIOBackend()
        )

    @classmethod
    def standalone(cls, settings: Settings) -> "Media":
        """One for a program that has no files of its own."""

        async def none(_file_id: str) -> None:
            return None

        return cls(settings, own_file=none)

    async def fetch_image(self, url: str) -> bytes:
        """The bytes that `url` names.

        Raises: FieldError.
        """
        if url[:5].lower() == "data:":
            return await asyncio.to_thread(decode_data_uri, url, max_bytes=self._settings.max_image_bytes)
        if len(url) > MAX_URL:
            raise _not_downloaded(url, f"the URL has {len(url)} characters; at most {MAX_URL} are allowed")
        try:
            parsed = httpx2.URL(url)
        except (httpx2.InvalidURL, ValueError) as error:
            raise _not_downloaded(url, "it is not a URL") from error
        if parsed.scheme not in ("http", "https") or not parsed.host:
            raise _not_downloaded(url, "it must start with http://, https:// or data:")
        match parsed.path.split("/"):
            case ["", "files", file_id, _]:
                # why: the id is a secret, so whoever knows it may read the file, whatever name he calls us by
                own = await self._own_file(file_id)
                if own is not None:
                    return own
        try:
            async with asyncio.timeout(self._settings.fetch_timeout):
                return await self._download(parsed)
        except ForbiddenAddressError as error:
            raise _not_downloaded(url, "it leads into a private network") from error
        except TimeoutError as error:
            raise _not_downloaded(url, f"it took longer than {self._settings.fetch_timeout:g} s") from error
        except (httpx2.HTTPError, httpx2.InvalidURL, httpcore2.ConnectError, OSError, ValueError) as error:
            raise _not_downloaded(url, f"the server did not answer properly ({type(error).__name__})") from error

    async def _download(self, url: httpx2.URL) -> bytes:
        transport = GuardedTransport(self._backend, self._trust)
        timeout = httpx2.Timeout(self._settings.fetch_timeout, connect=CONNECT_TIMEOUT)
        headers = {
            "user-agent": "Mozilla/5.0 (compatible; ltxd)",
            "accept": "image/*,*/*;q=0.8",
            "accept-encoding": "identity",
        }
        async with httpx2.AsyncClient(
            transport=transport, timeout=timeout, headers=headers, follow_redirects=False, trust_env=False
        ) as client:
            for _ in range(MAX_REDIRECTS + 1):
                async with client.stream("GET", url) as response:
                    if response.next_request is None:
                        return await self._body(response)
                    url = response.next_request.url
                    if url.scheme not in ("http", "https"):
                        raise _not_downloaded(str(url), "it redirects to something that is not http")
        raise _not_downloaded(str(url), f"it redirects more than {MAX_REDIRECTS} times")

    async def _body(self, response: httpx2.Response) -> bytes:
        limit = self._settings.max_image_bytes
        if response.status_code != httpx2.codes.OK:
            raise _not_downloaded(str(response.url), f"the server answered {response.status_code}")
        if int(response.headers.get("content-length", 0)) > limit:
            raise too_large(limit)
        body = bytearray()
        async for part in response.aiter_raw():
            body += part
            if len(body) > limit:
                raise too_large(limit)
        return bytes(body)


def decode_data_uri(uri: str, *, max_bytes: int) -> bytes:
    """The bytes within a data URI.

    Raises: FieldError.
    """
    head, comma, body = uri.partition(",")
    if not comma:
        raise FieldError("image_load_error", "Image load error: the data URI has no comma", field="image_url")
    if not head.lower().endswith(";base64"):
        if len(body) > 3 * max_bytes:
            raise too_large(max_bytes)
        data = unquote_to_bytes(body)
    else:
        # why: the length is checked before a byte is decoded; four characters carry three bytes
        if len(body) > max_bytes // 3 * 4 + 4:
            raise too_large(max_bytes)
        try:
            data = _from_base64("".join(body.replace("%2B", "+").replace("%2F", "/").replace("%3D", "=").split()))
        except (binascii.Error, ValueError) as error:
            message = "Image load error: the data URI is not valid base64"
            raise FieldError("image_load_error", message, field="image_url") from error
    if len(data) > max_bytes:
        raise too_large(max_bytes)
    return data


def _from_base64(text: str) -> bytes:
    """The bytes that `text` stands for, in either alphabet, with or without the padding.

    Raises: ValueError.
    """
    altchars = b"-_" if "-" in text or "_" in text else None
    padded = text + "=" * (-len(text) % 4)
    bare = padded.rstrip("=")
    if "=" in bare or len(padded) - len(bare) > MAX_PADDING:
        raise ValueError("the padding is not at the end, or too long")
    parts = (bare[at : at + PIECE] for at in range(0, len(bare), PIECE))
    # why: one call into C holds the interpreter, and with it the event loop: 4 ms for each million characters
    return b"".join(base64.b64decode(part + "=" * (-len(part) % 4), altchars, validate=True) for part in parts)


def _not_downloaded(url: str, why: str) -> FieldError:
    return FieldError("file_download_error", f"File download error: {why}", field="image_url", given=url)


def too_large(limit: int) -> FieldError:
    """The error of an image that has more than `limit` bytes."""
    message = f"File too large: at most {limit} bytes are allowed"
    return FieldError("file_too_large", message, field="image_url", context={"max_size": limit})
