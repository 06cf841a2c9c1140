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


def train(output: Path) -> None:
    """Trains both from scratch and writes `output`; the logs lie beside it, in place of any from before.

    Steps and seeds are fixed; the bytes are not promised, since kernels differ between processors.
    """
    output.parent.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    logs = {name: output.with_name(f"{name}.jsonl") for name in ("transformer", "connectors")}
    for log in logs.values():
        log.unlink(missing_ok=True)
    transformer_state = train_transformer.train(train_transformer.STEPS, logs["transformer"])
    with tempfile.TemporaryDirectory() as folder:
        build_text_encoder(Path(folder))
        text_encoder = load_text_encoder(Path(folder), dtype=torch.float32, device="cpu")
        connectors_state = train_connectors.train(
            train_connectors.STEPS, logs["connectors"], text_encoder.tokenizer, text_encoder.language_model
        )
    write_trained(transformer_state, connectors_state, output)
