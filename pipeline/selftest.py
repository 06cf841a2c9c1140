"""One tiny forward per component on the user's device, against stored numbers: finds a broken kernel or driver.

selftest.json holds what the CPU gives in float32 with torch 2.13.0; of fp8, what the same weights give unrounded.
`python -m pipeline.selftest > pipeline/selftest.json` writes it anew.
"""

import functools
import json
import math
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from importlib import resources
from types import MappingProxyType
from typing import Any, Final

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import Gemma3Config, Gemma3ForConditionalGeneration

from pipeline import decode, text
from pipeline.device import work_on
from pipeline.residency import to_fp8
from pipeline.transformer import Context, Runs, geometry, modulation, velocity
from weights import config, fp8
from weights.checkpoint import place_buffers
from weights.demo import text_encoder, upsampler
from weights.demo.build import demo_config
from weights.names import Kind

Forward = Callable[[torch.device, torch.dtype], tuple[Tensor, ...]]
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


def run(
    device: torch.device, dtype: torch.dtype, *, forwards: Mapping[str, Forward] | None = None
) -> Iterator[Finding]:
    """Every component in turn, or those of `forwards`."""
    stored = json.loads((resources.files("pipeline") / "selftest.json").read_text("utf-8"))
    for name, forward in (FORWARDS if forwards is None else forwards).items():
        expected = torch.tensor(stored[name])
        distance = ((projected(forward, device, dtype) - expected).norm() / expected.norm()).item()
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
    place = work_on(device)
    for dtype in (torch.float32, torch.bfloat16):
        for found in run(place, dtype):
            word = "passed" if found.passed else "FAILED"
            yield f"{word} {found.component} in {dtype}: {found.distance:.1e} of {found.allowed:g}", found.passed


def _text_encoder(device: torch.device, dtype: torch.dtype, *, in_fp8: bool = False) -> tuple[Tensor, ...]:
    """States of every layer, and logits, of a picture among words: the vision tower works too."""
    model = Gemma3ForConditionalGeneration(Gemma3Config(**text_encoder.configs(64)["config.json"]))
    _fill(model)
    for value in model.parameters():
        value.data = value.to(device, dtype)
    place_buffers(model, device, dtype=None)
    if in_fp8:
        to_fp8(model, "model.language_model.layers")
    kinds = model.config
    soft = [kinds.image_token_index] * kinds.mm_tokens_per_image
    tokens = torch.tensor([[2, kinds.boi_token_index, *soft, kinds.eoi_token_index, 17, 40, 63]], device=device)
    side = kinds.vision_config.image_size
    made = model.eval()(
        input_ids=tokens,
        pixel_values=_drawn(1, 3, side, side).to(device, dtype),
        token_type_ids=(tokens == kinds.image_token_index).long(),
        output_hidden_states=True,
        use_cache=False,
    )
    return (*made.hidden_states, made.logits)


def _connectors(device: torch.device, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    connectors = _built("connectors", device, dtype)
    states = _drawn(text_encoder.LAYERS + 1, 1, 7, text_encoder.HIDDEN).to(device, dtype)
    made = text.context(states.unbind(), connectors=connectors)
    return made.video, made.audio


def _transformer(device: torch.device, dtype: torch.dtype, *, in_fp8: bool = False) -> tuple[Tensor, Tensor]:
    model: Any = _built("transformer", device, dtype)
    if in_fp8:
        to_fp8(model, "transformer_blocks")
    block = model.transformer_blocks[0]

    def inputs(*shape: int) -> Tensor:
        return _drawn(*shape).to(device, dtype)

    return velocity(
        model,
        inputs(1, 8, 128),
        inputs(1, 5, 128),
        context=Context(inputs(1, 6, block.attn2.to_k.in_features), inputs(1, 6, block.audio_attn2.to_k.in_features)),
        geometry=geometry(model, grid=(2, 2, 2), fps=24.0, audio_tokens=5, dtype=dtype),
        modulation=modulation(model, 0.7, video=Runs((4, 4), (0.3, 1.0)), audio=Runs((5,), (1.0,)), dtype=dtype),
    )


def _product(device: torch.device, dtype: torch.dtype) -> tuple[Tensor]:  # noqa: ARG001 it has a type of its own
    """Of a Linear that knows the scale of its inputs: taken in eight bits on a device that can."""
    x, weight, bias = _factors(device)
    scale = fp8.fresh_scale(weight)
    linear = fp8.Fp8Linear(64, 32, bias=True, has_input_scale=True)
    linear.load_state_dict(
        {
            "weight": fp8.quantise(weight, scale),
            "weight_scale": scale,
            "input_scale": fp8.fresh_scale(x),
            "bias": bias,
        },
        strict=True,
        assign=True,
    )
    return (linear(x),)


def _whole_product(device: torch.device, dtype: torch.dtype) -> tuple[Tensor]:
    return (F.linear(*(factor.to(dtype) for factor in _factors(device))),)


def _factors(device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    x, weight, bias = _drawn(49, 64).bfloat16().to(device).split((16, 32, 1))
    return x, weight, bias.flatten()[:32]


def _upsampled(device: torch.device, dtype: torch.dtype) -> tuple[Tensor]:
    model = config.build("upsampler", {**dict(upsampler.CONFIG), "mid_channels": 64}, {})
    latents = _drawn(1, 128, 2, 2, 2).to(device)
    return (decode.upsampled(_ready(model, device, dtype), _built("vae", device, dtype), latents),)


def _frames(device: torch.device, dtype: torch.dtype) -> tuple[Tensor, ...]:
    return tuple(decode.decode_pixels(_built("vae", device, dtype), _drawn(1, 128, 2, 2, 2).to(device)))


def _latents(device: torch.device, dtype: torch.dtype) -> tuple[Tensor]:
    picture = _drawn(1, 3, 1, 64, 64).clamp(-1, 1).to(device)
    return (decode.encode(_built("vae", device, dtype), picture),)


def _sound(device: torch.device, dtype: torch.dtype) -> tuple[Tensor]:
    audio_vae, vocoder = _built("audio_vae", device, dtype), _built("vocoder", device, torch.float32)
    return (decode.decode_audio(audio_vae, vocoder, _drawn(1, 8, 4, 16).to(device)),)


def _built(kind: Kind, device: torch.device, dtype: torch.dtype) -> nn.Module:
    """A component of the demo's shape, its weights drawn on the CPU from a seed."""
    features = text_encoder.HIDDEN * (text_encoder.LAYERS + 1)
    shapes = {
        f"text_embedding_projection.{stream}_aggregate_embed.{name}": shape
        for stream, width in (("video", 256), ("audio", 160))
        for name, shape in (("weight", (width, features)), ("bias", (width,)))
    }
    return _ready(config.build(kind, demo_config(), shapes), device, dtype)


def _ready(module: nn.Module, device: torch.device, dtype: torch.dtype) -> nn.Module:
    _fill(module)
    # not the module's own `to`: those of diffusers warn
    return nn.Module.to(module, device, dtype).eval()


def _fill(module: nn.Module) -> None:
    rng = torch.Generator("cpu").manual_seed(0)
    for value in module.parameters():
        fan_in = math.prod(value.shape[1:]) if value.ndim > 1 else 16
        value.copy_(torch.randn(value.shape, generator=rng) / math.sqrt(fan_in))
    for name, buffer in module.named_buffers():
        if name == "latents_std":
            buffer.fill_(1.0)


def _drawn(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator("cpu").manual_seed(1))


FORWARDS: Final[Mapping[str, Forward]] = MappingProxyType(
    {
        "text encoder": _text_encoder,
        "text encoder in fp8": functools.partial(_text_encoder, in_fp8=True),
        "connectors": _connectors,
        "transformer": _transformer,
        "transformer in fp8": functools.partial(_transformer, in_fp8=True),
        "product in fp8": _product,
        "upsampler": _upsampled,
        "vae decoder": _frames,
        "vae encoder": _latents,
        "audio vae and vocoder": _sound,
    }
)
_WHOLE: Final = MappingProxyType(
    {
        **FORWARDS,
        "text encoder in fp8": _text_encoder,
        "transformer in fp8": _transformer,
        "product in fp8": _whole_product,
    }
)
"""The same without rounding to fp8."""


@torch.inference_mode()
def projected(forward: Forward, device: torch.device, dtype: torch.dtype) -> Tensor:
    """Sixteen numbers that depend on every element of what is made. Shapes: [16], float32 on the CPU."""
    # by default cuDNN rounds what float32 convolutions take to TF32, which is further off than float32 may be
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        flat = torch.cat([tensor.float().flatten().cpu() for tensor in forward(device, dtype)])
    rows = torch.randn(16, flat.numel(), generator=torch.Generator("cpu").manual_seed(2))
    return rows @ flat / math.sqrt(flat.numel())


def document() -> str:
    """What selftest.json is to hold: this CPU's numbers in float32, a line for each component."""
    made = {name: projected(forward, torch.device("cpu"), torch.float32) for name, forward in _WHOLE.items()}
    lines = (f" {json.dumps(name)}: {[round(value, 6) for value in values.tolist()]}" for name, values in made.items())
    return "{\n" + ",\n".join(lines) + "\n}\n"


if __name__ == "__main__":
    sys.stdout.write(document())
