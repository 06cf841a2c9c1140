"""Gemma 3 in its files: how they spell its tensors, and what a file without a configuration is built with."""

from collections.abc import Mapping
from math import isqrt
from typing import Any, Final

from weights.header import Stored

_PREFIXES: Final = (
    # the folder of google/gemma-3-12b-it
    ("language_model.model.", "model.language_model."),
    ("vision_tower.vision_model.", "model.vision_tower."),
    ("multi_modal_projector.", "model.multi_modal_projector."),
    # the same, saved by transformers 5
    ("vision_tower.", "model.vision_tower."),
    # the single file for ComfyUI
    ("vision_model.", "model.vision_tower."),
    ("model.", "model.language_model."),
)
"""Beginnings of names as files spell them, and as transformers does; the first that fits is exchanged."""
HEADS: Final = frozenset({"lm_head.weight", "language_model.lm_head.weight"})
"""Where a file holds it, the head is a copy of the embedding."""
SENTENCEPIECE: Final = "spiece_model"
"""The tokenizer, in the single file for ComfyUI."""


def to_transformers(name: str) -> str:
    """The name in the module's state dict; one that is no file's spelling stays as it is."""
    for ours, theirs in _PREFIXES:
        if name.startswith(ours):
            return theirs + name.removeprefix(ours)
    return name


def is_part(name: str) -> bool:
    """Whether a file with a tensor of this name belongs to a Gemma 3."""
    return name.startswith(tuple(ours for ours, _ in _PREFIXES))


def guess_config(tensors: Mapping[str, Stored]) -> dict[str, Any]:
    """The configuration of a file that has none, from the shapes of its tensors under the names of transformers.

    Source: google/gemma-3-12b-it, config.json, for all that shapes do not tell.
    Raises: KeyError for a tensor that is not there.
    """
    text, vision = "model.language_model.", "model.vision_tower."

    def shape(name: str) -> tuple[int, ...]:
        return tensors[name].shape

    def layers(prefix: str) -> int:
        return len({name.removeprefix(prefix).partition(".")[0] for name in tensors if name.startswith(prefix)})

    vocabulary, hidden = shape(f"{text}embed_tokens.weight")
    (head,) = shape(f"{text}layers.0.self_attn.q_norm.weight")
    depth = layers(f"{text}layers.")
    channels, _, patch, _ = shape(f"{vision}embeddings.patch_embedding.weight")
    places, _ = shape(f"{vision}embeddings.position_embedding.weight")
    return {
        "boi_token_index": 255_999,
        "eoi_token_index": 256_000,
        "image_token_index": 262_144,
        "eos_token_id": [1, 106],
        "mm_tokens_per_image": 256,
        "text_config": {
            "vocab_size": vocabulary,
            "hidden_size": hidden,
            "head_dim": head,
            "query_pre_attn_scalar": head,
            "num_hidden_layers": depth,
            "num_attention_heads": shape(f"{text}layers.0.self_attn.q_proj.weight")[0] // head,
            "num_key_value_heads": shape(f"{text}layers.0.self_attn.k_proj.weight")[0] // head,
            "intermediate_size": shape(f"{text}layers.0.mlp.gate_proj.weight")[0],
            "layer_types": ["full_attention" if i % 6 == 5 else "sliding_attention" for i in range(depth)],
            "sliding_window": 1024,
            "max_position_embeddings": 131_072,
            "rms_norm_eps": 1e-6,
            "rope_parameters": {
                "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1_000_000.0},
                "sliding_attention": {"rope_type": "default", "rope_theta": 10_000.0},
            },
        },
        "vision_config": {
            "hidden_size": channels,
            "patch_size": patch,
            "image_size": isqrt(places) * patch,
            "num_hidden_layers": layers(f"{vision}encoder.layers."),
            "num_attention_heads": 16,
            "intermediate_size": shape(f"{vision}encoder.layers.0.mlp.fc1.weight")[0],
            "vision_use_head": False,
        },
    }
