"""Fusing a LoRA into the transformer."""

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Final, Self

import torch
from torch import Tensor, nn

from weights import names
from weights.errors import WeightsFileError
from weights.fp8 import Fp8Linear, dequantise, fresh_scale, quantise
from weights.header import Header, Stored
from weights.stream import stream

_PREFIXES: Final = ("model.diffusion_model.", "diffusion_model.")
_DOWN: Final = ".lora_A.weight"
_UP: Final = ".lora_B.weight"
_ALPHA: Final = ".alpha"
_ENDS: Final = (_DOWN, _UP, _ALPHA)
_EXPECTED: Final = "a LoRA for the transformer of LTX-2.3"
_NAMED_AT_MOST: Final = 5


@dataclass(frozen=True)
class Lora:
    """The header of a LoRA, found to fit a transformer."""

    path: Path
    header: Header
    targets: Mapping[str, str]
    """Published name of each weight it changes, and the module as the file names it."""

    @classmethod
    def open(cls, path: Path, *, shapes: Mapping[str, tuple[int, ...]]) -> Self:
        """Reads the header of `path`, for a transformer whose weights have `shapes` under their published names.

        Raises: WeightsFileError if the file holds anything but pairs of matrices, and their alphas, for such weights.
        """
        header = Header.read(path)
        targets = {_published(module): module for module in _modules(header)}
        strangers = [module for weight, module in targets.items() if len(shapes.get(weight, ())) != 2]
        if strangers:
            raise WeightsFileError(
                path,
                found=f"{len(targets)} targets, {len(strangers)} of which name no matrix of this transformer: "
                f"{', '.join(strangers[:_NAMED_AT_MOST])}",
                expected=_EXPECTED,
            )
        for weight, module in targets.items():
            _check(header, module, shapes[weight])
        return cls(path, header, targets)

    @property
    def ranks(self) -> list[int]:
        """The rank of each pair."""
        return [self.header.tensors[module + _DOWN].shape[0] for module in self.targets.values()]


def is_lora(header: Header) -> bool:
    """Whether a file is one, for whatever model."""
    return any(name.endswith((_DOWN, _UP)) for name in header.tensors)


@torch.no_grad()
def fuse_lora(transformer: nn.Module, path: Path, *, strength: float) -> int:
    """Adds `strength` times the LoRA of `path` to the weights, in place; gives how many weights it changed.

    A pair with an alpha counts alpha / rank. The product and the sum are rounded to bfloat16 whatever the dtype of the
    weights, as the model's authors do. A weight in fp8 is dequantised, changed, and quantised with a fresh scale.

    Source: LTX-2 1.2.0, LoRA fusion.
    Raises: WeightsFileError, before anything is changed, if the file does not fit.
    """
    weights = {
        names.to_published(name, "transformer"): (transformer.get_submodule(name.rpartition(".")[0]), value)
        for name, value in transformer.named_parameters()
        if name.endswith(".weight")
    }
    lora = Lora.open(path, shapes={name: tuple(value.shape) for name, (_, value) in weights.items()})
    for weight, module in lora.targets.items():
        owner, value = weights[weight]
        pair = {end: lora.header.tensors[module + end] for end in _ENDS if module + end in lora.header.tensors}
        delta = _delta(pair, strength=strength, device=value.device)
        if isinstance(owner, Fp8Linear):
            fused = (delta + dequantise(value, owner.weight_scale, dtype=torch.float32)).to(torch.bfloat16)
            owner.weight_scale.copy_(fresh_scale(fused))
            value.copy_(quantise(fused, owner.weight_scale))
        else:
            value.copy_((delta + value).to(torch.bfloat16))
    return len(lora.targets)


def _delta(pair: Mapping[str, Stored], *, strength: float, device: torch.device) -> Tensor:
    """What a pair of matrices adds, in bfloat16."""
    read = {end: value for end, _, value in stream(pair, device="cpu")}
    if _ALPHA in read:
        strength = strength * read[_ALPHA].item() / len(read[_DOWN])
    down, up = (read[end].to(device, torch.bfloat16) for end in (_DOWN, _UP))
    return (up * strength) @ down


def _check(header: Header, module: str, shape: tuple[int, ...]) -> None:
    down, up = (header.tensors[module + end].shape for end in (_DOWN, _UP))
    if (*up, *down) != (shape[0], *down[:1], *down[:1], shape[1]):
        raise WeightsFileError(
            header.path,
            found=f"{module}, {list(up)} by {list(down)}",
            expected=f"a product of {list(shape)}, as in {_EXPECTED.removeprefix('a ')}",
        )
    alpha = header.tensors.get(module + _ALPHA)
    if alpha is not None and prod(alpha.shape) != 1:
        raise WeightsFileError(
            header.path, found=f"{module}{_ALPHA} of shape {list(alpha.shape)}", expected="a single number"
        )


def _published(module: str) -> str:
    """The weight that `module`, as a LoRA names it, changes."""
    for prefix in _PREFIXES:
        module = module.removeprefix(prefix)
    return f"model.diffusion_model.{module}.weight"


def _modules(header: Header) -> list[str]:
    """Modules as the file names them. Raises: WeightsFileError if it holds anything but whole pairs."""
    found = header.tensors.keys()
    stray = sorted(name for name in found if not name.endswith(_ENDS))
    modules = sorted({name.removesuffix(end) for name in found for end in _ENDS if name.endswith(end)})
    single = [module for module in modules if not {module + _DOWN, module + _UP} <= found]
    if stray or single or not modules:
        named = ", ".join((stray or single)[:_NAMED_AT_MOST]) or "nothing"
        raise WeightsFileError(
            header.path, found=named, expected=f"only pairs of *{_DOWN} and *{_UP}, some with *{_ALPHA}"
        )
    return modules
