"""Named intermediate tensors, for comparing a generation with a reference."""

from collections.abc import Callable
from pathlib import Path

from safetensors.torch import save_file
from torch import Tensor

Record = Callable[[str, Tensor], None]
"""Takes a tensor under the name that the golden files give it."""


def discard(name: str, tensor: Tensor) -> None:
    """Keeps nothing."""


class Trace:
    """Keeps every recorded tensor, on the CPU, until it is saved."""

    def __init__(self) -> None:
        self.tensors: dict[str, Tensor] = {}

    def __call__(self, name: str, tensor: Tensor) -> None:
        """Records a copy: what comes later cannot change it."""
        self.tensors[name] = tensor.detach().to("cpu", copy=True).contiguous()

    def save(self, path: Path) -> None:
        """Writes all of them as safetensors."""
        save_file(self.tensors, path)
