import gzip
import json
from pathlib import Path

import pytest

from weights import names

LAYOUT = Path(__file__).parent / "layout" / "ltx-2.3.json.gz"


@pytest.fixture(scope="module")
def tensors():
    """Of the published 2.3 files: [published name, diffusers name, shape] of every tensor, by component."""
    return json.loads(gzip.decompress(LAYOUT.read_bytes()))["tensors"]


def test_all_names_of_the_published_files_translate_both_ways(tensors):
    assert sum(map(len, tensors.values())) == 6019
    for kind, rows in tensors.items():
        for published, name, _ in rows:
            assert names.to_diffusers(published, kind) == name
            assert names.to_published(name, kind) == published


def test_every_tensor_of_the_single_file_belongs_to_one_component(tensors):
    for kind, rows in tensors.items():
        if kind != "upsampler":
            assert {names.kind_of(published) for published, _, _ in rows} == {kind}


@pytest.mark.parametrize("name", ["", "vae", "optimizer.state", "model.proj_in.weight"])
def test_a_name_of_no_component_is_of_no_kind(name):
    assert names.kind_of(name) is None


def test_a_name_of_another_component_does_not_translate():
    with pytest.raises(ValueError, match=r"audio_vae"):
        names.to_diffusers("vocoder.vocoder.conv_pre.weight", "audio_vae")
