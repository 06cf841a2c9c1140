"""The `ltxd` command. It only wires: every subcommand is one call."""

import argparse
import asyncio
import gc
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from pipeline.errors import OperatorError
from server import client_ways, compare, keys_command, oneshot, plan_command, secrets_command, weights_command
from server.settings import Settings


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line `argv`; gives the exit status."""
    args = _parser().parse_args(argv)
    status: int = args.run(args)
    return status


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="ltxd", description="A self-hosted server for LTX-2.3 image to video.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    serve = commands.add_parser("serve", help="run the server", description="Options win over LTX_* variables.")
    for name, kind in (
        ("host", str),
        ("port", int),
        ("tls-port", int),
        ("proxy-port", int),
        ("data", Path),
        ("recipe", str),
        ("semantics", str),
        ("role", str),
        ("residency", str),
        ("device", str),
    ):
        field = Settings.model_fields[name.replace("-", "_")]
        serve.add_argument(f"--{name}", type=kind, help=field.description)
    serve.add_argument(
        "--dequantise", action="store_true", default=None, help=Settings.model_fields["dequantise"].description
    )
    serve.set_defaults(run=_serve)

    client_ways.add_commands(commands.add_parser("client", help="what a client needs to come here"), _settings)

    keys_command.add_commands(commands.add_parser("keys", help="who may call"), _settings)

    secrets_command.add_commands(commands.add_parser("secrets", help="what all nodes share"), _settings)

    generate = commands.add_parser("generate", help="make one clip without a server")
    oneshot.add_flags(generate)
    generate.set_defaults(run=_generate)

    selftest = commands.add_parser("selftest", help="one tiny forward per component, against stored numbers")
    selftest.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N. Default: auto.")
    selftest.set_defaults(run=_selftest)

    plan = commands.add_parser("plan", help="what fits a GPU, and about how long a clip takes")
    plan_command.add_flags(plan)
    plan.set_defaults(run=plan_command.run)

    comparing = commands.add_parser("compare", help="the same request to fal and to a server of your own")
    compare.add_flags(comparing)
    comparing.set_defaults(run=compare.run)

    weights_command.add_commands(commands.add_parser("weights", help="model files"), _settings)
    return parser


def _settings(args: argparse.Namespace) -> Settings:
    given: dict[str, Any] = {
        name: value for name, value in vars(args).items() if name in Settings.model_fields and value is not None
    }
    return Settings(**given)


def _serve(args: argparse.Namespace) -> int:
    # why: a command that does not serve need not wait for the server's libraries
    from server.child import worker_command
    from server.database import StoreError
    from server.logs import set_up_logs
    from server.model import ModelGivenUpError
    from server.serve import StartError, serve

    async def run(settings: Settings) -> None:
        set_up_logs(settings.log_format)
        stop = asyncio.Event()
        for number in (signal.SIGINT, signal.SIGTERM):
            asyncio.get_running_loop().add_signal_handler(number, stop.set)
        await serve(settings, command=worker_command(settings), stop=stop, on_start=lambda _: settle())

    try:
        asyncio.run(run(_settings(args)))
    except (StartError, StoreError, ModelGivenUpError, ValidationError, OSError) as error:
        sys.stderr.write(f"ltxd: {error}\n")
        return 1
    return 0


def settle() -> None:
    """Leaves what the start made out of every later search for garbage: 150,000 objects hold the loop for 0.1 s."""
    gc.collect()
    gc.freeze()


def _generate(args: argparse.Namespace) -> int:
    return oneshot.run(args, _settings(args))


def _selftest(args: argparse.Namespace) -> int:
    # why: torch, which no other command needs
    from pipeline import selftest

    failed = 0
    try:
        for line, passed in selftest.lines(args.device):
            failed += not passed
            sys.stdout.write(f"{line}\n")
    except OperatorError as error:
        sys.stderr.write(f"ltxd selftest: {error}\n")
        return 2
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
