"""Files as long as the published ones, with their headers and with holes in the place of tensors.

Sources: sizes and counts of tensors of the published files as measured by others; DiffSynth-Studio,
diffsynth/configs/model_configs.py, for the md5; Lightricks/LTX-2, ltx_core/quantization/fp8_cast.py, for the number of
scales.
"""

import json
from math import prod
from pathlib import Path

import pytest

from weights import fp8
from weights.check import inspect
from weights.checkpoint import Checkpoint
from weights.header import Header
from weights.manifest import Manifest
from weights.names import KINDS

CONFIG = Path(__file__).parent / "layout" / "ltx-2.3-config.json"
SIZES = {"BF16": 2, "F32": 4, "F8_E4M3": 1}
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
    path = write(tmp_path / "dev.safetensors", types(shapes), config=CONFIG.read_text(), model_version="2.3.0")
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
    path = write(tmp_path / "fp8.safetensors", stored, config=CONFIG.read_text(), model_version="2.3.0")
    opened = Checkpoint.open(path)
    assert len(opened.tensors) == tensors
    assert any(name.endswith("to_gate_logits") for name in fp8.scaled(opened.tensors))
    report = inspect(path, manifest=NOTHING)
    assert report.what == f"LTX-2.3, single file, fp8 in {linears:,} Linears"
    assert report.faults == ()
    assert "names and shapes: those of the published single files" in report.facts


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
