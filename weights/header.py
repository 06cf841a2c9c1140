"""The header of a safetensors file: names, types and shapes of its tensors, without a byte of them."""

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, Final, Self

from weights.errors import WeightsFileError

_PREFIX: Final = 8
"""Bytes of the number that says how long the header is."""
_BITS: Final[Mapping[str, int]] = {
    "BOOL": 8,
    "U8": 8,
    "I8": 8,
    "F8_E4M3": 8,
    "F8_E5M2": 8,
    "U16": 16,
    "I16": 16,
    "F16": 16,
    "BF16": 16,
    "U32": 32,
    "I32": 32,
    "F32": 32,
    "U64": 64,
    "I64": 64,
    "F64": 64,
}
_SHAPE_OF_THE_FORMAT: Final = "a safetensors file"


@dataclass(frozen=True, slots=True)
class Stored:
    """A tensor as it lies in a file."""

    file: Path
    name: str
    """Its name in that file, which for a folder of diffusers is not the published one."""
    dtype: str
    """As safetensors spells it: BF16, F32, F8_E4M3, U8."""
    shape: tuple[int, ...]
    begin: int
    """Byte it begins at, after the header."""

    @property
    def nbytes(self) -> int:
        """Bytes it takes."""
        return prod(self.shape) * _BITS[self.dtype] // 8


@dataclass(frozen=True)
class Header:
    """What one file says of itself."""

    path: Path
    size: int
    """Bytes of the whole file."""
    sha256: str
    """Of the header alone."""
    metadata: Mapping[str, str]
    tensors: Mapping[str, Stored]

    @classmethod
    def read(cls, path: Path) -> Self:
        """Reads it. Raises: WeightsFileError if the file is missing, is none, or is not as long as its header says."""
        if not path.is_file():
            raise WeightsFileError(path, found="no such file", expected=_SHAPE_OF_THE_FORMAT)
        size = path.stat().st_size
        with path.open("rb") as file:
            length = int.from_bytes(file.read(_PREFIX), "little")
            if size < _PREFIX or length > size - _PREFIX:
                raise WeightsFileError(
                    path,
                    found=f"{size:,} bytes, of which the header alone would take {_PREFIX + length:,}",
                    expected=f"{_SHAPE_OF_THE_FORMAT}; this is none, or is cut short",
                )
            raw = file.read(length)
        metadata, tensors = _parse(path, raw)
        end = _PREFIX + length + max((tensor.begin + tensor.nbytes for tensor in tensors.values()), default=0)
        if end != size:
            raise WeightsFileError(
                path,
                found=f"{size:,} bytes",
                expected=f"{end:,} by its own header; it is {'cut short' if size < end else 'too long'}",
            )
        return cls(path, size, hashlib.sha256(raw).hexdigest(), metadata, tensors)


def _parse(path: Path, raw: bytes) -> tuple[dict[str, str], dict[str, Stored]]:
    try:
        table: dict[str, Any] = json.loads(raw)
        metadata = table.pop("__metadata__", {})
        tensors = {
            name: Stored(path, name, entry["dtype"], tuple(entry["shape"]), entry["data_offsets"][0])
            for name, entry in table.items()
        }
        lengths = {name: entry["data_offsets"][1] - entry["data_offsets"][0] for name, entry in table.items()}
        wrong = [name for name, tensor in tensors.items() if tensor.nbytes != lengths[name]]
    except (ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
        raise WeightsFileError(
            path,
            found=f"a header that cannot be read ({type(error).__name__}: {error})",
            expected=_SHAPE_OF_THE_FORMAT,
        ) from error
    if wrong:
        raise WeightsFileError(
            path, found=f"a length of {wrong[0]} that is not that of its shape", expected=_SHAPE_OF_THE_FORMAT
        )
    return metadata, tensors


def layout_md5(tensors: Iterable[tuple[str, tuple[int, ...]]]) -> str:
    """One number for all names and shapes, by which others have published those of the real files.

    Source: modelscope/DiffSynth-Studio, diffsynth/core/loader/file.py, hash_model_file.
    """
    words = [word for name, shape in tensors for word in (f"{name}:{'_'.join(map(str, shape))}", name)]
    return hashlib.md5(",".join(sorted(words)).encode(), usedforsecurity=False).hexdigest()
