"""`ltxd keys`: creates, lists and revokes keys, through the running server or, if none runs, by itself."""

import argparse
import asyncio
import datetime as dt
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from server.settings import Settings


def add_commands(keys: argparse.ArgumentParser, build: Callable[[argparse.Namespace], Settings]) -> None:
    """Adds the commands under `ltxd keys`. `build` makes settings of the flags."""
    commands = keys.add_subparsers(required=True, metavar="COMMAND")
    data = Settings.model_fields["data"].description
    create = commands.add_parser("create", help="make a key and print it, this once")
    create.add_argument("--name", required=True, help="Whose key it is, for `ltxd keys list`.")
    create.add_argument("--max-in-flight", type=_count, help="Jobs that may wait or run at one time. Default: any.")
    create.add_argument(
        "--private-webhooks", action="store_true", help="Its webhooks may lead to loopback and private networks."
    )
    create.set_defaults(do="create")
    commands.add_parser("list", help="list all keys").set_defaults(do="list")
    revoke = commands.add_parser("revoke", help="end a key; its jobs run on")
    revoke.add_argument("id", help="The part of the key before the colon.")
    revoke.set_defaults(do="revoke")
    for command in commands.choices.values():
        command.add_argument("--data", type=Path, help=data)
        command.set_defaults(run=lambda args: _run(args, build(args)))


def _run(args: argparse.Namespace, settings: Settings) -> int:
    # why: a command that has nothing to do with keys need not wait for the database's library
    from server.control import ask_or_do
    from server.database import StoreError

    asked: dict[str, Any] = {"do": args.do}
    match args.do:
        case "create":
            asked |= {"name": args.name, "max_in_flight": args.max_in_flight}
            asked["private_webhooks"] = args.private_webhooks
        case "revoke":
            asked["id"] = args.id.partition(":")[0]
    try:
        answer = asyncio.run(ask_or_do(settings, asked))
    except (StoreError, OSError) as error:
        answer = {"error": str(error)}
    if "error" in answer:
        sys.stderr.write(f"ltxd: {answer['error']}\n")
        return 1
    return _show(asked, answer)


def _show(asked: Mapping[str, Any], answer: Mapping[str, Any]) -> int:
    match asked["do"]:
        case "create":
            sys.stdout.write(f"FAL_KEY={answer['credentials']}\n")
            sys.stderr.write("Keep it: it cannot be shown again. Every call needs a key from now on.\n")
        case "list":
            for key in answer["keys"]:
                limit = "any number" if key["max_in_flight"] is None else str(key["max_in_flight"])
                words = [key["id"], f"created {_day(key['created'])}", f"in flight: {limit}"]
                words += ["private webhooks"] * key["private_webhooks"]
                words += [] if key["revoked"] is None else [f"revoked {_day(key['revoked'])}"]
                sys.stdout.write("  ".join([*words, key["name"]]) + "\n")
        case "revoke" if not answer["revoked"]:
            sys.stderr.write(f"ltxd: no key {asked['id']} is valid; see `ltxd keys list`\n")
            return 1
    return 0


def _day(at: float) -> str:
    return dt.datetime.fromtimestamp(at, dt.UTC).date().isoformat()


def _count(text: str) -> int:
    count = int(text)
    if count < 1:
        raise argparse.ArgumentTypeError(f"{count} is less than 1")
    return count
