"""`ltxd secrets`: turns over a secret that all nodes share, through the running server or, if none runs, by itself."""

import argparse
import asyncio
import datetime as dt
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

from server.settings import Settings

SECRETS: Mapping[str, tuple[str, str, str]] = {
    "webhooks": (
        "webhook-signing-key",
        "From now on /.well-known/jwks.json has both keys; webhooks are signed by the new one from {when} on.",
        "From {when} on webhooks are signed by the new key. Who keeps the old list believes none for up to a day.",
    ),
    "tokens": (
        "token-secret",
        "Tokens and upload addresses that are out stay good for their time; new ones are signed anew from {when} on.",
        "From {when} on all tokens and upload addresses that are out are void; on other nodes in half a minute.",
    ),
    "authority": (
        "authority",
        "Start every node again now, give its clients tls/ca.pem anew, and start it again from {when} on.",
        "The new authority is of {when}. Start every node again now, and give its clients tls/ca.pem for the old one.",
    ),
}
"""What a secret is called here: its name in the store, and what is said of its end: in due course, and at once."""


def add_commands(secrets: argparse.ArgumentParser, build: Callable[[argparse.Namespace], Settings]) -> None:
    """Adds the commands under `ltxd secrets`. `build` makes settings of the flags."""
    commands = secrets.add_subparsers(required=True, metavar="COMMAND")
    rotate = commands.add_parser("rotate", help="make a new one, which takes the place of the old after a while")
    rotate.add_argument("name", choices=SECRETS, help="Which: what signs webhooks, tokens, or certificates.")
    rotate.add_argument(
        "--at-once", action="store_true", help="The old one is void now: for one that a stranger may know."
    )
    rotate.add_argument("--data", type=Path, help=Settings.model_fields["data"].description)
    rotate.set_defaults(run=lambda args: _rotate(args.name, build(args), at_once=args.at_once))


def _rotate(which: str, settings: Settings, *, at_once: bool) -> int:
    # why: a command that has nothing to do with secrets need not wait for the database's library
    from server.control import ask_or_do
    from server.database import StoreError

    name, in_time, now = SECRETS[which]
    try:
        answer = asyncio.run(ask_or_do(settings, {"do": "rotate", "name": name, "at_once": at_once}))
    except (StoreError, OSError) as error:
        answer = {"error": str(error)}
    if "error" in answer:
        sys.stderr.write(f"ltxd: {answer['error']}\n")
        return 1
    when = dt.datetime.fromtimestamp(answer["since"], dt.UTC).isoformat(sep=" ", timespec="minutes")
    sys.stdout.write(f"{(now if at_once else in_time).format(when=when)}\n")
    return 0
