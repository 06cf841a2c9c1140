"""The proxy that `HTTPS_PROXY` may name: it answers CONNECT for fal's names with this server, and for nothing else.

The client believes that it speaks to fal; the tunnel ends at our own HTTPS port, which has a certificate for the name.
"""

import asyncio
import contextlib
import socket
from urllib.parse import urlsplit

from server.roles import HOSTS

HEAD_SECONDS = 10.0
MAX_HEAD = 16_384
PIECE = 65_536


async def start_tunnel(listener: socket.socket, *, tls: tuple[str, int]) -> asyncio.Server:
    """The proxy on `listener`, whose tunnels end at the address `tls`."""

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        # why: a peer that goes away, or says nothing for long, is no event
        with contextlib.suppress(OSError, TimeoutError):
            await _answer(reader, writer, tls)
        writer.close()

    return await asyncio.start_server(connected, sock=listener, limit=MAX_HEAD)


def refusal(head: str) -> str | None:
    """Why a request with this first line gets no tunnel, or None."""
    method, _, rest = head.partition(" ")
    target = rest.partition(" ")[0]
    if method != "CONNECT":
        return f"this proxy of ltxd makes tunnels for HTTPS only, and was asked for {method[:20]!r}"
    try:
        url = urlsplit(f"//{target}")
        name, port = url.hostname or "", url.port
    except ValueError:
        name, port = "", None
    if port == 443 and name in HOSTS:
        return None
    if name == "auth.fal.ai":
        return "ltxd has no login by browser: set FAL_KEY to a key of this server, or to any word where it has none"
    return (
        f"this proxy of ltxd leads to fal's names alone ({', '.join(HOSTS)}; port 443), not to {target[:200]!r}: "
        "name that host in NO_PROXY, or set HTTPS_PROXY only for the program that calls fal"
    )


async def _answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, tls: tuple[str, int]) -> None:
    async with asyncio.timeout(HEAD_SECONDS):
        try:
            head = await reader.readuntil(b"\r\n\r\n")
        except asyncio.IncompleteReadError:
            return
        except asyncio.LimitOverrunError:
            await _refuse(writer, "431 Request Header Fields Too Large", f"the head has more than {MAX_HEAD} bytes")
            return
    why = refusal(head.partition(b"\r\n")[0].decode("latin-1"))
    if why is not None:
        await _refuse(writer, "403 Forbidden", why)
        return
    inner_reader, inner_writer = await asyncio.open_connection(*tls)
    writer.write(b"HTTP/1.1 200 Connection established\r\n\r\n")
    asking = asyncio.create_task(_pump(reader, inner_writer))
    try:
        # why: the server ends a connection in both directions at once, a client may still listen
        await _pump(inner_reader, writer)
    finally:
        asking.cancel()
        inner_writer.close()


async def _refuse(writer: asyncio.StreamWriter, status: str, why: str) -> None:
    # why: clients show the reason phrase and seldom the body
    body = f"{why}\n".encode("ascii", "replace")
    reason = f"{status}: {why}" if status.startswith("403") else status
    head = f"HTTP/1.1 {reason}\r\ncontent-type: text/plain\r\ncontent-length: {len(body)}\r\nconnection: close\r\n\r\n"
    writer.write(head.encode("ascii", "replace") + body)
    await writer.drain()


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Passes bytes on until `reader` ends, then ends `writer`."""
    try:
        while piece := await reader.read(PIECE):
            writer.write(piece)
            await writer.drain()
    except OSError:
        writer.transport.abort()
        return
    if writer.can_write_eof():
        writer.write_eof()
