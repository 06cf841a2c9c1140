"""Random numbers that are a pure function of a name.

They are sums of integers from the Mersenne twister, so no vectorised exp or log changes a bit between CPUs.
"""

import math
import zlib

import torch


def normal(name: str, shape: tuple[int, ...]) -> torch.Tensor:
    """Zero mean, unit variance, bounded by 3.47: four 16-bit uniforms summed (Irwin-Hall). Shapes: `shape`, double."""
    rng = torch.Generator().manual_seed(zlib.crc32(name.encode()))
    total = torch.randint(0, 2**16, (4, *shape), generator=rng).sum(0).double()
    return (total - 2 * (2**16 - 1)) / (2**16 / math.sqrt(3))
