"""Linear layers whose weights stay in eight bits, as the published fp8 files have them.

Source: Lightricks/LTX-2, ltx_core/quantization (one float32 scale a tensor for weights and inputs, e4m3, clamped
before the cast).
"""

from collections.abc import Iterable, Mapping
from typing import Final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from weights.header import Stored

DTYPE: Final = "F8_E4M3"
"""As safetensors spells it."""
WEIGHT_SCALE: Final = ".weight_scale"
INPUT_SCALE: Final = ".input_scale"
SCALES: Final = (WEIGHT_SCALE, INPUT_SCALE)
EXPECTED: Final = "weights in bf16, or in fp8 (e4m3) with one F32 scale for each tensor"
_FLOATS: Final = frozenset({"BF16", "F16", "F32", DTYPE})
E4M3: Final = torch.float8_e4m3fn
LARGEST: Final = torch.finfo(E4M3).max
_ALIGNED: Final = 16
"""torch._scaled_mm takes matrices whose sides are multiples of this."""
_AT_ONCE: Final = 2**23
"""Values that are put into eight bits at a time: in float32, which that goes through, 34 MB."""
_FIRST_CAPABILITY: Final = (8, 9)
"""Ada, the first generation of GPUs with fp8 arithmetic."""


class Fp8Linear(nn.Module):
    """A Linear of an fp8 file.

    On a GPU that can, inputs are put into eight bits by the scale that was measured for them and the product is taken
    in eight bits. Elsewhere the weight is turned into the input's dtype at every call: right, and slow.

    Shapes: weight [out, in] in e4m3, bias [out], both scales [] in float32.
    """

    def __init__(self, in_features: int, out_features: int, *, bias: bool, has_input_scale: bool) -> None:
        super().__init__()
        self.in_features = in_features
        self.out_features = out_features
        self.weight = nn.Parameter(torch.empty(out_features, in_features, dtype=E4M3), requires_grad=False)
        self.bias = nn.Parameter(torch.empty(out_features), requires_grad=False) if bias else None
        self.register_buffer("weight_scale", torch.empty(()))
        self.register_buffer("input_scale", torch.empty(()) if has_input_scale else None)
        self.weight_scale: Tensor
        self.input_scale: Tensor | None

    def forward(self, x: Tensor) -> Tensor:
        """The product. Shapes: [..., in] -> [..., out], dtype of `x`."""
        if self.input_scale is not None and multiplies_in_fp8(x, self.weight):
            return self._multiply(x, self.input_scale)
        return F.linear(x, dequantise(self.weight, self.weight_scale, dtype=x.dtype), self.bias)

    def _multiply(self, x: Tensor, input_scale: Tensor) -> Tensor:
        rows = quantise(x.reshape(-1, self.in_features), input_scale)
        product: Tensor = torch._scaled_mm(  # noqa: SLF001 torch's only name for it
            rows,
            self.weight.t(),
            scale_a=input_scale,
            scale_b=self.weight_scale,
            bias=self.bias,
            out_dtype=x.dtype,
            use_fast_accum=True,
        )
        return product.view(*x.shape[:-1], self.out_features)


def multiplies_in_fp8(x: Tensor, weight: Tensor) -> bool:
    """Whether torch can take the product of `x` and `weight` in eight bits where they lie."""
    return (
        x.device.type == "cuda"
        and x.dtype is torch.bfloat16
        and all(side % _ALIGNED == 0 for side in weight.shape)
        and torch.cuda.get_device_capability(x.device) >= _FIRST_CAPABILITY
    )


def quantise(values: Tensor, scale: Tensor) -> Tensor:
    """`values` over `scale` in e4m3. What lies outside its range is clamped: the bare cast would make it NaN.

    Beside the result it takes memory for `_AT_ONCE` values in float32, however many there are.
    """
    quantised = torch.empty(values.shape, dtype=E4M3, device=values.device)
    for part, into in zip(values.reshape(-1).split(_AT_ONCE), quantised.view(-1).split(_AT_ONCE), strict=True):
        into.copy_(part.to(torch.float32, copy=True).div_(scale).clamp_(-LARGEST, LARGEST))
    return quantised


def dequantise(weight: Tensor, scale: Tensor, *, dtype: torch.dtype) -> Tensor:
    """The weight that `weight` in e4m3 and its `scale` stand for."""
    return weight.float().mul_(scale).to(dtype)


def fresh_scale(weight: Tensor) -> Tensor:
    """The scale that puts the largest of `weight` at the end of e4m3's range."""
    return (weight.float().abs().amax() / LARGEST).clamp_min(torch.finfo(torch.float32).tiny)


def scaled(names: Iterable[str]) -> list[str]:
    """Names of the modules whose weights are in fp8. Nothing but the scale beside a weight says so."""
    return [name.removesuffix(WEIGHT_SCALE) for name in names if name.endswith(WEIGHT_SCALE)]


def complaints(tensors: Mapping[str, Stored]) -> str:
    """The first thing that is wrong with types and scales of `tensors`, or an empty text."""
    for name, stored in tensors.items():
        if name.endswith(SCALES):
            weight = tensors.get(f"{name.rpartition('.')[0]}.weight")
            if stored.shape != () or stored.dtype != "F32":
                return f"{name}, {stored.dtype} of shape {list(stored.shape)}"
            if weight is None or weight.dtype != DTYPE:
                return f"{name} beside {'no weight' if weight is None else f'a weight in {weight.dtype}'}"
        elif stored.dtype not in _FLOATS:
            return f"{name} in {stored.dtype}, as in nvfp4 or other packed files"
        elif stored.dtype == DTYPE and f"{name}_scale" not in tensors:
            return f"{name} in fp8 without its scale"
    return ""


def replace(module: nn.Module, name: str, *, has_input_scale: bool) -> None:
    """Puts an Fp8Linear without memory in the place of the Linear called `name` in `module`. Raises: TypeError."""
    old = module.get_submodule(name)
    if not isinstance(old, nn.Linear):
        raise TypeError(f"{name} is a {type(old).__name__}; only a Linear can be in fp8")
    with torch.device("meta"):
        new = Fp8Linear(old.in_features, old.out_features, bias=old.bias is not None, has_input_scale=has_input_scale)
    module.set_submodule(name, new)
