"""From a prompt to the context that the transformer reads: tokenizer, Gemma's hidden states, connectors."""

from typing import Any, Final

import torch
from torch import Tensor

from pipeline.transformer import Context
from weights.text_encoder import TextEncoder

CONTEXT_TOKENS: Final = 1024


def surplus(prompt: str, *, text_encoder: TextEncoder) -> int:
    """Tokens at the end of `prompt` that the model does not read: it reads 1,024."""
    return max(0, len(text_encoder.tokenizer(prompt.strip()).input_ids) - CONTEXT_TOKENS)


@torch.inference_mode()
def encode(prompt: str, *, text_encoder: TextEncoder, connectors: Any) -> Context:
    """The context of `prompt`: its tokens first, learned registers after them, 1,024 in all.

    Gemma runs on the prompt's own tokens only; padding on the left, as the reference has it, changes nothing but the
    rounding. The hidden states of every layer are kept.
    Source: golden conventions of LTX-2 1.2.0, section 2.
    """
    tokens = text_encoder.tokenizer(
        prompt.strip(), truncation=True, max_length=CONTEXT_TOKENS, return_tensors="pt", padding=False
    ).input_ids.to(text_encoder.model.device)
    states = text_encoder.language_model(input_ids=tokens, output_hidden_states=True, use_cache=False).hidden_states
    weight = next(connectors.parameters())
    stacked = torch.stack(states, -1).flatten(2).to(weight)
    valid, padding = tokens.shape[1], CONTEXT_TOKENS - tokens.shape[1]
    padded = torch.nn.functional.pad(stacked, (0, 0, padding, 0))
    mask = torch.cat([tokens.new_zeros(1, padding), tokens.new_ones(1, valid)], 1)
    video: Tensor
    audio: Tensor
    video, audio, _ = connectors(padded, mask, padding_side="left")
    return Context(video=video, audio=audio)
