"""Every component at its real size, built on the meta device from the configuration that the real file carries.

The figures are those of the published files. Sources: DiffSynth-Studio, diffsynth/configs/model_configs.py, for the
md5 of the names and shapes of ltx-2.3-22b-dev.safetensors and of the Gemma 3 folder, made as in
diffsynth/core/loader/file.py; for the bytes, the size of the published file less its header.
"""

import hashlib
import math

import pytest
import torch
from transformers import Gemma3Config, Gemma3ForConditionalGeneration

from weights import config, names
from weights.release import published_config

UPSAMPLER = {
    "in_channels": 128,
    "mid_channels": 1024,
    "num_blocks_per_stage": 4,
    "dims": 3,
    "spatial_upsample": True,
    "temporal_upsample": False,
}
PROJECTIONS = {
    "text_embedding_projection.video_aggregate_embed.weight": (4096, 188160),
    "text_embedding_projection.video_aggregate_embed.bias": (4096,),
    "text_embedding_projection.audio_aggregate_embed.weight": (2048, 188160),
}
TENSORS = {
    "transformer": 4186,
    "connectors": 262,
    "vae": 170,
    "audio_vae": 102,
    "vocoder": 1227,
    "upsampler": 72,
}
SINGLE_FILE = [kind for kind in names.KINDS if kind != "upsampler"]


@pytest.fixture(scope="module")
def shapes():
    """Shape of every tensor, under its published name, by component."""
    published = published_config()

    def of(kind):
        with torch.device("meta"):
            module = config.build(kind, UPSAMPLER if kind == "upsampler" else published, PROJECTIONS)
        return {names.to_published(name, kind): tuple(value.shape) for name, value in module.state_dict().items()}

    return {kind: of(kind) for kind in names.KINDS}


@pytest.fixture(scope="module")
def single_file(shapes):
    return {name: shape for kind in SINGLE_FILE for name, shape in shapes[kind].items()}


def elements(shapes):
    return sum(map(math.prod, shapes.values()))


def md5(shapes):
    words = sorted(word for name, shape in shapes.items() for word in (f"{name}:{'_'.join(map(str, shape))}", name))
    return hashlib.md5(",".join(words).encode(), usedforsecurity=False).hexdigest()


def test_every_component_has_as_many_tensors_as_the_published_file(shapes):
    assert {kind: len(of_kind) for kind, of_kind in shapes.items()} == TENSORS


def test_the_single_file_has_5947_tensors(single_file):
    assert len(single_file) == 5947


def test_names_and_shapes_are_those_of_the_published_file(single_file):
    assert md5(single_file) == "f3a83ecf3995dcc4fae2d27e08ad5767"


def test_the_transformer_has_18988838144_parameters(shapes):
    assert elements(shapes["transformer"]) == 18_988_838_144


def _is_float32(name):
    """The published files keep these in float32, all others in bfloat16."""
    return "scale_shift_table" in name


def test_290_tensors_are_float32(single_file):
    assert sum(_is_float32(name) for name in single_file) == 290


def test_the_bytes_of_all_tensors_are_those_of_the_published_file(single_file):
    """Its 46,149,344,974 bytes are a length of 8, a header of 872,432 and these."""
    assert elements(single_file) == 23_069_505_387
    data = sum(math.prod(shape) * (4 if _is_float32(name) else 2) for name, shape in single_file.items())
    assert data == 46_148_472_534


def test_the_text_encoder_has_the_names_and_shapes_of_the_published_folder():
    """Which vocabulary, how many layers and no pooling head: what the folder's own config.json must say."""
    text = {
        "vocab_size": 262_208,
        "hidden_size": 3840,
        "intermediate_size": 15_360,
        "num_hidden_layers": 48,
        "num_attention_heads": 16,
        "num_key_value_heads": 8,
        "head_dim": 256,
    }
    vision = {
        "hidden_size": 1152,
        "intermediate_size": 4304,
        "num_hidden_layers": 27,
        "num_attention_heads": 16,
        "image_size": 896,
        "patch_size": 14,
        "vision_use_head": False,
    }
    with torch.device("meta"):
        gemma = Gemma3ForConditionalGeneration(Gemma3Config(text_config=text, vision_config=vision))
    found = {_published_gemma(name): tuple(value.shape) for name, value in gemma.state_dict().items()}
    del found["lm_head.weight"]  # the embeddings, once more
    assert len(found) == 1065
    assert md5(found) == "33917f31c4a79196171154cca39f165e"


def _published_gemma(name):
    name = name.removeprefix("model.").replace("vision_tower.", "vision_tower.vision_model.")
    return name.replace("language_model.", "language_model.model.")
