"""The device that a process works on."""

from typing import Any

import torch

from pipeline.errors import OperatorError


def work_on(name: str, *, cuda: Any = torch.cuda) -> torch.device:
    """The device called `name`, "auto" being CUDA where there is any, else the CPU.

    Of several CUDA devices it becomes the one that this thread works on: pinned memory, streams and events are made
    for that one, whatever device their tensors are on.
    Raises: OperatorError if there is no such device.
    """
    if name == "auto":
        name = "cuda" if cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise OperatorError(f"there is no device {name!r}: it is auto, cpu, cuda or cuda:N") from error
    if device.type != "cuda":
        return device
    found = [f"cuda:{index}" for index in range(cuda.device_count())]
    if found and name == "cuda":
        device = torch.device("cuda", cuda.current_device())
    if str(device) not in found:
        raise OperatorError(
            f"there is no device {name!r}: torch {torch.__version__} finds {', '.join(found) or 'no CUDA device'}"
        )
    cuda.set_device(device)
    return device
