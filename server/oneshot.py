"""`ltxd generate`: one clip without a server, with every field of the endpoint as a flag."""

import argparse
import asyncio
import secrets
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

from pydantic import ValidationError
from tqdm import tqdm

from pipeline.errors import PipelineError, RecipeError
from pipeline.picture import open_picture, save_picture
from pipeline.plan import make_plan
from pipeline.recipe import Recipe, Semantics
from pipeline.recipe import load as load_recipe
from pipeline.types import Generated, GenerationRequest, Size
from server.defaults import filled
from server.errors import FalError
from server.media import Media
from server.schema import RESOLUTION_NAMES, ImageToVideoInput
from server.settings import Settings
from server.words import to_request

SERVER_ONLY = ("sync_mode",)


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Adds a flag per field of the endpoint's input, then those that say with what to generate."""
    add_fields(parser)
    parser.add_argument("--out", type=Path, default=Path("out.mp4"), help="File to write. Default: out.mp4.")
    parser.add_argument("--trace", type=Path, help="Writes the intermediate tensors to this safetensors file.")
    parser.add_argument("--recipe", help="Recipe: a shipped name or a TOML file.")
    parser.add_argument(
        "--semantics", choices=get_args(Semantics), help=Settings.model_fields["semantics"].description
    )
    for part in ("checkpoint", "lora", "upsampler", "text-encoder"):
        parser.add_argument(f"--{part}", type=_existing, help=f"The {part} to use instead of the recipe's.")
    parser.add_argument(
        "--lora-strength", type=float, help="Strength of the LoRA, in every stage. Default: the recipe's."
    )
    parser.add_argument("--device", help="auto, cpu, cuda or cuda:N.")
    parser.add_argument(
        "--dequantise", action="store_true", default=None, help=Settings.model_fields["dequantise"].description
    )
    parser.add_argument("--dtype", choices=("auto", "float32", "bfloat16"), default="auto", help="Default: auto.")
    parser.add_argument("--data", type=Path, help="Folder that holds models/.")


def add_fields(parser: argparse.ArgumentParser) -> None:
    """Adds a flag per field of the endpoint's input."""
    for name, field in ImageToVideoInput.model_fields.items():
        if name in SERVER_ONLY:
            continue
        flag, help_text = f"--{name.replace('_', '-')}", (field.description or "").replace("%", "%%")
        if field.annotation is bool:
            parser.add_argument(flag, dest=name, action=argparse.BooleanOptionalAction, help=help_text)
        else:
            parser.add_argument(flag, dest=name, required=field.is_required(), help=help_text + _hint(name))


def _existing(text: str) -> Path:
    path = Path(text).absolute()
    if not path.exists():
        raise argparse.ArgumentTypeError(f"{text} does not exist")
    return path


def _hint(name: str) -> str:
    match name:
        case "image_url":
            return " A file's path will do."
        case "resolution":
            return f" WIDTHxHEIGHT or one of {', '.join(RESOLUTION_NAMES)}."
        case _:
            return ""


def run(args: argparse.Namespace, settings: Settings) -> int:
    """Makes the clip that the flags describe; gives the exit status."""
    try:
        recipe = load_recipe(settings.recipe, semantics=settings.semantics)
        given = filled(parse(args), recipe)
        with tempfile.TemporaryDirectory(prefix="ltxd-") as folder:
            picture = open_picture(_image_bytes(given.image_url, settings))
            image = Path(folder) / "image.png"
            save_picture(picture, image)
            request = to_request(given, image=image, image_size=Size(picture.width, picture.height))
            made = _generate(request, args, settings, recipe)
    except ValidationError as error:
        sys.stderr.write(f"ltxd generate: {told(error)}\n")
        return 2
    except (PipelineError, FalError, OSError) as error:
        sys.stderr.write(f"ltxd generate: {error}\n")
        return 1
    sound = "with sound" if made.has_audio else "no sound"
    total = sum(made.seconds.values())
    sys.stdout.write(
        f"{made.path}: {made.size}, {made.num_frames} frames at {made.fps:g} fps, {sound}, "
        f"seed {made.seed}, {total:.1f} s\n"
    )
    return 0


def told(error: ValidationError) -> str:
    """What is wrong with the flags."""
    faults = []
    for item in error.errors():
        flag = f"--{str(item['loc'][0]).replace('_', '-')}" if item["loc"] else "input"
        faults.append(f"{flag}: {item['msg']}")
    return "; ".join(faults)


def parse(args: argparse.Namespace) -> ImageToVideoInput:
    """The input that the flags say, with a seed drawn if none is given.

    Raises: ValidationError.
    """
    values: dict[str, Any] = {
        name: value for name in ImageToVideoInput.model_fields if (value := getattr(args, name, None)) is not None
    }
    width, times, height = str(values.get("resolution", "")).partition("x")
    if times and width.isdigit() and height.isdigit():
        values["resolution"] = {"width": int(width), "height": int(height)}
    values.setdefault("seed", secrets.randbelow(2**31))
    return ImageToVideoInput.model_validate(values)


def _image_bytes(image_url: str, settings: Settings) -> bytes:
    if image_url.startswith(("http:", "https:", "data:")):
        return asyncio.run(Media.standalone(settings).fetch_image(image_url))
    return Path(image_url).read_bytes()


def _generate(request: GenerationRequest, args: argparse.Namespace, settings: Settings, recipe: Recipe) -> Generated:
    """The clip, with a bar per stage on stderr while it is made."""
    # torch takes seconds to import; a mistyped flag is told before that
    from pipeline import generate, loading, trace

    if args.lora and args.lora_strength is None and not any(stage.lora_strength for stage in recipe.stages):
        raise RecipeError(f"--lora takes --lora-strength here: recipe {recipe.name!r} has no strength for a LoRA")
    if args.upsampler and not recipe.upsampler:
        raise RecipeError(f"--upsampler does nothing here: recipe {recipe.name!r} has one stage")
    recipe = replace(
        recipe,
        checkpoint=str(args.checkpoint or recipe.checkpoint),
        text_encoder=str(args.text_encoder or recipe.text_encoder),
        lora=str(args.lora or recipe.lora),
        upsampler=str(args.upsampler or recipe.upsampler),
    )
    if args.lora_strength is not None:
        stages = tuple(replace(stage, lora_strength=args.lora_strength) for stage in recipe.stages)
        recipe = replace(recipe, stages=stages)
    # a request that cannot be planned is told before the model is loaded, and the model is loaded such that it fits
    planned = make_plan(request, recipe)
    pipeline = loading.start(
        recipe,
        models=settings.models,
        device=settings.device,
        dtype=args.dtype,
        residency=settings.residency,
        passes_per_call=settings.passes_per_call,
        keep_fp8=not settings.dequantise,
        classifier=settings.safety_classifier,
        threshold=settings.safety_threshold,
        forced=settings.force_safety_checker,
        clip=planned,
    )
    plan = make_plan(request, recipe, decode_memory=generate.decode_memory(pipeline.model.device))
    record = trace.discard if args.trace is None else trace.Trace()
    clip = generate.generate(pipeline, request, plan, output=args.out, record=record)
    stage, bar = "", tqdm(disable=True)
    try:
        while True:
            progress = next(clip)
            if progress.message:
                tqdm.write(progress.message, file=sys.stderr)
            if progress.stage != stage:
                bar.close()
                stage, bar = progress.stage, tqdm(total=progress.total, desc=f"{progress.stage:12}", leave=True)
            bar.update(progress.step - bar.n)
    except StopIteration as end:
        made: Generated = end.value
    finally:
        bar.close()
        clip.close()
    if isinstance(record, trace.Trace):
        record.save(args.trace)
    return made
