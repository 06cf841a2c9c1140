"""Reading and writing prompts at the real size, without weights: the memory that Gemma and the connectors take."""

import contextlib
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any, Final

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers import Gemma3Config, Gemma3ForConditionalGeneration

from benchmarks.hollow_files import GEMMA, PROJECTIONS
from benchmarks.memory import Memory
from benchmarks.stand_in import DEVICE, Device
from pipeline import gemma as writer
from pipeline import residency as placement
from pipeline import text
from pipeline.expansion import MAX_TOKENS
from pipeline.loading import Here
from pipeline.memory import named
from weights import config
from weights.release import published_config
from weights.text_encoder import TextEncoder

HOST: Final = torch.device("cpu")
DTYPE: Final = torch.bfloat16


def record_text(*, tokens: int, residency: str = "resident") -> tuple[int, int]:
    """Reading a prompt of so many tokens: the peak above the weights that stay, and those of Gemma and connectors."""
    gemma, connectors = _bare_gemma(), _bare_connectors()
    home, memory = named(residency), Memory(DEVICE.type)
    reading: Here = contextlib.nullcontext
    connecting: Here = contextlib.nullcontext
    with FakeTensorMode(allow_non_fake_inputs=True), memory, torch.inference_mode():
        _fill_gemma(gemma, device=HOST if home.text_waits else DEVICE)
        _fill(connectors, dtype=DTYPE, device=HOST if home.blocks_wait else DEVICE)
        if home.text_fp8:
            placement.to_fp8(gemma, "model.language_model.layers")
        with Device([]):
            if home.text_waits:
                reading = placement.visiting_text_encoder(gemma, device=DEVICE).by_turns
            if home.blocks_wait:
                connecting = placement.visiting_connectors(connectors, device=DEVICE).by_turns
            memory.peak = resting = memory.live
            with reading():
                states = text.read("", text_encoder=TextEncoder(_Tokens(tokens), gemma))
            with connecting():
                text.context(states, connectors=connectors)
    return memory.peak - resting, resting


def record_writing(*, tokens: int) -> int:
    """Writing after a conversation of so many tokens, with room for the longest answer: the peak above the weights."""
    gemma = _bare_gemma()
    memory = Memory(DEVICE.type)
    with FakeTensorMode(allow_non_fake_inputs=True), memory, torch.inference_mode(), Device([]):
        _fill_gemma(gemma, device=DEVICE)
        memory.peak = resting = memory.live
        answer = writer.write(
            TextEncoder(_Tokens(tokens), gemma),
            instruction="",
            words="",
            image=None,
            seed=0,
            max_tokens=MAX_TOKENS,
            draw=lambda _logits, _rng: 7,
        )
        for _ in range(2):
            next(answer)
    return memory.peak - resting


def _bare_connectors() -> nn.Module:
    with DEVICE:
        return config.build("connectors", published_config(), PROJECTIONS).eval()


def _bare_gemma() -> Any:
    with DEVICE:
        return Gemma3ForConditionalGeneration(Gemma3Config(**GEMMA)).eval()


def _fill_gemma(gemma: Any, *, device: torch.device) -> None:
    _fill(gemma, dtype=DTYPE, device=device)
    gemma.lm_head.weight = gemma.model.language_model.embed_tokens.weight


@dataclass
class _Tokens:
    """A tokenizer that makes as many tokens of everything."""

    count: int
    eos_token_id: int = 1
    added_tokens_decoder: dict[int, Any] = field(default_factory=dict)

    def __call__(self, _words: str, *, return_tensors: str = "", **_options: Any) -> Any:
        tokens = torch.zeros(1, self.count, dtype=torch.long)
        return SimpleNamespace(input_ids=tokens if return_tensors else [])

    def convert_tokens_to_ids(self, _token: str) -> int:
        return self.eos_token_id

    def decode(self, _tokens: list[int], **_options: Any) -> str:
        return ""


def _fill(module: nn.Module, *, dtype: torch.dtype, device: torch.device) -> None:
    """Gives a module tensors that know their device, and no memory."""
    for part in module.modules():
        for name, value in list(part.named_parameters(recurse=False)):
            fresh = torch.empty(value.shape, dtype=dtype, device=device)
            setattr(part, name, nn.Parameter(fresh, requires_grad=False))
        for name, buffer in list(part.named_buffers(recurse=False)):
            kept = dtype if buffer.is_floating_point() else buffer.dtype
            setattr(part, name, torch.empty(buffer.shape, dtype=kept, device=device))
