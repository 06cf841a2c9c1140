"""Trains what of the demo weights is trained: the transformer, then the connectors. Hours of one core."""

import tempfile
from pathlib import Path
from typing import Final

import torch

from weights.demo import train_connectors, train_transformer
from weights.demo.build import write_trained
from weights.demo.text_encoder import build_text_encoder
from weights.text_encoder import load_text_encoder

TRAINED: Final = Path(__file__).with_name("trained.safetensors")
"""The trained part that is committed; its sha256 and training log lie beside it."""


def train(output: Path, *, transformer: int | None = None, connectors: int | None = None) -> None:
    """Trains both from scratch, for so many steps each, and writes `output`; the logs lie beside it.

    Steps and seeds are fixed; the bytes are not promised, since kernels differ between processors.
    """
    output.parent.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    transformer_state = train_transformer.train(
        transformer or train_transformer.STEPS, output.with_name("transformer.jsonl")
    )
    with tempfile.TemporaryDirectory() as folder:
        build_text_encoder(Path(folder))
        text_encoder = load_text_encoder(Path(folder), dtype=torch.float32, device="cpu")
        connectors_state = train_connectors.train(
            connectors or train_connectors.STEPS,
            output.with_name("connectors.jsonl"),
            text_encoder.tokenizer,
            text_encoder.model.model,
        )
    write_trained(transformer_state, connectors_state, output)
