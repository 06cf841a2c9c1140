"""The folder layout of diffusers: a subfolder a component, with a config.json and weights in shards."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

from weights.config import CLASSES
from weights.errors import WeightsFileError
from weights.header import Header
from weights.names import Kind

_KINDS: Final[Mapping[str, Kind]] = MappingProxyType({cls.__name__: kind for kind, cls in CLASSES.items()})
_EXPECTED: Final = "a file, a folder of diffusers with LTX-2.3 in it, or one component of such a folder"
_OURS: Final[Mapping[Kind, Mapping[str, Any]]] = MappingProxyType(
    {
        # the conversion script leaves out the clamp of the first stage, which the model's authors have
        "vocoder": {"final_act_fn": "clamp"},
        "transformer": {"perturbed_attn": True},
    }
)
"""What we build otherwise than a folder says."""
_OF_2_3: Final[Mapping[Kind, Mapping[str, Any]]] = MappingProxyType(
    {
        "transformer": {"gated_attn": True, "cross_attn_mod": True, "use_prompt_embeddings": False},
        "connectors": {"per_modality_projections": True, "proj_bias": True},
    }
)
"""What tells 2.3 from its predecessor and its successor, which have the same classes."""


@dataclass(frozen=True)
class Part:
    """One component of a folder."""

    kind: Kind
    arguments: Mapping[str, Any]
    headers: tuple[Header, ...]


def read(folder: Path) -> list[Part]:
    """The components in `folder`, or the one that it is. Raises: WeightsFileError.

    The upsampler is only ever read by itself: its tensors have names that do not say whose they are.
    """
    whole = _part(folder)
    if whole is not None:
        return [whole]
    parts = [part for path in sorted(folder.iterdir()) if path.is_dir() and (part := _part(path)) is not None]
    parts = [part for part in parts if part.kind != "upsampler"]
    if not parts:
        raise WeightsFileError(folder, found="no config.json that names a class we know", expected=_EXPECTED)
    return parts


def _part(folder: Path) -> Part | None:
    config = read_json(folder / "config.json") if (folder / "config.json").is_file() else {}
    kind = _KINDS.get(config.get("_class_name", ""))
    if kind is None:
        return None
    for name, wanted in _OF_2_3.get(kind, {}).items():
        if config.get(name) != wanted:
            raise WeightsFileError(
                folder / "config.json",
                found=f"{name} = {config.get(name)}, as in another release of LTX-2",
                expected=f"{name} = {wanted}, as LTX-2.3 has it",
            )
    arguments = {name: value for name, value in config.items() if not name.startswith("_")}
    return Part(kind, {**arguments, **_OURS.get(kind, {})}, shards(folder))


def shards(folder: Path) -> tuple[Header, ...]:
    """The headers of the files in `folder` that hold its weights: those that its index names, or all there are.

    Raises: WeightsFileError if there is none, one is missing, or two hold the same tensor.
    """
    index = next(iter(sorted(folder.glob("*.safetensors.index.json"))), None)
    if index is not None:
        paths = sorted({folder / Path(name).name for name in read_json(index).get("weight_map", {}).values()})
    else:
        paths = sorted(folder.glob("*.safetensors"))
    if not paths:
        raise WeightsFileError(folder, found="no weights", expected="one or more *.safetensors")
    headers = tuple(Header.read(path) for path in paths)
    seen: set[str] = set()
    for header in headers:
        if twice := seen & header.tensors.keys():
            raise WeightsFileError(
                header.path,
                found=f"{min(twice)}, which another file of the folder holds too",
                expected="every tensor once; keep one set of weights in the folder",
            )
        seen |= header.tensors.keys()
    return headers


def read_json(path: Path) -> dict[str, Any]:
    """The object in the file `path`. Raises: WeightsFileError."""
    try:
        value = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise WeightsFileError(path, found=f"a file that cannot be read ({error})", expected="JSON") from error
    if not isinstance(value, dict):
        raise WeightsFileError(path, found=f"JSON that is a {type(value).__name__}", expected="an object")
    return value
