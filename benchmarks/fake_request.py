"""One whole request at the real size, without weights: from the context of a prompt and an image to frames.

python benchmarks/fake_request.py [--size 1280x704] [--frames 121] [--steps 2] [--residency resident]

Everything runs under FakeTensorMode, the device `meta` standing in for the GPU and the CPU for the host: a tensor on
the wrong side raises, and so does a value that is read back. Recorded are the bytes that live on the device at once,
phase by phase, and what would have made the host wait.
"""

import argparse
import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from types import SimpleNamespace
from typing import Any, Final

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import Gemma3Config, Gemma3ForConditionalGeneration

from benchmarks.memory import Memory
from pipeline import decode, denoise, text
from pipeline import gemma as writer
from pipeline import residency as placement
from pipeline.expansion import MAX_TOKENS
from pipeline.loading import Here
from pipeline.memory import named
from pipeline.plan import Plan, make_plan
from pipeline.recipe import Recipe
from pipeline.recipe import load as load_recipe
from pipeline.trace import discard
from pipeline.transformer import Context
from pipeline.types import GenerationRequest, Size
from weights import config, names
from weights.release import published_config
from weights.text_encoder import TextEncoder

UPSAMPLER: Final = {
    "in_channels": 128,
    "mid_channels": 1024,
    "num_blocks_per_stage": 4,
    "dims": 3,
    "spatial_upsample": True,
    "temporal_upsample": False,
}
GEMMA: Final = {
    "vocab_size": 262_208,
    "hidden_size": 3840,
    "intermediate_size": 15_360,
    "num_hidden_layers": 48,
    "num_attention_heads": 16,
    "num_key_value_heads": 8,
    "head_dim": 256,
}
VISION: Final = {
    "hidden_size": 1152,
    "intermediate_size": 4304,
    "num_hidden_layers": 27,
    "num_attention_heads": 16,
    "image_size": 896,
    "patch_size": 14,
    "vision_use_head": False,
}
FEATURES: Final = 188_160
"""Numbers that Gemma gives for each token."""
PROJECTIONS: Final = {
    "text_embedding_projection.video_aggregate_embed.weight": (4096, FEATURES),
    "text_embedding_projection.video_aggregate_embed.bias": (4096,),
    "text_embedding_projection.audio_aggregate_embed.weight": (2048, FEATURES),
}
DEVICE: Final = torch.device("meta")
HOST: Final = torch.device("cpu")
DTYPE: Final = torch.bfloat16


@dataclass
class Recording:
    """What was seen of one request. Units: bytes on the device."""

    weights: dict[str, int] = field(default_factory=dict)
    peaks: dict[str, int] = field(default_factory=dict)
    """Above the weights, by phase."""
    waits: dict[str, list[str]] = field(default_factory=dict)
    """What made the host wait for the device, by phase."""
    frames: int = 0


class _Waits(TorchDispatchMode):
    """Notes copies between host and device that are not told to go on without waiting."""

    def __init__(self, found: list[str]) -> None:
        super().__init__()  # type: ignore[no-untyped-call] # not annotated in torch
        self.found = found

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        devices = {leaf.device.type for leaf in tree_leaves((args, kwargs, result)) if isinstance(leaf, Tensor)}
        blocking = not (kwargs.get("non_blocking") or (func is torch.ops.aten.copy_.default and args[2:] == (True,)))
        if devices >= {"cpu", "meta"} and blocking:
            self.found.append(func.name())
        return result


class _Device(TorchFunctionMode):
    """Lets the stand-in behave as a GPU: fused kernels where CUDA has them, flags that have arrived on the host."""

    def __init__(self, found: list[str]) -> None:
        super().__init__()
        self.found = found

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func in (F.rms_norm, torch.rms_norm):
            return torch.empty_like(args[0])
        if func is Tensor.data_ptr:
            # by which tied weights are told: of fake tensors it is 0
            return args[0].untyped_storage()._cdata  # noqa: SLF001 its id() is another at each call
        if func is F.scaled_dot_product_attention:
            return torch.empty_like(kwargs["query"] if "query" in kwargs else args[0])
        if func is Tensor.__bool__ and args[0].device.type == "cpu":
            self.found.append("event")
            return True
        if func in (torch.tensor, torch.as_tensor) and torch.device(kwargs.get("device") or "cpu") == DEVICE:
            self.found.append("tensor")
            return func(*args, dtype=kwargs.get("dtype")).to(DEVICE, non_blocking=True)
        return func(*args, **kwargs)


class Request:
    """A request that is run phase by phase, each of which is recorded."""

    def __init__(self, plan: Plan, recipe: Recipe, *, residency: str) -> None:
        self.plan, self.recipe, self.residency = plan, recipe, residency
        self.seen = Recording()
        self._memory = Memory(DEVICE.type)

    def run(self) -> Recording:
        """Runs it. Raises: whatever a tensor on the wrong side, or a value read back, raises."""
        modules = {kind: _bare(kind) for kind in names.KINDS}
        with FakeTensorMode(allow_non_fake_inputs=True), self._memory, torch.inference_mode():
            parts = self._placed(modules)
            self._request(parts)
        return self.seen

    def _placed(self, modules: dict[names.Kind, nn.Module]) -> dict[str, Any]:
        streams = self.residency == "stream"
        for kind, module in modules.items():
            before = self._memory.live
            dtype = torch.float32 if kind == "vocoder" else DTYPE
            waits = streams and kind in {"transformer", "connectors"}
            _fill(module, dtype=dtype, device=HOST if waits else DEVICE)
            if kind == "transformer" and "fp8" in self.residency:
                placement.to_fp8(module, "transformer_blocks")
            if waits and kind == "transformer":
                with _Device([]):
                    placement.stream_blocks(module, device=DEVICE)
            self.seen.weights[kind] = self._memory.live - before
        return {str(kind): module for kind, module in modules.items()}

    @contextlib.contextmanager
    def _phase(self, name: str) -> Iterator[None]:
        resting = sum(self.seen.weights.values())
        self._memory.peak = self._memory.live
        found: list[str] = []
        with _Waits(found), _Device(found):
            yield
        self.seen.peaks[name] = max(self.seen.peaks.get(name, 0), self._memory.peak - resting)
        self.seen.waits.setdefault(name, []).extend(found)

    def _request(self, parts: dict[str, Any]) -> None:
        plan = self.plan
        context = Context(_empty(1, 1024, 4096), _empty(1, 1024, 2048))
        rng = torch.Generator("cpu").manual_seed(0)
        latents: Tensor | None = None
        audio_latents: Tensor | None = None
        for stage in plan.stages:
            with self._phase("image_encode"):
                pixels = torch.empty(1, 3, 1, stage.height * 32, stage.width * 32, device="cpu")
                image_latents = decode.encode(parts["vae"], pixels)
            with self._phase("denoise"):
                steps = denoise.denoise(
                    parts["transformer"],
                    stage,
                    plan=plan,
                    semantics=self.recipe.semantics,
                    conditions=denoise.Conditions(
                        positive=context,
                        negative=context,
                        strength=0.7,
                        seed=0,
                        image_latents=image_latents,
                        latents=latents,
                        audio_latents=audio_latents,
                    ),
                    rng=rng,
                    record=discard,
                )
                latents, audio_latents = _result(steps)
            if stage is not plan.stages[-1]:
                with self._phase("upsample"):
                    latents = decode.upsampled(parts["upsampler"], parts["vae"], latents)
        del context, image_latents
        with self._phase("sound"):
            assert audio_latents is not None
            decode.decode_audio(parts["audio_vae"], parts["vocoder"], audio_latents).float().cpu()
        with self._phase("decode"):
            assert latents is not None
            for chunk in decode.decode(parts["vae"], latents):
                self.seen.frames += len(decode.to_bytes(chunk).cpu())
                del chunk


def _result(steps: Any) -> tuple[Tensor, Tensor]:
    while True:
        try:
            next(steps)
        except StopIteration as end:
            made: tuple[Tensor, Tensor] = end.value
            return made


def _bare(kind: names.Kind) -> nn.Module:
    published = published_config()
    with DEVICE:
        return config.build(kind, UPSAMPLER if kind == "upsampler" else published, PROJECTIONS).eval()


def _fill(module: nn.Module, *, dtype: torch.dtype, device: torch.device) -> None:
    """Gives a module tensors that know their device, and no memory."""
    for part in module.modules():
        for name, value in list(part.named_parameters(recurse=False)):
            fresh = torch.empty(value.shape, dtype=dtype, device=device)
            setattr(part, name, nn.Parameter(fresh, requires_grad=False))
        for name, buffer in list(part.named_buffers(recurse=False)):
            kept = dtype if buffer.is_floating_point() else buffer.dtype
            setattr(part, name, torch.empty(buffer.shape, dtype=kept, device=device))


def _empty(*shape: int) -> Tensor:
    return torch.empty(*shape, dtype=DTYPE, device=DEVICE)


def request(*, size: Size, frames: int, steps: int = 2, guidance_scale: float = 1.0) -> GenerationRequest:
    """A request for such a clip."""
    return GenerationRequest(
        prompt="",
        image=None,
        image_size=None,
        seed=0,
        negative_prompt="",
        size=size,
        num_frames=frames,
        fps=24.0,
        steps=steps,
        guidance_scale=guidance_scale,
        strength=0.7,
        audio=True,
        expand_prompt=False,
        check_safety=False,
        quality="high",
        write_mode="fast",
    )


def record(
    *,
    size: Size,
    frames: int,
    recipe: Recipe,
    steps: int = 2,
    guidance_scale: float = 1.0,
    residency: str = "resident",
) -> Recording:
    """What one request is seen to need."""
    chosen = replace(recipe, max_tokens=10**9)
    plan = make_plan(request(size=size, frames=frames, steps=steps, guidance_scale=guidance_scale), chosen)
    return Request(plan, chosen, residency=residency).run()


def record_text(*, tokens: int, residency: str = "resident") -> tuple[int, int]:
    """Reading a prompt of so many tokens: the peak above the weights that stay, and those of Gemma and connectors."""
    gemma, connectors = _bare_gemma(), _bare("connectors")
    home, memory = named(residency), Memory(DEVICE.type)
    reading: Here = contextlib.nullcontext
    connecting: Here = contextlib.nullcontext
    with FakeTensorMode(allow_non_fake_inputs=True), memory, torch.inference_mode():
        _fill_gemma(gemma, device=HOST if home.text_waits else DEVICE)
        _fill(connectors, dtype=DTYPE, device=HOST if home.blocks_wait else DEVICE)
        if home.text_fp8:
            placement.to_fp8(gemma, "model.language_model.layers")
        with _Device([]):
            if home.text_waits:
                reading = placement.visiting_text_encoder(gemma, device=DEVICE).by_turns
            if home.blocks_wait:
                connecting = placement.visiting_connectors(connectors, device=DEVICE).by_turns
            memory.peak = resting = memory.live
            with reading():
                states = text.read("", text_encoder=TextEncoder(_Tokens(tokens), gemma))
            with connecting():
                text.context(states, connectors=connectors)
    return memory.peak - resting, resting


def record_writing(*, tokens: int) -> int:
    """Writing after a conversation of so many tokens, with room for the longest answer: the peak above the weights."""
    gemma = _bare_gemma()
    memory = Memory(DEVICE.type)
    with FakeTensorMode(allow_non_fake_inputs=True), memory, torch.inference_mode(), _Device([]):
        _fill_gemma(gemma, device=DEVICE)
        memory.peak = resting = memory.live
        answer = writer.write(
            TextEncoder(_Tokens(tokens), gemma),
            instruction="",
            words="",
            image=None,
            seed=0,
            max_tokens=MAX_TOKENS,
            draw=lambda _logits, _rng: 7,
        )
        for _ in range(2):
            next(answer)
    return memory.peak - resting


def _bare_gemma() -> Any:
    with DEVICE:
        return Gemma3ForConditionalGeneration(Gemma3Config(text_config=GEMMA, vision_config=VISION)).eval()


def _fill_gemma(gemma: Any, *, device: torch.device) -> None:
    _fill(gemma, dtype=DTYPE, device=device)
    gemma.lm_head.weight = gemma.model.language_model.embed_tokens.weight


@dataclass
class _Tokens:
    """A tokenizer that makes as many tokens of everything."""

    count: int
    eos_token_id: int = 1
    added_tokens_decoder: dict[int, Any] = field(default_factory=dict)

    def __call__(self, _words: str, *, return_tensors: str = "", **_options: Any) -> Any:
        tokens = torch.zeros(1, self.count, dtype=torch.long)
        return SimpleNamespace(input_ids=tokens if return_tensors else [])

    def convert_tokens_to_ids(self, _token: str) -> int:
        return self.eos_token_id

    def decode(self, _tokens: list[int], **_options: Any) -> str:
        return ""


def main() -> None:
    """Prints the recording."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", default="1280x704")
    parser.add_argument("--frames", type=int, default=121)
    parser.add_argument("--steps", type=int, default=2)
    parser.add_argument("--recipe", default="demo")
    parser.add_argument("--guidance-scale", type=float, default=1.0)
    parser.add_argument("--residency", default="resident")
    args = parser.parse_args()
    seen = record(
        size=Size(*map(int, args.size.split("x"))),
        frames=args.frames,
        steps=args.steps,
        recipe=load_recipe(args.recipe),
        guidance_scale=args.guidance_scale,
        residency=args.residency,
    )
    print(f"{args.size}, {args.frames} frames, {args.steps} steps, {args.residency}: {seen.frames} frames out")
    for name, size in seen.weights.items():
        print(f"  weights  {name:12} {size:>15,}")
    for name, size in seen.peaks.items():
        print(f"  phase    {name:12} {size:>15,}  waits: {', '.join(seen.waits[name]) or 'none'}")


if __name__ == "__main__":
    main()
