"""`ltxd weights`: fetches the real files, says what a file is, builds the demo checkpoint."""

import argparse
import os
import sys
from collections.abc import Callable
from pathlib import Path

from server.settings import Settings

Build = Callable[[argparse.Namespace], Settings]


def add_commands(weights: argparse.ArgumentParser, build: Build) -> None:
    """Adds the commands under `ltxd weights`. `build` makes settings of the flags."""
    commands = weights.add_subparsers(required=True, metavar="COMMAND")
    data, recipe = (Settings.model_fields[name].description for name in ("data", "recipe"))

    fetch = commands.add_parser("fetch", help="download the files of a recipe, or go on with it")
    fetch.add_argument("--recipe", help=recipe)
    fetch.add_argument("--data", type=Path, help=data)
    fetch.set_defaults(run=lambda args: _fetch(build(args)))

    check = commands.add_parser("check", help="say what a model file is and what is wrong with it, from its header")
    check.add_argument("file", type=Path, help="A file, or a folder of diffusers or of a Gemma 3.")
    check.add_argument("--checkpoint", type=Path, help="Checkpoint to hold a LoRA against. Default: LTX-2.3.")
    check.add_argument(
        "--sha256", action="store_true", help="Read all of it, hold its sum against the published one, and remember."
    )
    check.set_defaults(run=_check)

    build_demo = commands.add_parser("build-demo", help="build the demo checkpoint")
    build_demo.add_argument("--data", type=Path, help=data)
    build_demo.add_argument("--out", type=Path, help="Folder to write. Default: models/demo in the data folder.")
    build_demo.add_argument("--train", action="store_true", help="Train its trained part anew: hours of one core.")
    build_demo.set_defaults(run=lambda args: _build_demo(args, build(args)))


def _fetch(settings: Settings) -> int:
    # why: huggingface_hub reads this when it is imported, and would otherwise tell its makers who fetches with what
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    from pipeline.errors import RecipeError
    from pipeline.recipe import load as load_recipe
    from weights.errors import FetchError
    from weights.fetch import fetch
    from weights.manifest import load_manifest

    try:
        recipe = load_recipe(settings.recipe)
        manifest = load_manifest()
        wanted = recipe.files
        files = [file for name in wanted for file in manifest.find(name)]
        if unknown := [name for name in wanted if not manifest.find(name)]:
            return _fail(
                f"recipe {recipe.name!r} names {', '.join(unknown)}, which cannot be fetched; its files are made by: "
                f"{recipe.setup}. To fetch those of another recipe: ltxd weights fetch --recipe NAME"
            )
        fetch(files, settings.models, say=_say)
    except (RecipeError, FetchError, OSError) as error:
        return _fail(str(error))
    return 0


def _check(args: argparse.Namespace) -> int:
    # why: it imports torch, which takes seconds
    from weights.check import inspect
    from weights.errors import WeightsFileError
    from weights.manifest import load_manifest

    manifest = load_manifest()
    try:
        if args.sha256:
            _take_sums(args.file)
        report = inspect(args.file, manifest=manifest, checkpoint=args.checkpoint)
    except (WeightsFileError, OSError) as error:
        return _fail(f"{error}{_refetch(args.file)}")
    _say(f"{args.file}: {report.what}")
    for fact in report.facts:
        _say(f"  {fact}")
    for fault in report.faults:
        _say(f"  WRONG: {fault}{_refetch(args.file)}")
    return 1 if report.faults else 0


def _refetch(path: Path) -> str:
    """The command that brings the file anew, for one that a shipped recipe names."""
    from pipeline import recipe as recipes
    from weights.manifest import load_manifest

    manifest = load_manifest()
    file = manifest.of_path(path)
    for recipe in (recipes.load(name) for name in recipes.shipped()):
        named = (recipe.checkpoint, recipe.lora, recipe.upsampler, recipe.text_encoder)
        if file is not None and any(file in manifest.find(part) for part in named if part):
            return f". To fetch it anew: ltxd weights fetch --recipe {recipe.name}"
    return ""


def _take_sums(path: Path) -> None:
    from weights.manifest import load_manifest
    from weights.sums import take_sum

    manifest = load_manifest()
    files = [path]
    if path.is_dir():
        kinds = (".safetensors", ".json")
        files = sorted(file for file in path.rglob("[!.]*") if file.suffix in kinds and file.is_file())
    for file in files:
        _say(take_sum(file, manifest=manifest))


def _build_demo(args: argparse.Namespace, settings: Settings) -> int:
    # why: both import torch, which no other command needs
    from weights.demo import build, train
    from weights.errors import WeightsFileError

    out = args.out or settings.models / "demo"
    trained = train.TRAINED
    try:
        if args.train:
            trained = out.with_name(f"{out.name}-trained") / "trained.safetensors"
            train.train(trained)
        build.build(out, trained=trained)
    except (WeightsFileError, OSError) as error:
        return _fail(str(error))
    _say(str(out))
    return 0


def _say(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def _fail(message: str) -> int:
    sys.stderr.write(f"ltxd: {message}\n")
    return 1
