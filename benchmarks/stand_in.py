"""The device `meta` in the place of a GPU, under FakeTensorMode: what it does otherwise, and what one waits for."""

from collections.abc import Callable
from typing import Any, Final

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

DEVICE: Final = torch.device("meta")


class Waits(TorchDispatchMode):
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


class Device(TorchFunctionMode):
    """Lets the stand-in behave as a GPU: fused kernels where CUDA has them, flags that have arrived on the host."""

    def __init__(self, found: list[str], *, loading: FakeTensorMode | None = None) -> None:
        """`loading` is the mode that memory is fake in while models are loaded, which happens outside of it."""
        super().__init__()
        self.found, self.loading = found, loading

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func in (F.rms_norm, torch.rms_norm):
            return torch.empty_like(args[0])
        if func is F.scaled_dot_product_attention:
            return torch.empty_like(kwargs["query"] if "query" in kwargs else args[0])
        if func is Tensor.data_ptr:
            # by which tied weights are told: of fake tensors it is 0
            return args[0].untyped_storage()._cdata  # noqa: SLF001 its id() is another at each call
        if func is Tensor.numpy and args[0].device.type == "cpu":
            return np.zeros(args[0].shape, dtype=np.uint8 if args[0].dtype == torch.uint8 else np.float32)
        if func is torch.empty and self.loading is not None and kwargs.get("device") == DEVICE:
            with self.loading:
                return func(*args, **kwargs)
        if func is Tensor.__bool__ and (args[0].device.type == "cpu" or self.loading is not None):
            self.found.append("event")
            return True
        if func in (torch.tensor, torch.as_tensor) and torch.device(kwargs.get("device") or "cpu") == DEVICE:
            self.found.append("tensor")
            return func(*args, dtype=kwargs.get("dtype")).to(DEVICE, non_blocking=True)
        return func(*args, **kwargs)
