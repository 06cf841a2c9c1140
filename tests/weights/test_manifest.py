"""The manifest names the real files, each whole enough to be fetched and held against."""

import re

from weights.manifest import load_manifest, total

GEMMA = "gemma-3-12b-it-qat-q4_0-unquantized"
MONOLITH = 2 * 23_069_505_387 + 2 * 4_730_880
"""Bytes of the tensors of LTX-2.3: all in two bytes, those of the 290 tables in four."""


def test_every_large_file_has_a_size_and_a_sum_and_every_revision_is_a_commit():
    files = load_manifest().files
    for file in files:
        assert re.fullmatch(r"[0-9a-f]{40}", file.revision)
        assert file.sha256 is None or re.fullmatch(r"[0-9a-f]{64}", file.sha256)
        assert (file.size is None) == (file.sha256 is None)
        if file.size is None:
            assert file.path.endswith(".json")
    assert len({file.name for file in files}) == len(files)
    sums = [file.sha256 for file in files if file.sha256]
    assert len(set(sums)) == len(sums)


def test_the_sizes_are_those_of_the_tensors_and_a_header():
    manifest = load_manifest()
    for name in ("ltx-2.3-22b-dev.safetensors", "ltx-2.3-22b-distilled-1.1.safetensors"):
        [file] = manifest.find(name)
        assert 0 < file.size - MONOLITH < 1_000_000
    shards = [file for file in manifest.find(GEMMA) if file.path.endswith(".safetensors")]
    assert len(shards) == 5
    assert total(shards) == 24_374_793_024
    assert 0 < total(shards) - 2 * 12_187_325_040 < 1_000_000


def test_only_the_folder_of_gemma_is_gated():
    assert {file.name.partition("/")[0] for file in load_manifest().files if file.gated} == {GEMMA}
