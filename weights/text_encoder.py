"""The text encoder: a Gemma 3 in a folder of its own, in a folder of diffusers, or in a single file."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Self

import torch
from accelerate import init_empty_weights
from torch import Tensor, nn
from transformers import (
    AutoTokenizer,
    Gemma3Config,
    Gemma3ForConditionalGeneration,
    GenerationConfig,
    PreTrainedTokenizerFast,
)

from weights import gemma
from weights.checkpoint import compare, place_buffers
from weights.errors import WeightsFileError
from weights.folder import read_json, shards
from weights.header import Header, Stored
from weights.sentencepiece import tokenizer_of
from weights.stream import stream, tensor

_TOKENIZER: Final = ("tokenizer.json", "tokenizer_config.json")
_EXPECTED: Final = "a Gemma 3 with its vision tower, as google/gemma-3-12b-it-qat-q4_0-unquantized is published"
_HEAD: Final = "lm_head.weight"
_EMBEDDING: Final = "model.language_model.embed_tokens.weight"
_FLOATS: Final = frozenset({"BF16", "F16", "F32"})


@dataclass(frozen=True)
class TextEncoder:
    """A tokenizer that pads on the left, and the model with its head for generating text."""

    tokenizer: PreTrainedTokenizerFast
    model: Gemma3ForConditionalGeneration

    @property
    def language_model(self) -> nn.Module:
        """The layers that give hidden states, without vision and without the head that makes logits."""
        inner: nn.Module = self.model.model.language_model
        return inner


@dataclass(frozen=True)
class TextEncoderFiles:
    """The headers of a text encoder, found to fit its configuration."""

    path: Path
    headers: tuple[Header, ...]
    config: Gemma3Config
    tensors: Mapping[str, Stored]
    """Every tensor of the model but the head, under the name that transformers has for it."""
    tokenizer: Path | Stored
    """The folder it lies in, or the SentencePiece model in the single file."""
    generation: Path | None
    """The folder of its generation_config.json."""

    @classmethod
    def open(cls, path: Path) -> Self:
        """Reads the headers of the folder or file `path`. Raises: WeightsFileError."""
        files = cls._open_file(path) if path.is_file() else cls._open_folder(path)
        for stored in files.tensors.values():
            if stored.dtype not in _FLOATS:
                raise WeightsFileError(
                    stored.file, found=f"{stored.name} in {stored.dtype}", expected="a Gemma 3 in bf16"
                )
        found = {name: stored.shape for name, stored in files.tensors.items()}
        expected = {name: tuple(value.shape) for name, value in _build(files.config).state_dict().items()}
        del expected[_HEAD]
        if differences := compare(found, expected):
            raise WeightsFileError(
                path,
                found=f"{len(found)} tensors, {'; '.join(differences)}",
                expected=f"{len(expected)}, as its configuration says",
            )
        return files

    @classmethod
    def _open_folder(cls, path: Path) -> Self:
        whole = (path / "model_index.json").is_file()
        weights, words = (path / "text_encoder", path / "tokenizer") if whole else (path, path)
        needed = (weights / "config.json", *(words / name for name in _TOKENIZER))
        if missing := [str(file.relative_to(path)) for file in needed if not file.is_file()]:
            raise WeightsFileError(path, found=f"{', '.join(missing)} missing", expected=_EXPECTED)
        settings = read_json(weights / "config.json")
        if settings.get("model_type") != "gemma3":
            raise WeightsFileError(
                weights / "config.json", found=f"model_type {settings.get('model_type')!r}", expected=_EXPECTED
            )
        headers = shards(weights)
        return cls(
            path=path,
            headers=headers,
            config=Gemma3Config(**settings),
            tensors=_tensors(headers),
            tokenizer=words,
            generation=weights if (weights / "generation_config.json").is_file() else None,
        )

    @classmethod
    def _open_file(cls, path: Path) -> Self:
        header = Header.read(path)
        tensors = _tensors((header,))
        words = tensors.pop(gemma.SENTENCEPIECE, None)
        if words is None:
            raise WeightsFileError(
                path,
                found=f"no {gemma.SENTENCEPIECE}",
                expected="a Gemma 3 with its tokenizer in the file, as the one for ComfyUI, or the folder of one",
            )
        try:
            settings = gemma.guess_config(tensors)
        except (KeyError, ValueError) as error:
            raise WeightsFileError(path, found=f"tensors without {error}", expected=_EXPECTED) from error
        return cls(
            path=path,
            headers=(header,),
            config=Gemma3Config(**settings),
            tensors=tensors,
            tokenizer=words,
            generation=None,
        )

    @property
    def plain(self) -> tuple[Path, ...]:
        """What belongs to it beside the tensors: configuration and tokenizer, where they are files of their own."""
        if isinstance(self.tokenizer, Stored):
            return ()
        folder = self.headers[0].path.parent
        return (folder / "config.json", *(self.tokenizer / name for name in _TOKENIZER))

    @property
    def features(self) -> int:
        """Numbers it gives for each token: those of the embedding and of every layer."""
        text = self.config.text_config
        width: int = text.hidden_size * (text.num_hidden_layers + 1)
        return width


def load_text_encoder(path: Path, *, dtype: torch.dtype, device: torch.device | str) -> TextEncoder:
    """Loads the folder or file `path`, from this machine only and without running code from it.

    Raises: WeightsFileError.
    """
    files = TextEncoderFiles.open(path)
    model = _build(files.config)
    tensors: dict[str, Tensor] = {
        name: value.to(dtype, copy=True) for name, _, value in stream(files.tensors, device=device)
    }
    tensors[_HEAD] = tensors[_EMBEDDING]
    model.load_state_dict(tensors, strict=True, assign=True)
    model.tie_weights()
    place_buffers(model, device, dtype=None)
    if files.generation is not None:
        model.generation_config = GenerationConfig.from_pretrained(files.generation, local_files_only=True)
    return TextEncoder(_tokenizer(files), model.eval().requires_grad_(False))


def _tokenizer(files: TextEncoderFiles) -> PreTrainedTokenizerFast:
    try:
        if isinstance(files.tokenizer, Stored):
            return tokenizer_of(tensor(files.tokenizer, device="cpu").numpy().tobytes())
        tokenizer: PreTrainedTokenizerFast = AutoTokenizer.from_pretrained(
            files.tokenizer, local_files_only=True, trust_remote_code=False, padding_side="left"
        )
    except (OSError, ValueError, RuntimeError) as error:
        raise WeightsFileError(
            files.path, found=f"a tokenizer that does not load: {error}", expected=_EXPECTED
        ) from error
    return tokenizer


def _tensors(headers: tuple[Header, ...]) -> dict[str, Stored]:
    return {
        gemma.to_transformers(name): stored
        for header in headers
        for name, stored in header.tensors.items()
        if name not in gemma.HEADS
    }


def _build(config: Gemma3Config) -> Gemma3ForConditionalGeneration:
    """The model without memory for its weights."""
    with init_empty_weights(include_buffers=False):
        return Gemma3ForConditionalGeneration(config)
