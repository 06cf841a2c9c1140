"""The published files with their headers and holes in the place of tensors: as long, and next to nothing on disk.

What a recipe loads, written where it looks for it. Gemma's tokenizer is the demo's: its words are beside the point.
"""

import json
from collections.abc import Mapping
from dataclasses import replace
from math import prod
from pathlib import Path
from typing import Any, Final

import torch
from transformers import Gemma3Config, Gemma3ForConditionalGeneration

from pipeline.recipe import Recipe
from weights import config, names
from weights.demo import text_encoder
from weights.release import published_config

UPSAMPLER: Final = {
    "in_channels": 128,
    "mid_channels": 1024,
    "num_blocks_per_stage": 4,
    "dims": 3,
    "spatial_upsample": True,
    "temporal_upsample": False,
}
GEMMA: Final[Mapping[str, Any]] = {
    "model_type": "gemma3",
    "boi_token_index": 255_999,
    "eoi_token_index": 256_000,
    "image_token_index": 262_144,
    "text_config": {
        "vocab_size": 262_208,
        "hidden_size": 3840,
        "intermediate_size": 15_360,
        "num_hidden_layers": 48,
        "num_attention_heads": 16,
        "num_key_value_heads": 8,
        "head_dim": 256,
    },
    "vision_config": {
        "hidden_size": 1152,
        "intermediate_size": 4304,
        "num_hidden_layers": 27,
        "num_attention_heads": 16,
        "image_size": 896,
        "patch_size": 14,
        "vision_use_head": False,
    },
}
_FEATURES: Final = 188_160
"""Numbers that Gemma gives for each token."""
PROJECTIONS: Final = {
    "text_embedding_projection.video_aggregate_embed.weight": (4096, _FEATURES),
    "text_embedding_projection.video_aggregate_embed.bias": (4096,),
    "text_embedding_projection.audio_aggregate_embed.weight": (2048, _FEATURES),
}
_RANK: Final = 384
_SIZES: Final = {"BF16": 2, "F32": 4}
Shapes = dict[str, tuple[int, ...]]


def write(recipe: Recipe, folder: Path) -> Recipe:
    """Writes what `recipe` loads into `folder`; gives the recipe with these files, under names of our own."""
    of_kind = {kind: _shapes(kind) for kind in names.KINDS}
    checkpoint = {
        name: shape for kind, shapes in of_kind.items() if kind != "upsampler" for name, shape in shapes.items()
    }
    about = {"config": json.dumps(published_config()), "model_version": "2.3.0"}
    _write(folder / "checkpoint.safetensors", checkpoint, about)
    _write_gemma(folder / "gemma")
    if recipe.lora:
        _write(folder / "lora.safetensors", _lora(of_kind["transformer"]), {})
    if recipe.upsampler:
        _write(folder / "upsampler.safetensors", of_kind["upsampler"], {"config": json.dumps(UPSAMPLER)})
    return replace(
        recipe,
        checkpoint="checkpoint.safetensors",
        text_encoder="gemma",
        lora="lora.safetensors" if recipe.lora else "",
        upsampler="upsampler.safetensors" if recipe.upsampler else "",
    )


def _shapes(kind: names.Kind) -> Shapes:
    with torch.device("meta"):
        module = config.build(kind, UPSAMPLER if kind == "upsampler" else published_config(), PROJECTIONS)
    return {names.to_published(name, kind): tuple(value.shape) for name, value in module.state_dict().items()}


def _lora(transformer: Shapes) -> Shapes:
    """Of every matrix, with the rank that the published one has."""
    pairs: Shapes = {}
    for name, shape in transformer.items():
        if len(shape) == 2 and name.endswith(".weight"):
            module = name.removeprefix("model.").removesuffix(".weight")
            rank = min(_RANK, *shape)
            pairs |= {f"{module}.lora_A.weight": (rank, shape[1]), f"{module}.lora_B.weight": (shape[0], rank)}
    return pairs


def _write_gemma(folder: Path) -> None:
    folder.mkdir()
    text_encoder.train_tokenizer().save(str(folder / "tokenizer.json"))
    settings = {"config.json": GEMMA, "tokenizer_config.json": text_encoder.configs(0)["tokenizer_config.json"]}
    for name, content in settings.items():
        (folder / name).write_text(json.dumps(content))
    with torch.device("meta"):
        gemma = Gemma3ForConditionalGeneration(Gemma3Config(**GEMMA))
    shapes = {name: tuple(value.shape) for name, value in gemma.state_dict().items() if name != "lm_head.weight"}
    _write(folder / "model.safetensors", {_published(name): shape for name, shape in shapes.items()}, {})


def _published(name: str) -> str:
    name = name.removeprefix("model.").replace("vision_tower.", "vision_tower.vision_model.")
    return name.replace("language_model.", "language_model.model.")


def _write(path: Path, shapes: Shapes, metadata: Mapping[str, str]) -> None:
    table: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    end = 0
    for name, shape in shapes.items():
        dtype = "F32" if "scale_shift_table" in name else "BF16"
        begin, end = end, end + prod(shape) * _SIZES[dtype]
        table[name] = {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}
    header = json.dumps(table).encode()
    with path.open("wb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        file.truncate(8 + len(header) + end)
