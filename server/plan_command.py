"""`ltxd plan`: what of LTX-2.3 fits a device for a clip, and about how long it takes. No weights, no GPU needed."""

import argparse
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Final

from pipeline import flops, memory
from pipeline.errors import PipelineError
from pipeline.memory import GB, Need
from pipeline.plan import Plan, make_plan
from pipeline.recipe import Recipe
from pipeline.recipe import load as load_recipe
from pipeline.types import GenerationRequest, Size


@dataclass(frozen=True, slots=True)
class Gpu:
    """Units: bytes; bfloat16 FLOP/s of dense matrix products."""

    memory: int
    peak: float


GPUS: Final = MappingProxyType(
    {
        "h200": Gpu(141 * GB, 989e12),
        "h100": Gpu(80 * GB, 989e12),
        "a100-80": Gpu(80 * GB, 312e12),
        "a100-40": Gpu(40 * GB, 312e12),
        "l40s": Gpu(48 * GB, 362e12),
        "rtx-5090": Gpu(32 * GB, 209e12),
        "rtx-4090": Gpu(24 * GB, 165e12),
        "rtx-3060": Gpu(12 * GB, 51e12),
    }
)
"""Source: the makers' data sheets."""
SHARE: Final = 0.4
"""Of a GPU's peak that is reckoned with. An assumption: nobody has timed this program on a GPU."""
TRANSFER: Final = 25 * GB
"""Bytes a second from pinned host memory over PCIe 4.0 x16; an assumption too."""


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Adds the flags of the command."""
    parser.add_argument("--recipe", default="quality", help="Recipe: a shipped name or a TOML file. Default: quality.")
    parser.add_argument("--gpu", choices=GPUS, default="h100", help="Default: h100.")
    parser.add_argument("--memory", type=float, help="Memory of the device in GB, instead of the GPU's.")
    parser.add_argument("--tflops", type=float, help="TFLOP/s to reckon with. Default: 40 %% of the GPU's peak.")
    parser.add_argument("--resolution", type=_size, help="WIDTHxHEIGHT. Default: the recipe's area at 16:9.")
    parser.add_argument("--num-frames", type=int, default=121, help="Default: 121.")
    parser.add_argument("--frames-per-second", type=float, default=24.0, help="Default: 24.")
    parser.add_argument("--num-inference-steps", type=int, help="Default: the recipe's.")
    parser.add_argument("--guidance-scale", type=float, help="Default: the recipe's.")
    parser.add_argument(
        "--passes-per-call",
        type=int,
        default=0,
        help="Passes of guidance in one call of the transformer, at most; 0: as many as fit.",
    )


def _size(text: str) -> Size:
    width, _, height = text.partition("x")
    if not (width.isdigit() and height.isdigit()):
        raise argparse.ArgumentTypeError(f"{text!r} is not WIDTHxHEIGHT, such as 1280x704")
    return Size(int(width), int(height))


def run(args: argparse.Namespace) -> int:
    """Prints the plan; gives 1 if nothing fits."""
    try:
        recipe = load_recipe(args.recipe)
        plan = make_plan(_request(args, recipe), recipe)
    except PipelineError as error:
        sys.stderr.write(f"ltxd plan: {error}\n")
        return 2
    gpu = GPUS[args.gpu]
    room = gpu.memory if args.memory is None else int(args.memory * GB)
    rate = gpu.peak * SHARE if args.tflops is None else args.tflops * 1e12
    needed = tuple(memory.needs(plan, _weights(recipe), memory=room, passes_per_call=args.passes_per_call))
    taken = memory.chosen(iter(needed), memory=room)
    for line in report(plan, needed, room=room, taken=taken, rate=rate):
        sys.stdout.write(f"{line}\n")
    return 0 if taken else 1


def report(plan: Plan, needed: tuple[Need, ...], *, room: int, taken: Need | None, rate: float) -> Iterator[str]:
    """The lines that are printed."""
    passes = ", ".join(f"{stage.calls} calls of {len(stage.passes)} pass(es)" for stage in plan.stages)
    yield f"{plan.size}, {plan.num_frames} frames, {passes}; {room / GB:.0f} GB of memory. All figures in GB."
    yield ""
    parts = tuple(needed[0].weights)
    phases = tuple(needed[0].phases)
    columns = ["residency", *parts, *(f"+ {phase}" for phase in phases), "peak", "passes a call", "fits"]
    yield f"| {' | '.join(columns)} |"
    yield "|---" * len(columns) + "|"
    for need in needed:
        figures = [*need.weights.values(), *need.phases.values(), need.peak]
        mark = "taken" if need is taken else "yes" if need.fits(room) else "no"
        cells = [need.residency.name, *(f"{f / GB:.2f}" for f in figures), str(need.passes_per_call), mark]
        yield f"| {' | '.join(cells)} |"
    yield ""
    yield f"A phase comes on top of the weights; {memory.RESERVE / GB:g} GB are kept free beside the peak."
    yield "Decoding takes smaller chunks, then tiles, and fewer passes go into a call, where a residency leaves less."
    if taken is None:
        yield "Nothing fits: ask for a smaller or shorter clip, or a larger device."
        return
    seconds = estimate(plan, taken, rate=rate)
    yield (
        f"Estimate, not measured: {sum(seconds.values()):.0f} s at {rate / 1e12:.0f} TFLOP/s ("
        + ", ".join(f"{phase} {value:.1f}" for phase, value in seconds.items())
        + ")"
    )


def estimate(plan: Plan, need: Need, *, rate: float) -> dict[str, float]:
    """Seconds by phase: FLOPs over `rate`, or the time that what waits on the host takes to come over if longer."""
    seconds = {phase: count / rate for phase, count in flops.request(plan).items()}
    weights = memory.PUBLISHED_WEIGHTS
    if need.residency.blocks_wait:
        calls = sum(stage.calls for stage in plan.stages)
        seconds["denoise"] = max(seconds["denoise"], calls * weights.transformer.blocks / TRANSFER)
    if need.residency.text_waits:
        seconds["text"] = max(seconds["text"], weights.text_encoder.whole / TRANSFER)
    return seconds


def _weights(recipe: Recipe) -> memory.Weights:
    """Of what the recipe loads: a transformer for each strength of its LoRA, an upsampler if it names one."""
    published = memory.PUBLISHED_WEIGHTS
    count, one = len({stage.lora_strength for stage in recipe.stages}), published.transformer
    transformer = memory.Part(count * one.whole, count * one.linears, count * one.blocks, count * one.block)
    others = {**published.others, **({"upsampler": memory.UPSAMPLER} if recipe.upsampler else {})}
    return replace(published, transformer=transformer, others=others)


def _request(args: argparse.Namespace, recipe: Recipe) -> GenerationRequest:
    defaults = recipe.defaults
    return GenerationRequest(
        prompt="",
        image=None,
        image_size=Size(16, 9),
        seed=0,
        negative_prompt="",
        size=args.resolution,
        num_frames=args.num_frames,
        fps=args.frames_per_second,
        steps=args.num_inference_steps or defaults.steps,
        guidance_scale=defaults.guidance_scale if args.guidance_scale is None else args.guidance_scale,
        strength=defaults.strength,
        audio=True,
        expand_prompt=False,
        check_safety=False,
        quality="high",
        write_mode="fast",
    )
