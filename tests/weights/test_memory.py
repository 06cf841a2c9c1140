"""Loading holds the weights once: no second copy of them in the memory of the host."""

import copy
import json
import shutil
import subprocess
import sys
from math import prod
from pathlib import Path

import pytest
import torch
from accelerate import init_empty_weights

from weights import config, names
from weights.checkpoint import Checkpoint
from weights.header import Header

ROOT = Path(__file__).parents[2]
MEASURE = Path(__file__).with_name("measure_loading.py")
MB, GB = 10**6, 10**9
BITS = {"BF16": 2, "F32": 4, "F8_E4M3": 1}


def write(path, tensors, metadata, *, noise):
    """A safetensors file of (name, dtype, shape), filled with numbers from `noise`; never whole in memory."""
    table, end = {"__metadata__": metadata}, 0
    for name, dtype, shape in tensors:
        begin, end = end, end + prod(shape) * BITS[dtype]
        table[name] = {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}
    header = json.dumps(table).encode()
    with path.open("wb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        left = end
        while left:
            left -= file.write(noise[: min(left, len(noise))])


@pytest.fixture(scope="module")
def noise():
    return memoryview(
        torch.randn(2_000_000, generator=torch.Generator().manual_seed(0)).bfloat16().view(torch.uint8).numpy()
    )


def transformer_file(path, tiny, noise, *, layers, heads, fp8=False):
    """A transformer with the tiny one's configuration, widened; in fp8 if asked, scales and all."""
    settings = copy.deepcopy(dict(Checkpoint.open(tiny / "ltx-2.3-tiny.safetensors").config))
    transformer = settings["transformer"]
    transformer["num_layers"] = layers
    transformer["num_attention_heads"] = transformer["audio_num_attention_heads"] = heads
    transformer["attention_head_dim"], transformer["audio_attention_head_dim"] = 128, 64
    transformer["cross_attention_dim"], transformer["audio_cross_attention_dim"] = heads * 128, heads * 64
    with init_empty_weights():
        module = config.construct("transformer", config.transformer_arguments(transformer))
    tensors = []
    for name, value in module.state_dict().items():
        published, shape = names.to_published(name, "transformer"), list(value.shape)
        if fp8 and value.dim() == 2 and name.endswith(".weight") and "transformer_blocks" in name:
            tensors.append((published, "F8_E4M3", shape))
            tensors += [(published.replace(".weight", end), "F32", []) for end in (".weight_scale", ".input_scale")]
        else:
            tensors.append((published, "BF16", shape))
    write(path, tensors, {"config": json.dumps(settings), "model_version": "2.3.0"}, noise=noise)
    return path


def text_encoder_folder(folder, tiny, noise, *, vocabulary):
    """The tiny text encoder, widened by its vocabulary."""
    folder.mkdir()
    for path in (tiny / "gemma").iterdir():
        if path.suffix != ".safetensors":
            shutil.copy(path, folder)
    settings = json.loads((folder / "config.json").read_text())
    tiny_vocabulary = settings["text_config"]["vocab_size"]
    settings["text_config"]["vocab_size"] = vocabulary
    (folder / "config.json").write_text(json.dumps(settings))
    tensors = [
        (name, "BF16", [vocabulary if side == tiny_vocabulary else side for side in stored.shape])
        for name, stored in Header.read(tiny / "gemma" / "model.safetensors").tensors.items()
    ]
    write(folder / "model.safetensors", tensors, {"format": "pt"}, noise=noise)
    return folder


def measured(*jobs):
    """What each of `jobs` (kind, path, dtype, whether to keep fp8) cost, in bytes."""
    wanted = json.dumps([(kind, str(path), dtype, keep) for kind, path, dtype, keep in jobs])
    out = subprocess.run([sys.executable, MEASURE, wanted], capture_output=True, text=True, cwd=ROOT)
    assert out.returncode == 0, out.stderr
    return json.loads(out.stdout)


def test_weights_are_held_once_whatever_they_are_loaded_from_and_as(tiny, noise, tmp_path):
    plain = transformer_file(tmp_path / "plain.safetensors", tiny, noise, layers=4, heads=6)
    scaled = transformer_file(tmp_path / "fp8.safetensors", tiny, noise, layers=4, heads=6, fp8=True)
    gemma = text_encoder_folder(tmp_path / "gemma", tiny, noise, vocabulary=2_000_000)
    costs = measured(
        ("transformer", plain, "bfloat16", True),
        ("transformer", scaled, "bfloat16", False),
        ("text_encoder", gemma, "bfloat16", True),
    )
    assert [cost["loaded"] // (10 * MB) for cost in costs] == [14, 14, 12]
    for cost in costs:
        # half of a second copy would be seen
        assert cost["peak"] <= 1.5 * cost["loaded"]


@pytest.mark.slow
def test_three_gigabytes_cost_at_most_themselves_the_largest_tensor_and_200_mb(tiny, noise, tmp_path):
    path = transformer_file(tmp_path / "large.safetensors", tiny, noise, layers=27, heads=12)
    assert path.stat().st_size > 3 * GB
    [cost] = measured(("transformer", path, "bfloat16", True))
    sys.stdout.write(f"{cost}\n")
    assert cost["loaded"] > 3 * GB
    assert cost["peak"] <= cost["loaded"] + cost["largest"] + 200 * MB
