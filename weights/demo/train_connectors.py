"""Trains the demo connectors to turn any caption into the code of its motion, over a frozen random Gemma."""

import json
import random
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import torch
import torch.nn.functional as F
from diffusers.pipelines.ltx2.connectors import LTX2TextConnectors
from torch import nn

from weights.demo.captions import caption
from weights.demo.train_transformer import AUDIO_DIM, CODE_TOKENS, VIDEO_DIM, context_codes, schedule

REGISTERS: Final = 128
CONFIG: Final = {
    "caption_channels": 256,
    "text_proj_in_factor": 5,
    "video_connector_num_attention_heads": 4,
    "video_connector_attention_head_dim": VIDEO_DIM // 4,
    "video_connector_num_layers": 2,
    "video_connector_num_learnable_registers": REGISTERS,
    "video_gated_attn": True,
    "audio_connector_num_attention_heads": 4,
    "audio_connector_attention_head_dim": AUDIO_DIM // 4,
    "audio_connector_num_layers": 2,
    "audio_connector_num_learnable_registers": REGISTERS,
    "audio_gated_attn": True,
    "connector_rope_base_seq_len": 4096,
    "rope_theta": 10000.0,
    "rope_double_precision": True,
    "causal_temporal_positioning": False,
    "rope_type": "split",
    "per_modality_projections": True,
    "video_hidden_dim": VIDEO_DIM,
    "audio_hidden_dim": AUDIO_DIM,
    "proj_bias": True,
}

STEPS: Final = 2600
LEARNING_RATE: Final = 1e-3
SHARPNESS: Final = 6.0
"""Turns squared distances to the codes, 0 to 2, into logits: being nearest to the right code is what matters."""
LENGTHS: Final = ((64, 28), (64, 28), (128, 14), (64, 28), (64, 28), (1024, 2))
"""Context length and captions a batch, in turn. All the model's life is at 1,024, which is 16 times as dear."""
BARE: Final = 0.15
"""Fraction of the steps in which contexts are short and captions turn from bare camera phrases to whole ones.

Without it nothing is learned for a long time: a few tokens among a thousand registers are hard to find.
"""


def build() -> LTX2TextConnectors:
    """Connectors whose first heads look at the prompt's tokens, not at the thousand registers around them.

    Tokens get a direction in common, and in the dimensions of the head that turn slowest with position, keys follow
    it and queries ask for it. Left to chance, finding the few tokens takes most of the training.
    """
    connectors = LTX2TextConnectors(**CONFIG)
    slow = slice(0, 16)
    with torch.no_grad():
        for name, seed in (("video", 4), ("audio", 5)):
            project = getattr(connectors, f"{name}_text_proj_in")
            width = project.bias.shape[0]
            common = torch.randn(width, generator=torch.Generator().manual_seed(seed)).sign()
            project.weight.mul_(2)
            project.bias.copy_(1.5 * common)
            for block in getattr(connectors, f"{name}_connector").transformer_blocks:
                block.attn1.to_q.bias[slow] = 1.5
                block.attn1.to_k.weight[slow] += 1.5 * common / (0.55 * width)
    return connectors


class Reader:
    """Captions to contexts: tokenizer, frozen Gemma, connectors under training."""

    def __init__(self, tokenizer: Any, gemma: nn.Module, connectors: LTX2TextConnectors) -> None:
        self.tokenizer, self.gemma, self.connectors = tokenizer, gemma, connectors

    def __call__(self, captions: Sequence[str], length: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Contexts, and how many tokens each caption has.

        Shapes: video [B, length, 256], audio [B, length, 160], tokens [B].
        """
        tokens = self.tokenizer(
            list(captions),
            padding="max_length",
            max_length=length,
            truncation=True,
            return_tensors="pt",
            padding_side="left",
        )
        with torch.no_grad():
            states = self.gemma(
                input_ids=tokens.input_ids, attention_mask=tokens.attention_mask, output_hidden_states=True
            ).hidden_states
        stacked = torch.stack(states, -1).flatten(2, 3).float()
        video, audio, _ = _with_registers(self.connectors, min(length, REGISTERS), stacked, tokens.attention_mask)
        return video, audio, tokens.attention_mask.sum(1)


def _with_registers(
    connectors: LTX2TextConnectors, count: int, states: torch.Tensor, mask: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The connectors' forward with only the first `count` registers: a context shorter than they are many."""
    first = {}
    for name in ("video_connector", "audio_connector"):
        connector = getattr(connectors, name)
        connector.num_learnable_registers = count
        first[f"{name}.learnable_registers"] = connector.learnable_registers[:count]
    out: tuple[torch.Tensor, torch.Tensor, torch.Tensor] = torch.func.functional_call(
        connectors, first, (states, mask), {"padding_side": "left"}
    )
    return out


def target(code: torch.Tensor, tokens: torch.Tensor, length: int) -> torch.Tensor:
    """What a context of `length` should be: the code, repeated, at the registers; its mean at the caption's tokens.

    A register knows which of the code's tokens it is to say, a word does not.
    Shapes: code [B, CODE_TOKENS, D], tokens [B] -> [B, length, D].
    """
    mean = code.mean(-2, keepdim=True)
    mean = mean / mean.pow(2).mean(-1, keepdim=True).sqrt()
    repeated = code.repeat(1, length // CODE_TOKENS, 1)
    words = (torch.arange(length)[None] < tokens[:, None])[..., None]
    return torch.where(words, mean, repeated)


def nearest(context: torch.Tensor) -> int:
    """The class whose code a prompt's video context is nearest to. Shapes: [1, length, 256]."""
    code, _ = context_codes()
    return int((context - code.repeat(1, context.shape[1] // CODE_TOKENS, 1)).pow(2).mean((1, 2)).argmin())


def train(
    steps: int, log: Path, tokenizer: Any, gemma: nn.Module, *, lengths: Sequence[tuple[int, int]] = LENGTHS
) -> dict[str, torch.Tensor]:
    """Trains from scratch on random captions in batches of `lengths`; appends a JSON line per 50 steps to `log`.

    Returns the averaged state dict under diffusers names.
    """
    torch.manual_seed(0)
    connectors = build()
    reader = Reader(tokenizer, gemma, connectors)
    averaged = {k: v.detach().clone() for k, v in connectors.state_dict().items()}
    optimizer = torch.optim.AdamW(connectors.parameters(), lr=LEARNING_RATE, betas=(0.9, 0.98), weight_decay=0.01)
    rng = random.Random(3)
    code, audio_code = context_codes()
    began, seen = time.monotonic(), []
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = LEARNING_RATE * schedule(step, steps)
        done = step / (BARE * steps)
        length, count = lengths[step % len(lengths) if done >= 1 else 0]
        captions, classes = zip(*(caption(rng, bare=max(0.0, 1 - done)) for _ in range(count)), strict=True)
        wanted = torch.tensor(classes)
        video, audio, tokens = reader(captions, length)
        loss = torch.zeros(())
        for context, codes in ((video, code), (audio, audio_code)):
            far = torch.stack(
                [(context - target(c.expand(count, -1, -1), tokens, length)).pow(2).mean((1, 2)) for c in codes], 1
            )
            loss = loss + F.cross_entropy(-SHARPNESS * far, wanted) + 0.5 * far.gather(1, wanted[:, None]).mean()
            read = far.argmin(1)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(connectors.parameters(), 1.0)
        optimizer.step()
        keep = min(0.998, (1 + step) / (10 + step))
        with torch.no_grad():
            for name, value in connectors.state_dict().items():
                averaged[name].lerp_(value, 1 - keep)
        seen.append((loss.item(), (read == wanted).float().mean().item()))
        if step % 50 == 49:
            means = [round(sum(values) / len(values), 4) for values in zip(*seen, strict=True)]
            minutes = round((time.monotonic() - began) / 60, 2)
            with log.open("a") as file:
                json.dump({"step": step + 1, "minutes": minutes, "loss": means[0], "right": means[1]}, file)
                file.write("\n")
            seen = []
    return averaged
