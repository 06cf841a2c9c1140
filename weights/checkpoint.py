"""The published single-file checkpoint, the folder that diffusers makes of it, and the modules in either."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Self

import torch
from accelerate import init_empty_weights
from torch import Tensor, nn

from weights import config, folder, fp8, names
from weights.errors import WeightsFileError
from weights.header import Header, Stored
from weights.stream import stream, tensor

_NAMED_AT_MOST: Final = 5


@dataclass(frozen=True)
class Checkpoint:
    """The headers of a checkpoint: what is in it, without any of its tensors."""

    path: Path
    headers: tuple[Header, ...]
    config: Mapping[str, Any]
    """As published: one section a component. Empty for a folder of diffusers."""
    arguments: Mapping[names.Kind, Mapping[str, Any]]
    """For a folder of diffusers: what the module of each component is built with. Empty for a published file."""
    model_version: str
    is_demo: bool
    tensors: Mapping[str, Stored]
    """Every tensor, under its published name."""

    @classmethod
    def open(cls, path: Path) -> Self:
        """Reads the header of the file `path`, or those of the folder. Raises: WeightsFileError."""
        if path.is_dir():
            return cls._open_folder(path)
        header = Header.read(path)
        metadata = header.metadata
        if "config" not in metadata:
            raise WeightsFileError(
                path,
                found=f"metadata without `config`, only {', '.join(sorted(metadata)) or 'nothing'}",
                expected="the single file that LTX-2.3 is published as, or a folder of diffusers",
            )
        try:
            parsed = json.loads(metadata["config"])
        except json.JSONDecodeError as error:
            raise WeightsFileError(path, found=f"a `config` that is not JSON ({error})", expected="JSON") from error
        return cls(
            path=path,
            headers=(header,),
            config=parsed,
            arguments={},
            model_version=metadata.get("model_version", ""),
            is_demo=metadata.get("ltx_demo") == "1",
            tensors=header.tensors,
        )

    @classmethod
    def _open_folder(cls, path: Path) -> Self:
        parts = folder.read(path)
        tensors = {
            names.to_published(name, part.kind): stored
            for part in parts
            for header in part.headers
            for name, stored in header.tensors.items()
        }
        return cls(
            path=path,
            headers=tuple(header for part in parts for header in part.headers),
            config={},
            arguments={part.kind: part.arguments for part in parts},
            model_version="2.3",
            is_demo=False,
            tensors=tensors,
        )

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shape of every tensor, under its published name."""
        return {name: stored.shape for name, stored in self.tensors.items()}

    def tensor_names(self, kind: names.Kind) -> list[str]:
        """Published names of the tensors of one component."""
        if kind == "upsampler":  # a file of its own, without prefixes
            return list(self.tensors)
        return [name for name in self.tensors if names.kind_of(name) == kind]


def load_component(
    checkpoint: Checkpoint,
    kind: names.Kind,
    *,
    dtype: torch.dtype,
    device: torch.device | str,
    keep_fp8: bool = True,
) -> nn.Module:
    """One component in evaluation mode, on `device`, in `dtype`; what the file has in fp8 stays so if `keep_fp8`.

    The module is laid out without memory and its tensors are taken from the file one by one, so that the weights exist
    once.

    Raises: WeightsFileError if the file's tensors are not exactly those of the module.
    """
    module = layout(checkpoint, kind, keep_fp8=keep_fp8)
    sources = {name: checkpoint.tensors[names.to_published(name, kind)] for name in module.state_dict()}
    tensors: dict[str, Tensor] = {}
    for name, stored, value in stream(sources, device=device):
        if stored.dtype != fp8.DTYPE:
            wanted = torch.float32 if name.endswith(fp8.SCALES) else dtype
            tensors[name] = value.to(wanted, copy=True)
        elif keep_fp8:
            tensors[name] = value.clone()
        else:
            scale = checkpoint.tensors[f"{names.to_published(name, kind)}_scale"]
            tensors[name] = fp8.dequantise(value, tensor(scale, device=device), dtype=dtype)
    module.load_state_dict(tensors, strict=True, assign=True)
    place_buffers(module, device, dtype=dtype)
    return module.eval().requires_grad_(False)


def place_buffers(module: nn.Module, device: torch.device | str, *, dtype: torch.dtype | None) -> None:
    """Moves to `device` the buffers that are computed, not stored; those of floats take `dtype` if one is given."""
    stored = module.state_dict().keys()
    for path, part in module.named_modules():
        for name, value in part.named_buffers(recurse=False):
            if f"{path}.{name}".lstrip(".") not in stored:
                part.register_buffer(
                    name, value.to(device, dtype if value.is_floating_point() else None), persistent=False
                )


def layout(checkpoint: Checkpoint, kind: names.Kind, *, keep_fp8: bool = True) -> nn.Module:
    """One component without memory for its weights, after its names and shapes have been found equal to the file's.

    Raises: WeightsFileError.
    """
    path = checkpoint.path
    present = checkpoint.tensor_names(kind)
    if not present:
        raise WeightsFileError(path, found=f"no {kind}", expected="tensors named like those of LTX-2.3")
    of_this = f"a configuration of the {kind}"
    try:
        with init_empty_weights(include_buffers=False):
            if checkpoint.arguments:
                module = config.construct(kind, checkpoint.arguments[kind])
            else:
                module = config.build(kind, checkpoint.config, checkpoint.shapes)
    except KeyError as error:
        raise WeightsFileError(path, found=f"{of_this} that lacks {error}", expected="that of LTX-2.3") from error
    except (ValueError, TypeError) as error:
        raise WeightsFileError(
            path, found=f"{of_this} that cannot be built: {error}", expected="that of LTX-2.3"
        ) from error
    if wrong := fp8.complaints({name: checkpoint.tensors[name] for name in present}):
        raise WeightsFileError(path, found=wrong, expected=fp8.EXPECTED)
    expected = {names.to_published(name, kind): tuple(value.shape) for name, value in module.state_dict().items()}
    found = {name: checkpoint.tensors[name].shape for name in present if not name.endswith(fp8.SCALES)}
    if differences := compare(found, expected):
        raise WeightsFileError(
            path,
            found=f"{len(found)} tensors of the {kind}, {'; '.join(differences)}",
            expected=f"{len(expected)}, as its configuration says",
        )
    if keep_fp8:
        for name in fp8.scaled(present):
            linear = names.to_diffusers(f"{name}.weight", kind).removesuffix(".weight")
            try:
                fp8.replace(module, linear, has_input_scale=name + fp8.INPUT_SCALE in checkpoint.tensors)
            except TypeError as error:
                raise WeightsFileError(path, found=str(error), expected=fp8.EXPECTED) from error
    return module


def compare(found: Mapping[str, tuple[int, ...]], expected: Mapping[str, tuple[int, ...]]) -> list[str]:
    """What is missing, unexpected and of the wrong shape in `found`: a phrase each, and none where nothing is."""
    misshapen = [
        f"{name} (found {list(found[name])}, expected {list(shape)})"
        for name, shape in expected.items()
        if name in found and found[name] != shape
    ]
    return [
        *_phrase("missing", sorted(expected.keys() - found.keys())),
        *_phrase("unexpected", sorted(found.keys() - expected.keys())),
        *_phrase("of the wrong shape", misshapen),
    ]


def _phrase(what: str, wrong: list[str]) -> Iterable[str]:
    if wrong:
        more = f" and {len(wrong) - _NAMED_AT_MOST} more" if len(wrong) > _NAMED_AT_MOST else ""
        yield f"{len(wrong)} {what}: {', '.join(wrong[:_NAMED_AT_MOST])}{more}"
