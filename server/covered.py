"""What a server is called, as far as it can know: the names and addresses that its certificate is for."""

from ipaddress import ip_address

import psutil

from server.egress import PRIVATE
from server.roles import HOSTS
from server.settings import Settings

ALWAYS = ("localhost", *HOSTS, "127.0.0.1", "::1")


def covered_names(settings: Settings) -> tuple[str, ...]:
    """Fal's names, this machine's, what the settings name, and private addresses if the server listens on all."""
    # why: a name in another script is called by its ASCII form, and stands in the settings so
    told = [name.strip("[]").lower() for name in settings.trusted_hosts if name.isascii()]
    heard = _private_addresses() if _is_unspecified(settings.host) else [settings.host.lower()]
    return tuple(dict.fromkeys([*ALWAYS, *told, *heard]))


def _private_addresses() -> list[str]:
    """This machine's addresses in private networks."""
    there = [entry.address for entries in psutil.net_if_addrs().values() for entry in entries]
    return [text for text in there if _is_private(text)]


def _is_private(text: str) -> bool:
    try:
        return any(ip_address(text) in network for network in PRIVATE)
    except ValueError:
        # why: a hardware address
        return False


def _is_unspecified(host: str) -> bool:
    try:
        return ip_address(host).is_unspecified
    except ValueError:
        return False
