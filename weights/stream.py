"""Tensors out of files, one after another, so that weights exist once."""

from collections.abc import Iterator, Mapping
from itertools import groupby

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from weights.errors import WeightsFileError
from weights.header import Stored


def stream(sources: Mapping[str, Stored], *, device: torch.device | str) -> Iterator[tuple[str, Stored, Tensor]]:
    """Each of `sources` on `device`, in the order in which they lie in their files.

    On the CPU a tensor is a view of the file: whoever keeps it must copy it.
    Raises: WeightsFileError.
    """
    in_order = sorted(sources.items(), key=lambda item: (item[1].file, item[1].begin))
    for path, group in groupby(in_order, key=lambda item: item[1].file):
        try:
            with safe_open(path, framework="pt", device=str(device)) as file:
                for name, stored in group:
                    yield name, stored, file.get_tensor(stored.name)
        except (SafetensorError, OSError) as error:
            raise WeightsFileError(path, found=f"an unreadable file ({error})", expected="safetensors") from error


def tensor(stored: Stored, *, device: torch.device | str) -> Tensor:
    """One of them. Raises: WeightsFileError."""
    [(_, _, value)] = stream({"": stored}, device=device)
    return value
