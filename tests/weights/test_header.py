"""A header tells what a file holds, and a file that does not fit its header is refused."""

import hashlib
import json

import pytest
import torch
from safetensors.torch import save_file

from weights.errors import WeightsFileError
from weights.header import Header, layout_md5


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "model.safetensors"
    tensors = {
        "scale": torch.tensor(0.5),
        "weight": torch.ones(3, 4).to(torch.float8_e4m3fn),
        "bias": torch.ones(3, dtype=torch.bfloat16),
    }
    save_file(tensors, path, metadata={"format": "pt"})
    return path


def test_names_types_shapes_and_metadata_are_read(path):
    header = Header.read(path)
    assert {name: (stored.dtype, stored.shape) for name, stored in header.tensors.items()} == {
        "scale": ("F32", ()),
        "weight": ("F8_E4M3", (3, 4)),
        "bias": ("BF16", (3,)),
    }
    assert header.metadata == {"format": "pt"}
    assert header.size == path.stat().st_size
    assert header.tensors["weight"].nbytes == 12


def test_the_digest_is_that_of_the_header_alone(path):
    raw = path.read_bytes()
    length = int.from_bytes(raw[:8], "little")
    assert Header.read(path).sha256 == hashlib.sha256(raw[8 : 8 + length]).hexdigest()
    path.write_bytes(raw[:-1] + bytes([raw[-1] ^ 1]))
    assert Header.read(path).sha256 == hashlib.sha256(raw[8 : 8 + length]).hexdigest()


@pytest.mark.parametrize(("change", "says"), [(-1, "it is cut short"), (1, "it is too long")])
def test_a_file_longer_or_shorter_than_its_header_says_is_refused(path, change, says):
    raw = path.read_bytes()
    path.write_bytes(raw[:change] if change < 0 else raw + b"\0" * change)
    with pytest.raises(WeightsFileError, match=says) as caught:
        Header.read(path)
    assert f"found {len(raw) + change:,} bytes; expected {len(raw):,}" in str(caught.value)


@pytest.mark.parametrize(
    "table",
    [
        [],
        {"a": {}},
        {"a": {"dtype": "F4", "shape": [1], "data_offsets": [0, 1]}},
        {"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 3]}},
        {"a": {"dtype": "F32", "shape": 1, "data_offsets": [0, 4]}},
    ],
)
def test_a_malformed_header_is_refused(tmp_path, table):
    raw = json.dumps(table).encode()
    path = tmp_path / "bad.safetensors"
    path.write_bytes(len(raw).to_bytes(8, "little") + raw + b"\0" * 8)
    with pytest.raises(WeightsFileError, match=r"bad\.safetensors: found"):
        Header.read(path)


def test_the_layout_has_the_digest_that_was_published_for_the_real_upsampler(published_layout):
    assert layout_md5(published_layout["upsampler"].items()) == "aed408774d694a2452f69936c32febb5"
