"""Connections that go out on a stranger's word, to a start image or a webhook: never into a private network.

A name is resolved once; every address it has must be permitted; the connection goes to that address. So neither a
redirect nor a name whose answer changes between check and use reaches what a stranger may not.
"""

import asyncio
import ipaddress
import socket
import ssl
from collections.abc import Awaitable, Callable, Iterable, Sequence
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network

import httpcore2
import httpx2

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network
Resolve = Callable[[str, int], Awaitable[Sequence[str]]]

# all of IPv6 that is given out today: what lies beside it carries IPv4 addresses within, or means nothing
GLOBAL_UNICAST = ipaddress.IPv6Network("2000::/3")

# special ranges that `is_global` lets pass in some Python versions, and those that carry an IPv4 address within
FORBIDDEN: tuple[Network, ...] = tuple(
    ipaddress.ip_network(text)
    for text in (
        "0.0.0.0/8",
        "100.64.0.0/10",
        "192.0.0.0/24",
        "192.88.99.0/24",
        "192.175.48.0/24",
        "198.18.0.0/15",
        "240.0.0.0/4",
        "2001::/23",
        "2002::/16",
        "3fff::/20",
    )
)

PRIVATE: tuple[Network, ...] = tuple(
    ipaddress.ip_network(text)
    for text in ("127.0.0.0/8", "10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "::1/128", "fd00::/8")
)
"""This machine and private networks."""

METADATA: tuple[Network, ...] = tuple(
    ipaddress.ip_network(text)
    for text in (
        "169.254.0.0/16",  # link-local: Amazon, Google, Azure, Oracle, Tencent, DigitalOcean, Hetzner, OpenStack
        "fe80::/10",  # the same of IPv6
        "fd00:ec2::/32",  # Amazon
        "fd20:ce::254/128",  # Google
        "fd00:42::42/128",  # Scaleway
        "100.100.100.200/32",  # Alibaba
        "192.0.0.192/32",  # Oracle, the older kind
        "168.63.129.16/32",  # Azure's wire server
    )
)
"""Where clouds serve their machines secrets: closed whatever is allowed. Source: the documentation of each cloud."""

CARRIERS = tuple(ipaddress.IPv6Network(text) for text in ("::/96", "64:ff9b::/96", "64:ff9b:1::/48"))
"""Networks of IPv6 whose addresses carry one of IPv4 in their last 32 bits: compatible ones and NAT64's."""


class ForbiddenAddressError(Exception):
    """A name leads where the caller may not go."""


def permitted(text: str, allowed: Sequence[Network] = ()) -> bool:
    """Whether a stranger's URL may lead to the address `text`: it is public, or in one of the `allowed` networks."""
    address: Address = ipaddress.ip_address(text.partition("%")[0])
    if isinstance(address, IPv6Address) and address.ipv4_mapped is not None:
        address = address.ipv4_mapped
    if any(_within(one, METADATA) for one in (address, *_carried(address))):
        return False
    if _within(address, allowed):
        return True
    if not address.is_global or address.is_multicast:
        return False
    if isinstance(address, IPv6Address) and address not in GLOBAL_UNICAST:
        return False
    return not _within(address, FORBIDDEN)


def _within(address: Address, networks: Sequence[Network]) -> bool:
    return any(address in network for network in networks if network.version == address.version)


def _carried(address: Address) -> list[Address]:
    """The addresses of IPv4 that `address` leads to, if a gateway unwraps them."""
    if isinstance(address, IPv4Address):
        return []
    carried: list[Address] = [] if address.sixtofour is None else [address.sixtofour]
    if any(address in network for network in CARRIERS):
        carried.append(IPv4Address(int(address) & 0xFFFFFFFF))
    return carried


async def system_resolve(host: str, port: int) -> list[str]:
    """The addresses of `host`, as the system knows them."""
    answers = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return [str(answer[4][0]) for answer in answers]


class GuardedBackend(httpcore2.AsyncNetworkBackend):
    """Connects only where `permitted`, to the very address that was checked."""

    def __init__(
        self, allowed: Sequence[Network], *, resolve: Resolve, connector: httpcore2.AsyncNetworkBackend
    ) -> None:
        self._allowed = allowed
        self._resolve = resolve
        self._connector = connector

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,  # noqa: ASYNC109 -- the signature is the library's
        local_address: str | None = None,
        socket_options: Iterable[httpcore2.SOCKET_OPTION] | None = None,
    ) -> httpcore2.AsyncNetworkStream:
        """A connection to the first address of `host`.

        Raises: ForbiddenAddressError.
        """
        try:
            addresses = await asyncio.wait_for(self._resolve(host, port), timeout)
        except (OSError, UnicodeError, TimeoutError) as error:
            raise httpcore2.ConnectError(f"{host} has no address") from error
        if not addresses or not all(permitted(address, self._allowed) for address in addresses):
            raise ForbiddenAddressError(host)
        return await self._connector.connect_tcp(addresses[0], port, timeout, local_address, socket_options)

    async def sleep(self, seconds: float) -> None:
        """Waits."""
        await asyncio.sleep(seconds)


class GuardedTransport(httpx2.AsyncHTTPTransport):
    """The usual transport, on a guarded pool. It knows no proxy and no environment.

    `trust` says which certificates are good. Reading them takes long, so make it once, with `public_trust`.
    """

    def __init__(self, backend: httpcore2.AsyncNetworkBackend, trust: ssl.SSLContext) -> None:
        super().__init__(verify=trust, trust_env=False)
        self._pool = httpcore2.AsyncConnectionPool(
            ssl_context=trust, network_backend=backend, max_keepalive_connections=0
        )


def public_trust() -> ssl.SSLContext:
    """The authorities that the public web trusts."""
    return httpx2.create_ssl_context(trust_env=False)
