"""`ltxd plan`: what of LTX-2.3 fits a device for a clip, and about how long it takes. No weights, no GPU needed."""

import argparse
import math
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Final

from pipeline import flops, memory
from pipeline.errors import PipelineError
from pipeline.expansion import MAX_SECONDS, MAX_TOKENS
from pipeline.memory import GB, Need, Weights, Writer
from pipeline.plan import Plan, make_plan
from pipeline.recipe import Recipe
from pipeline.recipe import load as load_recipe
from pipeline.types import GenerationRequest, Size


@dataclass(frozen=True, slots=True)
class Gpu:
    """Units: bytes; bfloat16 FLOP/s of dense matrix products; bytes of its memory a second."""

    memory: int
    peak: float
    bandwidth: float


GPUS: Final = MappingProxyType(
    {
        "h200": Gpu(141 * GB, 989e12, 4800e9),
        "h100": Gpu(80 * GB, 989e12, 3350e9),
        "a100-80": Gpu(80 * GB, 312e12, 2039e9),
        "a100-40": Gpu(40 * GB, 312e12, 1555e9),
        "l40s": Gpu(48 * GB, 362e12, 864e9),
        "rtx-5090": Gpu(32 * GB, 209e12, 1792e9),
        "rtx-4090": Gpu(24 * GB, 165e12, 1008e9),
        "rtx-3060": Gpu(12 * GB, 51e12, 360e9),
    }
)
"""Source: the makers' data sheets."""
SHARE: Final = 0.4
"""Of a GPU's peak that is reckoned with. An assumption: nobody has timed this program on a GPU."""
TRANSFER: Final = 25 * GB
"""Bytes a second from pinned host memory over PCIe 4.0 x16; an assumption too."""
UNPINNED: Final = 6 * GB
"""The same to and from memory that is not pinned."""
DEQUANTISED: Final = 21
"""Bytes that a weight in fp8 moves at each use: it becomes float32, is scaled, becomes bfloat16, and is read."""


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
    weights = weights_of(recipe)
    needed = tuple(memory.needs(plan, weights, memory=room, passes_per_call=args.passes_per_call))
    taken = memory.chosen(iter(needed), memory=room)
    lines = [*report(plan, needed, room=room, taken=taken)]
    if taken is not None:
        lines += estimates(plan, taken, recipe=recipe, rate=rate, bandwidth=gpu.bandwidth)
    sys.stdout.write("".join(f"{line}\n" for line in lines))
    return 0 if taken else 1


def report(plan: Plan, needed: tuple[Need, ...], *, room: int, taken: Need | None) -> Iterator[str]:
    """What each residency takes."""
    passes = ", ".join(f"{stage.calls} calls of {len(stage.passes)} pass(es)" for stage in plan.stages)
    yield f"{plan.size}, {plan.num_frames} frames, {passes}; {room / GB:.0f} GB of memory. All figures in GB."
    yield ""
    parts = tuple(needed[0].weights)
    phases = tuple(needed[0].phases)
    columns = ["residency", *parts, "stays", *(f"+ {phase}" for phase in phases), "peak", "passes a call", "fits"]
    yield f"| {' | '.join(columns)} |"
    yield "|---" * len(columns) + "|"
    for need in needed:
        figures = [*need.weights.values(), need.stays, *need.phases.values(), need.peak]
        mark = "taken" if need is taken else "yes" if need.fits(room) else "no"
        cells = [need.residency.name, *(f"{f / GB:.2f}" for f in figures), str(need.passes_per_call), mark]
        yield f"| {' | '.join(cells)} |"
    yield ""
    yield f"A phase comes on top of what stays; {memory.RESERVE / GB:g} GB are kept free beside the peak."
    yield "Where it is negative, gemma has come to write the prompt and all else waits on the host meanwhile."
    yield "Decoding takes smaller chunks, then tiles, and fewer passes go into a call, where a residency leaves less."
    if taken is None:
        yield "Nothing fits: ask for a smaller or shorter clip, or a larger device."


def estimates(plan: Plan, need: Need, *, recipe: Recipe, rate: float, bandwidth: float) -> Iterator[str]:
    """About how long the clip takes, and how its prompt comes to be written if the request asks for that."""
    seconds = estimate(plan, need, weights=weights_of(recipe), rate=rate)
    yield (
        f"Estimate, not measured: {sum(seconds.values()):.0f} s at {rate / 1e12:.0f} TFLOP/s ("
        + ", ".join(f"{phase} {value:.1f}" for phase, value in seconds.items())
        + ")"
    )
    if recipe.expansion == "gemma":
        ways: dict[Writer, str] = {
            "resident": "by gemma, which is on the device",
            "visitor": "by gemma, which is brought over whole for it",
            "alone": "by gemma, which is brought over whole for it, all else waiting on the host meanwhile",
            "none": "by fixed clauses: gemma stays on the host",
        }
        more = writing(need, weights=weights_of(recipe), bandwidth=bandwidth)
        longer = f"; up to {more:.0f} s more, an estimate too" if more else ""
        yield f"Prompt expansion, if asked for: {ways[need.writer]}{longer}."


def estimate(plan: Plan, need: Need, *, weights: Weights, rate: float) -> dict[str, float]:
    """Seconds by phase: FLOPs over `rate`, or the time that what waits on the host takes to come over if longer."""
    seconds = {phase: count / rate for phase, count in flops.request(plan).items()}
    if need.residency.blocks_wait:
        # a call brings over the blocks of its own stage's transformer, once for each of its parts
        one = weights.transformer.blocks / len(strengths_of(plan))
        calls = sum(stage.calls * math.ceil(len(stage.passes) / need.passes_per_call) for stage in plan.stages)
        seconds["denoise"] = max(seconds["denoise"], calls * one / TRANSFER)
    if need.residency.text_waits:
        read = weights.text_encoder.blocks + (weights.connectors.whole if need.residency.blocks_wait else 0)
        seconds["text"] = max(seconds["text"], flops.prompts(plan) * read / TRANSFER)
    return seconds


def writing(need: Need, *, weights: Weights, bandwidth: float) -> float:
    """Seconds that writing the longest prompt takes: Gemma read once for each token, and what is moved for it."""
    if need.writer == "none":
        return 0.0
    text = weights.text_encoder
    read = text.whole + (text.linears // 2 * DEQUANTISED - text.linears if need.residency.text_fp8 else 0)
    tokens = min(MAX_TOKENS * read / (bandwidth * SHARE), MAX_SECONDS)
    visit = 0.0 if need.writer == "resident" else text.whole / TRANSFER
    aside = 2 * sum(need.weights.values()) / UNPINNED if need.writer == "alone" else 0.0
    return tokens + visit + aside


def strengths_of(plan: Plan | Recipe) -> set[float]:
    """Strengths of the LoRA: there is a transformer for each."""
    return {stage.lora_strength for stage in plan.stages}


def weights_of(recipe: Recipe) -> Weights:
    """Of what the recipe loads: a transformer for each strength of its LoRA, an upsampler if it names one."""
    published = memory.PUBLISHED_WEIGHTS
    count, one = len(strengths_of(recipe)), published.transformer
    # what the file has in fp8 is half as large from the start
    halved = one.linears * recipe.fp8_blocks // flops.PUBLISHED.layers // 2
    transformer = memory.Part(
        count * (one.whole - halved),
        linears=count * (one.linears - 2 * halved),
        blocks=count * (one.blocks - halved),
        block=count * one.block,
    )
    others = {**published.others, **({"upsampler": memory.UPSAMPLER} if recipe.upsampler else {})}
    return replace(published, transformer=transformer, others=others, fp8=recipe.fp8_blocks > 0)


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
