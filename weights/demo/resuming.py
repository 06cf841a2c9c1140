"""What a training that was stopped needs to go on, as one safetensors file."""

from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import nn


def keep(
    save: Path,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    rng: torch.Generator,
    *,
    averaged: dict[str, torch.Tensor],
    step: int,
) -> None:
    """Writes to `save` all that `resume` needs to go on after `step` steps."""
    tensors = {f"model.{name}": value for name, value in model.state_dict().items()}
    tensors |= {f"averaged.{name}": value for name, value in averaged.items()}
    for number, moments in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{number}.{name}": value for name, value in moments.items()}
    save_file(tensors | {"rng": rng.get_state(), "step": torch.tensor(step)}, save)


def resume(
    save: Path, model: nn.Module, optimizer: torch.optim.Optimizer, rng: torch.Generator
) -> tuple[dict[str, torch.Tensor], int]:
    """The averaged weights and the steps done, from `save`, with all else set as it was."""
    tensors = load_file(save)
    moments: dict[int, dict[str, torch.Tensor]] = {}
    for name in [name for name in tensors if name.startswith("optimizer.")]:
        _, number, moment = name.split(".")
        moments.setdefault(int(number), {})[moment] = tensors[name]
    optimizer.load_state_dict({"state": moments, "param_groups": optimizer.state_dict()["param_groups"]})
    model.load_state_dict(_under("model.", tensors))
    rng.set_state(tensors["rng"])
    return _under("averaged.", tensors), int(tensors["step"])


def _under(prefix: str, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
