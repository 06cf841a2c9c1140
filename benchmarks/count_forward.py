"""Counts what one forward of the real transformer costs, on the meta device: ours and stock diffusers' own.

python benchmarks/count_forward.py [--size 1280x704 --frames 121]

No weights and no GPU are needed: every tensor has a shape and no memory. Counted are what eager PyTorch on CUDA would
do: a kernel is an operator that is not a view; RMSNorm is one kernel, which it is on CUDA; attention is counted by its
FLOPs alone, since it is the same kernel in both; bytes are those of every tensor that an operator reads or writes, a
tensor repeated by a stride of 0 once. Matrix products are listed apart from the rest, which is called pointwise.
"""

import argparse
import contextlib
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Final

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from pipeline import flops
from pipeline.transformer import Context, Runs, geometry, modulation, velocity
from weights import config
from weights.release import published_config

DTYPE: Final = torch.bfloat16
FPS: Final = 24.0
MATRIX_PRODUCTS: Final = frozenset({"addmm", "mm", "bmm"})
VIEWS: Final = frozenset(
    {
        "view",
        "_unsafe_view",
        "reshape",
        "transpose",
        "permute",
        "unsqueeze",
        "squeeze",
        "expand",
        "slice",
        "select",
        "unbind",
        "split",
        "chunk",
        "t",
        "alias",
        "detach",
        "as_strided",
        "unflatten",
        "_reshape_alias",
        "split_with_sizes",
        "empty",
        "empty_like",
        "lift_fresh",
    }
)
"""Operators that move nothing."""


@dataclass
class Tally:
    """Of one forward. Units: bytes; floating-point operations."""

    kernels: Counter[str] = field(default_factory=Counter)
    moved: Counter[str] = field(default_factory=Counter)
    """Bytes read and written, by operator."""
    largest: int = 0
    flops: int = 0
    attentions: int = 0
    syncs: list[str] = field(default_factory=list)
    """What makes the host wait for the device: a value read back, or a tensor made of Python numbers."""

    @property
    def pointwise(self) -> int:
        """Bytes moved by everything but matrix products and attention."""
        return sum(moved for name, moved in self.moved.items() if name not in MATRIX_PRODUCTS)

    def wrote(self, tensor: Tensor) -> None:
        """Notes an activation."""
        self.largest = max(self.largest, tensor.numel() * tensor.element_size())


class _Operators(TorchDispatchMode):
    """Counts every operator that reaches the device."""

    def __init__(self, tally: Tally) -> None:
        super().__init__()  # type: ignore[no-untyped-call] # not annotated in torch
        self.tally = tally

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        name = func.name().removeprefix("aten::").partition(".")[0]
        given, made = _tensors((args, kwargs)), _tensors(result)
        if {t.device.type for t in given + made} >= {"cpu", "meta"} and not kwargs.get("non_blocking"):
            self.tally.syncs.append(name)
        if name in VIEWS:
            return result
        self.tally.kernels[name] += 1
        # what an operator is told to write into is no input, and is among the results
        inputs = _tensors((args, {key: value for key, value in kwargs.items() if key != "out"}))
        self.tally.moved[name] += sum(_size(t) for t in inputs + made)
        for tensor in made:
            self.tally.wrote(tensor)
        if counted := flop_registry.get(func.overloadpacket):
            self.tally.flops += counted(*args, **kwargs, out_val=result)
        return result


class _Functions(TorchFunctionMode):
    """Counts what is one kernel on CUDA and several operators on the meta device."""

    def __init__(self, tally: Tally) -> None:
        super().__init__()
        self.tally = tally

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func in (F.rms_norm, torch.rms_norm):
            x: Tensor = args[0]
            self.tally.kernels["rms_norm"] += 1
            self.tally.moved["rms_norm"] += 2 * _size(x)
            self.tally.wrote(x)
            return torch.empty_like(x)
        if func is F.scaled_dot_product_attention:
            q, k = (kwargs[name] for name in ("query", "key")) if "query" in kwargs else args[:2]
            self.tally.attentions += 1
            self.tally.flops += 4 * q.numel() * k.shape[-2]
            return torch.empty_like(q)
        if func in (torch.tensor, torch.as_tensor) and torch.device(kwargs.get("device") or "cpu").type != "cpu":
            self.tally.syncs.append("tensor")
        return func(*args, **kwargs)


@contextlib.contextmanager
def counting(tally: Tally) -> Iterator[None]:
    """Counts into `tally` what happens inside."""
    with torch.no_grad(), _Operators(tally), _Functions(tally):
        yield


def _tensors(tree: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]


def _size(tensor: Tensor) -> int:
    numel = tensor.numel()
    if numel > 1 and 0 in tensor.stride():
        numel = min(numel, max(1, tensor.untyped_storage().nbytes() // tensor.element_size()))
    return numel * tensor.element_size()


def build(*, layers: int | None = None) -> Any:
    """The transformer of the published configuration, or of so many of its layers, on the meta device."""
    published = published_config()
    if layers is not None:
        published["transformer"]["num_layers"] = layers
    with torch.device("meta"):
        model: nn.Module = config.build("transformer", published, {})
    # why not model.to: diffusers' own warns of modules to be kept in float32, of which this model has none
    return nn.Module.to(model, DTYPE).eval().requires_grad_(requires_grad=False)


def count_ours(model: Any, *, grid: tuple[int, int, int], audio_tokens: int, passes: int = 1) -> Tally:
    """Our forward: modulation and velocity. RoPE tables are made before, once per shape."""
    video, audio, context = _inputs(grid, audio_tokens, passes=passes)
    tally = Tally()
    with torch.no_grad():
        first = grid[1] * grid[2]
        pinned = Runs((first, video.shape[1] - first), (0.3, 1.0))
        geo = geometry(model, grid=grid, fps=FPS, audio_tokens=audio_tokens, dtype=DTYPE)
        with counting(tally):
            mod = modulation(model, 0.7, video=pinned, audio=Runs((audio_tokens,), (1.0,)), dtype=DTYPE)
            velocity(model, video, audio, context=context, geometry=geo, modulation=mod)
    return tally


def count_stock(model: Any, *, grid: tuple[int, int, int], audio_tokens: int) -> Tally:
    """The forward of diffusers as its image-to-video pipeline calls it: a timestep per token, a mask for the text."""
    video, audio, context = _inputs(grid, audio_tokens, passes=1)
    tokens = video.shape[1]
    tally = Tally()
    with torch.no_grad(), torch.device("meta"):
        one, mask = torch.zeros(1), torch.zeros(1, flops.PUBLISHED.context_tokens, dtype=torch.int64)
        given = {
            "timestep": torch.zeros(1, tokens),
            "video_coords": torch.zeros(1, 3, tokens, 2),
            "audio_coords": torch.zeros(1, 1, audio_tokens, 2),
        }
        with counting(tally):
            model(
                hidden_states=video,
                audio_hidden_states=audio,
                encoder_hidden_states=context.video,
                audio_encoder_hidden_states=context.audio,
                audio_timestep=one,
                sigma=one,
                encoder_attention_mask=mask,
                audio_encoder_attention_mask=mask,
                num_frames=grid[0],
                height=grid[1],
                width=grid[2],
                fps=FPS,
                audio_num_frames=audio_tokens,
                use_cross_timestep=True,
                return_dict=False,
                **given,
            )
    return tally


def _inputs(grid: tuple[int, int, int], audio_tokens: int, *, passes: int) -> tuple[Tensor, Tensor, Context]:
    size, tokens = flops.PUBLISHED, grid[0] * grid[1] * grid[2]

    def empty(*shape: int) -> Tensor:
        return torch.empty(passes, *shape, dtype=DTYPE, device="meta")

    return (
        empty(tokens, size.channels),
        empty(audio_tokens, size.channels),
        Context(video=empty(size.context_tokens, size.video), audio=empty(size.context_tokens, size.audio)),
    )


def row(name: str, tally: Tally) -> str:
    """One line of the table."""
    return (
        f"| {name} | {tally.pointwise / 1e9:.0f} | {tally.largest / 2**20:.0f} | {tally.kernels.total():,} "
        f"| {tally.flops / 1e12:.1f} | {tally.attentions} | {len(tally.syncs)} |"
    )


def main() -> None:
    """Prints the table and what moves most."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", default="1280x704")
    parser.add_argument("--frames", type=int, default=121)
    parser.add_argument("--passes", type=int, default=1, help="passes of ours in one call")
    args = parser.parse_args()
    width, height = map(int, args.size.split("x"))
    grid = ((args.frames - 1) // 8 + 1, height // 32, width // 32)
    audio_tokens = round(args.frames / FPS * 25)
    model = build()
    stock = count_stock(model, grid=grid, audio_tokens=audio_tokens)
    ours = count_ours(model, grid=grid, audio_tokens=audio_tokens, passes=args.passes)
    tokens = grid[0] * grid[1] * grid[2]
    closed = args.passes * flops.transformer_forward(tokens, audio_tokens)
    print(f"{args.size}, {args.frames} frames: {tokens:,} video tokens, {audio_tokens} audio tokens, {DTYPE}\n")
    print("| forward | pointwise, GB | largest activation, MiB | kernels | TFLOP | attentions | syncs |")
    print("|---|---|---|---|---|---|---|")
    print(row("stock diffusers", stock))
    print(row("ours" if args.passes == 1 else f"ours, {args.passes} passes", ours))
    print(f"\nclosed form: {closed / 1e12:.1f} TFLOP; ours is {ours.flops / closed - 1:+.2%} from it")
    for name, tally in (("stock", stock), ("ours", ours)):
        most = [f"{op} {moved / 1e9:.0f} GB in {tally.kernels[op]}" for op, moved in tally.moved.most_common(9)]
        print(f"{name}: {', '.join(most)}")


if __name__ == "__main__":
    main()
