"""One tiny forward per component on the user's device, against stored numbers: finds a broken kernel or driver.

selftest.json holds what the CPU gives in float32 with torch 2.13.0; of fp8, what the same weights give unrounded.
"""

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import resources
from types import MappingProxyType
from typing import Any, Final

import torch
from torch import Tensor, nn

from pipeline import decode
from pipeline.residency import to_fp8
from pipeline.transformer import Context, Runs, geometry, modulation, velocity
from weights import config, fp8
from weights.demo.build import demo_config
from weights.names import Kind

TOLERANCES: Final = MappingProxyType({torch.float32: 1e-3, torch.bfloat16: 0.05})
FP8_TOLERANCE: Final = 0.15
"""Relative L2, of what the CPU gives in float32."""


@dataclass(frozen=True, slots=True)
class Finding:
    """How far one component is from its stored numbers, relative, and how far it may be."""

    component: str
    distance: float
    allowed: float

    @property
    def passed(self) -> bool:
        """A distance that is no number is not within any bound."""
        return self.distance <= self.allowed


@torch.inference_mode()
def run(device: torch.device, dtype: torch.dtype) -> Iterator[Finding]:
    """Every component in turn."""
    stored = json.loads((resources.files("pipeline") / "selftest.json").read_text("utf-8"))
    for name, numbers in outputs(device, dtype).items():
        expected = torch.tensor(stored[name])
        distance = ((numbers - expected).norm() / expected.norm()).item()
        yield Finding(name, distance, FP8_TOLERANCE if name.endswith("fp8") else TOLERANCES[dtype])


def failures(device: torch.device, dtype: torch.dtype) -> list[str]:
    """What does not compute as it should, in words."""
    return [
        f"{found.component} is {found.distance:.2g} from its stored numbers, {found.allowed:g} is allowed"
        for found in run(device, dtype)
        if not found.passed
    ]


def lines(device: str) -> Iterator[tuple[str, bool]]:
    """What is found on `device`, in float32 and bfloat16, a line each, and whether it passed."""
    place = torch.device(("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device)
    for dtype in (torch.float32, torch.bfloat16):
        for found in run(place, dtype):
            word = "passed" if found.passed else "FAILED"
            yield f"{word} {found.component} in {dtype}: {found.distance:.1e} of {found.allowed:g}", found.passed


@torch.inference_mode()
def outputs(device: torch.device, dtype: torch.dtype) -> dict[str, Tensor]:
    """Projections of what every component makes."""
    vae = _built("vae", device, dtype)
    latents = _drawn(1, 128, 2, 2, 2).to(device)
    picture = _drawn(1, 3, 1, 64, 64).clamp(-1, 1).to(device)
    audio_vae, vocoder = _built("audio_vae", device, dtype), _built("vocoder", device, torch.float32)
    # by default cuDNN rounds what float32 convolutions take to TF32, which is further off than float32 may be
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        made = {
            "transformer": _transformer(_built("transformer", device, dtype), in_fp8=False),
            "transformer in fp8": _transformer(_built("transformer", device, dtype), in_fp8=True),
            "product in fp8": (_product(device),),
            "vae decoder": decode.decode_pixels(vae, latents),
            "vae encoder": (decode.encode(vae, picture),),
            "audio vae and vocoder": (decode.decode_audio(audio_vae, vocoder, _drawn(1, 8, 4, 16).to(device)),),
        }
        return {name: _projected(*tensors) for name, tensors in made.items()}


def _transformer(model: Any, *, in_fp8: bool) -> tuple[Tensor, Tensor]:
    if in_fp8:
        to_fp8(model, "transformer_blocks")
    weight = model.proj_in.weight
    block = model.transformer_blocks[0]

    def inputs(*shape: int) -> Tensor:
        return _drawn(*shape).to(weight)

    return velocity(
        model,
        inputs(1, 8, 128),
        inputs(1, 5, 128),
        context=Context(inputs(1, 6, block.attn2.to_k.in_features), inputs(1, 6, block.audio_attn2.to_k.in_features)),
        geometry=geometry(model, grid=(2, 2, 2), fps=24.0, audio_tokens=5, dtype=weight.dtype),
        modulation=modulation(
            model, 0.7, video=Runs((4, 4), (0.3, 1.0)), audio=Runs((5,), (1.0,)), dtype=weight.dtype
        ),
    )


def _product(device: torch.device) -> Tensor:
    """Of a Linear that knows the scale of its inputs: taken in eight bits on a device that can."""
    x, weight, bias = _drawn(49, 64).bfloat16().to(device).split((16, 32, 1))
    scale = fp8.fresh_scale(weight)
    linear = fp8.Fp8Linear(64, 32, bias=True, has_input_scale=True)
    linear.load_state_dict(
        {
            "weight": fp8.quantise(weight, scale),
            "weight_scale": scale,
            "input_scale": fp8.fresh_scale(x),
            "bias": bias.flatten()[:32],
        },
        strict=True,
        assign=True,
    )
    product: Tensor = linear(x)
    return product


def _built(kind: Kind, device: torch.device, dtype: torch.dtype) -> nn.Module:
    """A component of the demo's shape, its weights drawn on the CPU from a seed."""
    module = config.build(kind, demo_config(), {})
    rng = torch.Generator("cpu").manual_seed(0)
    for value in module.parameters():
        fan_in = math.prod(value.shape[1:]) if value.ndim > 1 else 16
        value.copy_(torch.randn(value.shape, generator=rng) / math.sqrt(fan_in))
    for name, buffer in module.named_buffers():
        if name == "latents_std":
            buffer.fill_(1.0)
    return nn.Module.to(module, device, dtype).eval()


def _drawn(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator("cpu").manual_seed(1))


def _projected(*made: Tensor) -> Tensor:
    """Sixteen numbers that depend on every element. Shapes: [16], float32 on the CPU."""
    flat = torch.cat([tensor.float().flatten().cpu() for tensor in made])
    rows = torch.randn(16, flat.numel(), generator=torch.Generator("cpu").manual_seed(2))
    return rows @ flat / math.sqrt(flat.numel())
