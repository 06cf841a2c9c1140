"""From a prompt to the context that the transformer reads: tokenizer, Gemma's hidden states, connectors."""

import math
from collections import OrderedDict
from collections.abc import Callable
from typing import Any, Final

import torch
import torch.nn.functional as F
from torch import Tensor

from pipeline.transformer import Context
from weights.text_encoder import TextEncoder

CONTEXT_TOKENS: Final = 1024
MAX_CONTEXTS: Final = 16
"""At the size of LTX-2.3 a context is 12.6 MB in bfloat16."""
EPS: Final = 1e-6


def surplus(prompt: str, *, text_encoder: TextEncoder) -> int:
    """Tokens at the end of `prompt` that the model does not read: it reads 1,024."""
    return max(0, len(text_encoder.tokenizer(prompt.strip()).input_ids) - CONTEXT_TOKENS)


@torch.inference_mode()
def encode(prompt: str, *, text_encoder: TextEncoder, connectors: Any) -> Context:
    """The context of `prompt`: its tokens first, learned registers after them, 1,024 in all.

    The states of all of Gemma's layers are read, each normalised for itself.
    Source: golden conventions of LTX-2 1.2.0, section 2.
    """
    return context(read(prompt, text_encoder=text_encoder), connectors=connectors)


@torch.inference_mode()
def read(prompt: str, *, text_encoder: TextEncoder) -> tuple[Tensor, ...]:
    """The hidden states of `prompt`, as `hidden_states` gives them."""
    tokens = text_encoder.tokenizer(
        prompt.strip(), truncation=True, max_length=CONTEXT_TOKENS, return_tensors="pt", padding=False
    ).input_ids
    return hidden_states(tokens, text_encoder=text_encoder)


@torch.inference_mode()
def context(states: tuple[Tensor, ...], *, connectors: Any) -> Context:
    """The context of a prompt with these hidden states, one of each layer. Shapes: each [1, n, H]."""
    video_in, audio_in = connectors.video_text_proj_in, connectors.audio_text_proj_in
    width = states[0].shape[-1]
    # layers are the innermost axis of a projection's input
    stacked = torch.stack([F.rms_norm(s, (width,), eps=EPS) for s in states], -1).flatten(2).to(video_in.weight)
    return Context(
        video=_connected(connectors.video_connector, video_in(stacked * math.sqrt(video_in.out_features / width))),
        audio=_connected(connectors.audio_connector, audio_in(stacked * math.sqrt(audio_in.out_features / width))),
    )


@torch.inference_mode()
def hidden_states(tokens: Tensor, *, text_encoder: TextEncoder) -> tuple[Tensor, ...]:
    """The embeddings, then the output of every layer, the last one normalised. Shapes: [1, n] -> each [1, n, H].

    The reference pads on the left to 1,024 and counts positions over the padding, which it masks. The same positions
    without the padding give the same states. Words are looked up where their table lies, the host or the device.
    """
    padding = CONTEXT_TOKENS - tokens.shape[1]
    language_model: Any = text_encoder.language_model
    words, device = language_model.embed_tokens, language_model.norm.weight.device
    out = language_model(
        inputs_embeds=words(tokens.to(words.weight.device)).to(device),
        position_ids=torch.arange(padding, CONTEXT_TOKENS, device=device)[None],
        output_hidden_states=True,
        use_cache=False,
    )
    states: tuple[Tensor, ...] = out.hidden_states
    return states


def _connected(connector: Any, tokens: Tensor) -> Tensor:
    """`tokens` after the connector; what registers fill up behind them need not be padded and projected before.

    Shapes: [1, n, D] -> [1, 1024, D].
    """
    registers = connector.learnable_registers.to(tokens)
    filling = registers.repeat(CONTEXT_TOKENS // len(registers), 1)[None, tokens.shape[1] :]
    x = torch.cat([tokens, filling], 1)
    rope = connector.rope(1, CONTEXT_TOKENS, device=x.device)
    for block in connector.transformer_blocks:
        x = block(x, attention_mask=None, rotary_emb=rope)
    out: Tensor = connector.norm_out(x)
    return out


class Contexts:
    """The contexts of the prompts read last, in the memory of the host, and those of the prompts to be kept."""

    def __init__(self, encode: Callable[[str], Context], *, at_most: int = MAX_CONTEXTS) -> None:
        self._encode, self._at_most = encode, at_most
        self._kept: dict[str, Context] = {}
        self._recent: OrderedDict[str, Context] = OrderedDict()

    def keep(self, prompt: str) -> None:
        """Reads `prompt` now, and never again."""
        self._kept[prompt.strip()] = _moved(self._encode(prompt), "cpu")

    def of(self, prompt: str, *, device: torch.device | str) -> Context:
        """The context of `prompt`, on `device`."""
        key = prompt.strip()
        if key in self._kept:
            return _moved(self._kept[key], device)
        if key not in self._recent:
            self._recent[key] = _moved(self._encode(prompt), "cpu")
        self._recent.move_to_end(key)
        while len(self._recent) > self._at_most:
            self._recent.popitem(last=False)
        return _moved(self._recent[key], device)


def _moved(context: Context, device: torch.device | str) -> Context:
    return Context(video=context.video.to(device), audio=context.audio.to(device))
