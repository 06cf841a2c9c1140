"""`ltxd client`: what a client's machine must be told so that an unchanged client of fal comes here."""

import argparse
import asyncio
import os
import shlex
import sys
from collections.abc import Callable
from ipaddress import ip_address
from pathlib import Path

from server.roles import HOSTS
from server.settings import Settings

WAYS = ("env", "proxy", "hosts")
UPLOADS_STRAY = (
    "# this way leads calls here, but fal_client.upload() still goes to fal: --way proxy leads uploads here too\n"
)
HOSTS_HEAD = """\
# ltxd: programs on this machine that call fal come to ltxd, which must listen on port 443 (--tls-port 443).
# Keep falrun.com and queue.falrun.com: when fal.run does not answer, fal_client 1.0.3 sends the same request, key and
# prompt to those names. Without these lines it would then reach the real fal.
"""


def add_commands(client: argparse.ArgumentParser, build: Callable[[argparse.Namespace], Settings]) -> None:
    """Adds the commands under `ltxd client`. `build` makes settings of the flags."""
    commands = client.add_subparsers(required=True, metavar="COMMAND")
    env = commands.add_parser("env", help="print the environment variables that lead clients here")
    env.add_argument(
        "--way", choices=WAYS, default="env", help="Which way in to print the variables of. Default: env."
    )
    for name, kind in (("host", str), ("tls-port", int), ("proxy-port", int), ("data", Path)):
        env.add_argument(f"--{name}", type=kind, help=Settings.model_fields[name.replace("-", "_")].description)
    env.set_defaults(run=lambda args: _env(args.way, build(args)))
    hosts = commands.add_parser("hosts", help="print the lines for the hosts file")
    hosts.add_argument("--host", help="Address of the server. Default: 127.0.0.1.")
    hosts.set_defaults(run=lambda args: _hosts(build(args)))


def hosts_names() -> list[str]:
    """The names that clients may connect to. fal.ai itself is not among them: people read its pages."""
    return [name for name, role in HOSTS.items() if role != "site"]


def variables(way: str, settings: Settings, *, bundle: Path, authority: Path) -> dict[str, str]:
    """The environment variables of the way in `way`, with the certificates to trust."""
    host = _reachable(settings.host)
    trust = {"SSL_CERT_FILE": str(bundle.absolute()), "NODE_EXTRA_CA_CERTS": str(authority.absolute())}
    if way == "env":
        where = f"{host}:{settings.tls_port}"
        return {"FAL_RUN_HOST": f"{where}/run", "FAL_QUEUE_RUN_HOST": f"{where}/queue"} | trust
    if way == "proxy":
        proxy = f"http://{host}:{settings.proxy_port}"
        # why: programs differ in the spelling they look for first, and one may be set already
        return {"HTTPS_PROXY": proxy, "https_proxy": proxy} | trust
    return trust


def _env(way: str, settings: Settings) -> int:
    if not settings.tls_port:
        sys.stderr.write("ltxd: the Python client speaks only HTTPS, and tls_port is 0: set LTX_TLS_PORT\n")
        return 1
    if way == "proxy" and not settings.proxy_port:
        sys.stderr.write("ltxd: proxy_port is 0: name a port here and in ltxd serve, --proxy-port or LTX_PROXY_PORT\n")
        return 1
    # why: a command that needs no certificate need not wait for the libraries that make one
    from server.certificates import client_certificate, covers
    from server.database import StoreError

    try:
        made = asyncio.run(client_certificate(settings))
    except StoreError as error:
        sys.stderr.write(f"ltxd: {error}\n")
        return 1
    host = _reachable(settings.host)
    if way == "env" and not covers(made, host):
        sys.stderr.write(
            f"ltxd: the certificate of the server is not for {host}: add it to LTX_TRUSTED_HOSTS of ltxd serve, start "
            "that again, and give clients the authority anew\n"
        )
        return 1
    values = variables(way, settings, bundle=made.bundle, authority=made.authority)
    if not os.environ.get("FAL_KEY"):
        values["FAL_KEY"] = "dummy"
    for name, value in values.items():
        sys.stdout.write(f"export {name}={shlex.quote(value)}\n")
    if way == "env":
        sys.stderr.write(UPLOADS_STRAY)
    return 0


def _hosts(settings: Settings) -> int:
    sys.stdout.write(HOSTS_HEAD)
    address = _reachable(settings.host).strip("[]")
    sys.stdout.writelines(f"{address} {name}\n" for name in hosts_names())
    return 0


def _reachable(host: str) -> str:
    """`host` as a client on this machine calls it in a URL."""
    try:
        address = ip_address(host)
    except ValueError:
        return host
    if address.is_unspecified:
        return "127.0.0.1" if address.version == 4 else "[::1]"
    return host if address.version == 4 else f"[{host}]"
