"""The text encoder: a Gemma 3 in a folder of its own."""

from dataclasses import dataclass
from pathlib import Path
from typing import Final

import torch
from torch import nn
from transformers import AutoTokenizer, Gemma3ForConditionalGeneration, PreTrainedTokenizerFast

from weights.errors import WeightsFileError

_NEEDED: Final = ("config.json", "tokenizer.json", "tokenizer_config.json")


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


def load_text_encoder(folder: Path, *, dtype: torch.dtype, device: torch.device | str) -> TextEncoder:
    """Loads the folder as published by Hugging Face, from this machine only and without running code from it.

    Raises: WeightsFileError.
    """
    missing = [name for name in _NEEDED if not (folder / name).is_file()]
    if missing:
        raise WeightsFileError(f"{folder}: not the folder of a Gemma 3: {', '.join(missing)} missing")
    try:
        tokenizer = AutoTokenizer.from_pretrained(
            folder, local_files_only=True, trust_remote_code=False, padding_side="left"
        )
        model, found = Gemma3ForConditionalGeneration.from_pretrained(
            folder,
            local_files_only=True,
            trust_remote_code=False,
            dtype=dtype,
            device_map=str(device),
            output_loading_info=True,
        )
    except (OSError, ValueError, RuntimeError) as error:
        raise WeightsFileError(f"{folder}: not loadable as a Gemma 3: {error}") from error
    wrong = {what: sorted(map(str, found[what])) for what in ("missing_keys", "mismatched_keys") if found[what]}
    if wrong:
        raise WeightsFileError(f"{folder}: tensors do not fit its config.json: {wrong}")
    return TextEncoder(tokenizer, model.eval().requires_grad_(False))
