"""The `ltxd` command. It only wires: every subcommand is one call."""

import argparse
import asyncio
import logging
import os
import shlex
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from server import oneshot
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
        ("data", Path),
        ("recipe", str),
        ("device", str),
    ):
        field = Settings.model_fields[name.replace("-", "_")]
        serve.add_argument(f"--{name}", type=kind, help=field.description)
    serve.set_defaults(run=_serve)

    client = commands.add_parser("client", help="help for clients").add_subparsers(required=True, metavar="COMMAND")
    env = client.add_parser("env", help="print the environment variables that lead the Python client here")
    for name, kind in (("host", str), ("tls-port", int), ("data", Path)):
        field = Settings.model_fields[name.replace("-", "_")]
        env.add_argument(f"--{name}", type=kind, help=field.description)
    env.set_defaults(run=_client_env)

    generate = commands.add_parser("generate", help="make one clip without a server")
    oneshot.add_flags(generate)
    generate.set_defaults(run=_generate)

    weights = commands.add_parser("weights", help="model files").add_subparsers(required=True, metavar="COMMAND")
    build_demo = weights.add_parser("build-demo", help="build the demo checkpoint")
    build_demo.add_argument("--data", type=Path, help=Settings.model_fields["data"].description)
    build_demo.add_argument("--out", type=Path, help="Folder to write. Default: models/demo in the data folder.")
    build_demo.add_argument("--train", action="store_true", help="Train its trained part anew: hours of one core.")
    build_demo.set_defaults(run=_build_demo)
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
    from server.serve import StartError, serve

    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    for library in ("uvicorn", "alembic"):
        logging.getLogger(library).setLevel(logging.WARNING)

    async def run(settings: Settings) -> None:
        stop = asyncio.Event()
        for number in (signal.SIGINT, signal.SIGTERM):
            asyncio.get_running_loop().add_signal_handler(number, stop.set)
        await serve(settings, command=worker_command(settings), stop=stop)

    try:
        asyncio.run(run(_settings(args)))
    except (StartError, StoreError, ValidationError, OSError) as error:
        sys.stderr.write(f"ltxd: {error}\n")
        return 1
    return 0


def _client_env(args: argparse.Namespace) -> int:
    from server.tls import ensure_certificate

    settings = _settings(args)
    if not settings.tls_port:
        sys.stderr.write("ltxd: the Python client speaks only HTTPS, and tls_port is 0: set LTX_TLS_PORT\n")
        return 1
    host = f"[{settings.host}]" if ":" in settings.host else settings.host
    where = f"{host}:{settings.tls_port}"
    values = {
        "FAL_RUN_HOST": f"{where}/run",
        "FAL_QUEUE_RUN_HOST": f"{where}/queue",
        "SSL_CERT_FILE": str(ensure_certificate(settings.data).bundle.absolute()),
    }
    if not os.environ.get("FAL_KEY"):
        values["FAL_KEY"] = "dummy"
    for name, value in values.items():
        sys.stdout.write(f"export {name}={shlex.quote(value)}\n")
    return 0


def _generate(args: argparse.Namespace) -> int:
    return oneshot.run(args, _settings(args))


def _build_demo(args: argparse.Namespace) -> int:
    # why: both import torch, which no other command needs
    from weights.demo import build, train
    from weights.errors import WeightsFileError

    out = args.out or _settings(args).models / "demo"
    trained = train.TRAINED
    try:
        if args.train:
            trained = out.with_name(f"{out.name}-trained") / "trained.safetensors"
            train.train(trained)
        build.build(out, trained=trained)
    except (WeightsFileError, OSError) as error:
        sys.stderr.write(f"ltxd: {error}\n")
        return 1
    sys.stdout.write(f"{out}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
