"""Files as long as the published ones, with their headers and with holes in the place of tensors.

Sources: sizes and counts of tensors of the published files as measured by others; DiffSynth-Studio,
diffsynth/configs/model_configs.py, for the md5 of Gemma; Lightricks/LTX-2, ltx_core/quantization/fp8_cast.py, for the
number of scales.
"""

import json
from math import prod

import pytest
from accelerate import init_empty_weights
from transformers import Gemma3Config, Gemma3ForConditionalGeneration

from weights import fp8
from weights.check import inspect
from weights.checkpoint import Checkpoint, layout
from weights.header import Header, layout_md5
from weights.manifest import Manifest
from weights.names import KINDS
from weights.release import published_config
from weights.text_encoder import TextEncoderFiles

SIZES = {"BF16": 2, "F32": 4, "F8_E4M3": 1, "U8": 1}
NOTHING = Manifest(())


@pytest.fixture(scope="module")
def shapes(published_layout):
    """Of every tensor of the single file."""
    return {name: shape for kind in KINDS if kind != "upsampler" for name, shape in published_layout[kind].items()}


def write(path, tensors, **metadata):
    """A file of (dtype, shape) by name, with a hole in the place of the tensors."""
    table, end = {"__metadata__": metadata} if metadata else {}, 0
    for name, (dtype, shape) in sorted(tensors.items(), key=lambda item: (item[1][0] != "F32", item[0])):
        begin, end = end, end + prod(shape) * SIZES[dtype]
        table[name] = {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}
    header = json.dumps(table).encode()
    with path.open("wb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        file.truncate(8 + len(header) + end)
    return path


def types(shapes):
    """As published: tables of the blocks in four bytes, all else in two."""
    return {name: ("F32" if "scale_shift_table" in name else "BF16", shape) for name, shape in shapes.items()}


def test_the_single_file_is_known_by_its_header(tmp_path, shapes):
    path = write(
        tmp_path / "dev.safetensors", types(shapes), config=json.dumps(published_config()), model_version="2.3.0"
    )
    assert sum(stored.nbytes for stored in Header.read(path).tensors.values()) == 46_148_472_534
    report = inspect(path, manifest=NOTHING)
    assert report.what == "LTX-2.3, single file, no fp8"
    assert report.faults == ()
    assert "5,947 tensors: 5,657 BF16, 290 F32" in report.facts
    assert "names and shapes: those of the published single files" in report.facts
    assert "transformer: 4,186 tensors, all as its configuration says" in report.facts


@pytest.mark.parametrize(
    ("blocks", "linears", "tensors"), [(range(2, 46), 1496, 8939), ((*range(4, 46), 46), 1462, 8871)]
)
def test_the_fp8_files_are_known_by_their_scales_whichever_blocks_have_them(
    tmp_path, shapes, blocks, linears, tensors
):
    stored = types(shapes)
    for name, shape in shapes.items():
        block = name.removeprefix("model.diffusion_model.transformer_blocks.").partition(".")[0]
        if block.isdigit() and int(block) in blocks and name.endswith(".weight") and len(shape) == 2:
            stored[name] = ("F8_E4M3", shape)
            stored |= {name.replace(".weight", end): ("F32", ()) for end in fp8.SCALES}
    path = write(tmp_path / "fp8.safetensors", stored, config=json.dumps(published_config()), model_version="2.3.0")
    opened = Checkpoint.open(path)
    assert len(opened.tensors) == tensors
    scaled = fp8.scaled(opened.tensors)
    assert len(scaled) == linears
    assert any(name.endswith("to_gate_logits") for name in scaled)
    transformer = layout(opened, "transformer")
    assert sum(isinstance(part, fp8.Fp8Linear) for part in transformer.modules()) == linears


def test_the_distilled_lora_is_known_by_its_header(tmp_path, published_layout):
    pairs = {}
    for name, shape in published_layout["transformer"].items():
        if name.endswith(".weight") and len(shape) == 2:
            module, rank = name.removeprefix("model.").removesuffix(".weight"), min(384, *shape)
            pairs[f"{module}.lora_A.weight"] = ("BF16", (rank, shape[1]))
            pairs[f"{module}.lora_B.weight"] = ("BF16", (shape[0], rank))
    path = write(tmp_path / "lora.safetensors", pairs)
    assert sum(stored.nbytes for stored in Header.read(path).tensors.values()) == 7_604_994_048
    report = inspect(path, manifest=NOTHING)
    assert report.faults == ()
    assert report.what == "a LoRA for LTX-2.3"
    assert "1,660 targets of 1,660" in report.facts


def test_the_upsampler_is_known_by_its_header(tmp_path, published_layout):
    settings = {
        "_class_name": "LatentUpsampler",
        "in_channels": 128,
        "mid_channels": 1024,
        "num_blocks_per_stage": 4,
        "dims": 3,
        "spatial_upsample": True,
        "temporal_upsample": False,
        "spatial_scale": 2.0,
        "rational_resampler": False,
    }
    path = write(tmp_path / "up.safetensors", types(published_layout["upsampler"]), config=json.dumps(settings))
    report = inspect(path, manifest=NOTHING)
    assert report.what == "a latent upsampler"
    assert report.faults == ()
    assert "upsampler: 72 tensors, all as its configuration says" in report.facts


@pytest.fixture(scope="module")
def gemma():
    """Tensors of the published text encoder. Source of what is not a default: google/gemma-3-12b-it, config.json."""
    text = {
        "hidden_size": 3840,
        "num_hidden_layers": 48,
        "num_attention_heads": 16,
        "num_key_value_heads": 8,
        "head_dim": 256,
        "intermediate_size": 15_360,
        "vocab_size": 262_208,
    }
    vision = {
        "hidden_size": 1152,
        "num_hidden_layers": 27,
        "num_attention_heads": 16,
        "intermediate_size": 4304,
        "image_size": 896,
        "patch_size": 14,
        "vision_use_head": False,
    }
    with init_empty_weights():
        model = Gemma3ForConditionalGeneration(Gemma3Config(text_config=text, vision_config=vision))
    shapes = {
        name.removeprefix("model.")
        .replace("vision_tower.", "vision_tower.vision_model.")
        .replace("language_model.", "language_model.model."): tuple(value.shape)
        for name, value in model.state_dict().items()
        if name != "lm_head.weight"
    }
    assert layout_md5(shapes.items()) == "33917f31c4a79196171154cca39f165e"
    return shapes


def test_the_single_file_text_encoder_is_known_by_its_header(tmp_path, gemma):
    repacked = {
        name.replace("language_model.model.", "model.").replace("vision_tower.", ""): ("BF16", shape)
        for name, shape in gemma.items()
    }
    repacked["spiece_model"] = ("U8", (4_689_074,))
    path = write(tmp_path / "gemma_3_12B_it.safetensors", repacked)
    assert sum(stored.nbytes for stored in Header.read(path).tensors.values()) == 24_374_650_080 + 4_689_074
    files = TextEncoderFiles.open(path)
    assert len(files.tensors) == 1065
    assert files.features == 188_160
