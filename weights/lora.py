"""Fusing a LoRA into the transformer."""

from pathlib import Path
from typing import Final

import torch
from safetensors import SafetensorError, safe_open
from torch import nn

from weights import names
from weights.errors import WeightsFileError

_PREFIXES: Final = ("model.diffusion_model.", "diffusion_model.")
_DOWN: Final = ".lora_A.weight"
_UP: Final = ".lora_B.weight"


@torch.no_grad()
def fuse_lora(transformer: nn.Module, path: Path, *, strength: float) -> int:
    """Adds `strength` times the LoRA of `path` to the weights, in place; gives how many weights it changed.

    The product and the sum are rounded to bfloat16 whatever the dtype of the weights, as the model's authors do.

    Source: LTX-2 1.2.0, LoRA fusion.
    Raises: WeightsFileError if the file holds anything but pairs of matrices for this transformer.
    """
    weights = dict(transformer.named_parameters())
    if not path.is_file():
        raise WeightsFileError(f"{path}: there is no such file")
    try:
        with safe_open(path, framework="pt") as file:
            found = set(file.keys())
            pairs = _pairs(path, found)
            for module, name in pairs.items():
                shapes = [tuple(file.get_slice(module + end).get_shape()) for end in (_DOWN, _UP)]
                _check(path, module, shapes, weights.get(name))
            for module, name in pairs.items():
                weight = weights[name]
                down, up = (file.get_tensor(module + end).to(weight.device, torch.bfloat16) for end in (_DOWN, _UP))
                weight.copy_(((up * strength) @ down + weight).to(torch.bfloat16))
    except SafetensorError as error:
        raise WeightsFileError(f"{path}: not a safetensors file, or cut short ({error})") from error
    return len(pairs)


def _check(path: Path, module: str, shapes: list[tuple[int, ...]], weight: torch.Tensor | None) -> None:
    down, up = shapes
    if weight is None or weight.dim() != 2:
        raise WeightsFileError(f"{path}: {module} names no matrix of this transformer")
    if (*up, *down) != (weight.shape[0], *down[:1], *down[:1], weight.shape[1]):
        raise WeightsFileError(
            f"{path}: {module} is {list(up)} by {list(down)}, expected a product of {list(weight.shape)}"
        )


def _pairs(path: Path, found: set[str]) -> dict[str, str]:
    """Modules as the file names them, and the weight of the transformer that each changes."""
    modules = sorted({name.removesuffix(_DOWN).removesuffix(_UP) for name in found})
    stray = found - {module + end for module in modules for end in (_DOWN, _UP)}
    single = [module for module in modules if not {module + _DOWN, module + _UP} <= found]
    if stray or single or not modules:
        raise WeightsFileError(
            f"{path}: expected only pairs of *{_DOWN} and *{_UP}, found {sorted(stray or single)[:5] or 'nothing'}"
        )
    out = {}
    for module in modules:
        bare = module
        for prefix in _PREFIXES:
            bare = bare.removeprefix(prefix)
        out[module] = names.to_diffusers(f"model.diffusion_model.{bare}.weight", "transformer")
    return out
