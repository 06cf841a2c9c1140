"""The published single-file checkpoint, and the modules in it."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Self

import torch
from diffusers.pipelines.ltx2.vocoder import UpSample1d
from safetensors import SafetensorError, safe_open
from torch import nn

from weights import config, names
from weights.errors import WeightsFileError

_NAMED_AT_MOST: Final = 5


@dataclass(frozen=True)
class Checkpoint:
    """The header of a model file: what is in it, without any of its tensors."""

    path: Path
    config: Mapping[str, Any]
    model_version: str
    is_demo: bool
    shapes: Mapping[str, tuple[int, ...]]
    """Shape of every tensor, under its published name."""

    @classmethod
    def open(cls, path: Path) -> Self:
        """Reads the header of `path`. Raises: WeightsFileError."""
        if not path.is_file():
            raise WeightsFileError(f"{path}: there is no such file")
        try:
            with safe_open(path, framework="pt") as file:
                metadata = file.metadata() or {}
                shapes = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118 no mapping
        except SafetensorError as error:
            raise WeightsFileError(f"{path}: not a safetensors file, or cut short ({error})") from error
        if "config" not in metadata:
            raise WeightsFileError(
                f"{path}: its metadata holds no `config`, only {sorted(metadata) or 'nothing'}; "
                "expected the single file that LTX-2.3 is published as"
            )
        try:
            parsed = json.loads(metadata["config"])
        except json.JSONDecodeError as error:
            raise WeightsFileError(f"{path}: the `config` in its metadata is not JSON ({error})") from error
        return cls(path, parsed, metadata.get("model_version", ""), metadata.get("ltx_demo") == "1", shapes)

    def tensor_names(self, kind: names.Kind) -> list[str]:
        """Published names of the tensors of one component."""
        if kind == "upsampler":  # a file of its own, without prefixes
            return list(self.shapes)
        return [name for name in self.shapes if names.kind_of(name) == kind]


def load_component(
    checkpoint: Checkpoint, kind: names.Kind, *, dtype: torch.dtype, device: torch.device | str
) -> nn.Module:
    """One component in evaluation mode, every tensor in `dtype` on `device`.

    The module is laid out without memory and its tensors are taken from the file one by one, so that the weights exist
    once.

    Raises: WeightsFileError if the file's tensors are not exactly those of the module.
    """
    module = layout(checkpoint, kind)
    published = {names.to_published(name, kind): name for name in module.state_dict()}
    with safe_open(checkpoint.path, framework="pt", device=str(device)) as file:
        tensors = {name: file.get_tensor(source).to(dtype) for source, name in published.items()}
    module.load_state_dict(tensors, strict=True, assign=True)
    if kind == "vocoder":
        # its resampling filter is computed, not stored
        rates = checkpoint.config["vocoder"]["bwe"]
        ratio = rates["output_sampling_rate"] // rates["input_sampling_rate"]
        module.resampler = UpSample1d(ratio=ratio, window_type="hann", persistent=False).to(device, dtype)
    return module.eval().requires_grad_(False)


def layout(checkpoint: Checkpoint, kind: names.Kind) -> nn.Module:
    """One component on the meta device, after its names and shapes have been found equal to the file's.

    Raises: WeightsFileError.
    """
    path = checkpoint.path
    present = checkpoint.tensor_names(kind)
    if not present:
        raise WeightsFileError(f"{path}: holds no {kind}; expected names that begin like those of LTX-2.3")
    try:
        with torch.device("meta"):
            module = config.build(kind, checkpoint.config, checkpoint.shapes)
    except KeyError as error:
        raise WeightsFileError(f"{path}: the configuration of the {kind} lacks {error}") from error
    except ValueError as error:
        raise WeightsFileError(f"{path}: the configuration of the {kind} cannot be built: {error}") from error
    expected = {names.to_published(name, kind): tuple(value.shape) for name, value in module.state_dict().items()}
    found = {name: checkpoint.shapes[name] for name in present}
    complaints = [
        *_complaint("missing", sorted(expected.keys() - found.keys())),
        *_complaint("unexpected", sorted(found.keys() - expected.keys())),
        *_complaint(
            "of the wrong shape",
            [
                f"{name} (found {list(found[name])}, expected {list(shape)})"
                for name, shape in expected.items()
                if name in found and found[name] != shape
            ],
        ),
    ]
    if complaints:
        raise WeightsFileError(
            f"{path}: found {len(found)} tensors of the {kind}, expected {len(expected)}: {'; '.join(complaints)}"
        )
    return module


def _complaint(what: str, wrong: list[str]) -> Iterable[str]:
    if wrong:
        more = f" and {len(wrong) - _NAMED_AT_MOST} more" if len(wrong) > _NAMED_AT_MOST else ""
        yield f"{len(wrong)} {what}: {', '.join(wrong[:_NAMED_AT_MOST])}{more}"
