"""Files that do not fit end the start, with a message that names recipe, file and the command that mends it."""

import os
import shutil
from dataclasses import replace

import pytest
import torch

from pipeline import loading, text
from pipeline import recipe as recipes
from pipeline.errors import OperatorError, OutOfMemoryError, WeightsError
from weights import stamp

NAME = "ltx-2.3-tiny.safetensors"


@pytest.fixture
def recipe():
    return replace(recipes.load("demo"), checkpoint=NAME, text_encoder="gemma")


def test_a_missing_file_is_answered_with_the_command_that_makes_it(tmp_path, recipe):
    with pytest.raises(WeightsError) as caught:
        loading.load(recipe, models=tmp_path)
    assert str(caught.value) == (
        f"recipe 'demo': {tmp_path / NAME}: found no such file; expected a safetensors file. "
        "To mend it: ltxd weights build-demo"
    )


def test_a_touched_file_is_answered_with_the_command_that_takes_its_sum(tiny, tmp_path, recipe):
    shutil.copy(tiny / NAME, tmp_path / NAME)
    stamp.write(tmp_path / NAME, sha256="0" * 64)
    os.utime(tmp_path / NAME, ns=(1, 1))
    with pytest.raises(WeightsError) as caught:
        loading.load(recipe, models=tmp_path)
    assert str(caught.value).endswith(f"To mend it: ltxd weights check --sha256 {tmp_path / NAME}")
    assert "build-demo" not in str(caught.value)


def test_a_lora_in_the_place_of_the_checkpoint_ends_the_start(tiny, recipe):
    with pytest.raises(WeightsError, match=r"distilled-lora\.safetensors: found metadata without `config`"):
        loading.load(replace(recipe, checkpoint="ltx-2.3-tiny-distilled-lora.safetensors"), models=tiny)


def test_float32_is_refused_on_a_gpu_where_memory_is_reckoned_in_bfloat16():
    gpu, cpu = torch.device("cuda"), torch.device("cpu")
    with pytest.raises(OperatorError, match=r"float32 is for the CPU: .* Use --dtype auto"):
        loading.dtype_on(gpu, "float32")
    assert [loading.dtype_on(gpu, name) for name in ("auto", "bfloat16")] == [torch.bfloat16] * 2
    assert [loading.dtype_on(cpu, name) for name in ("auto", "float32")] == [torch.float32] * 2
    assert loading.dtype_on(cpu, "bfloat16") is torch.bfloat16


def test_memory_that_runs_out_at_the_first_forward_is_told_with_the_residencies_to_try(tiny, recipe, monkeypatch):
    def read(*_, **__):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(text, "read", read)
    with pytest.raises(OutOfMemoryError, match="do not fit with residency 'evict-text'") as caught:
        loading.load(recipe, models=tiny, device="cpu", residency="evict-text")
    assert caught.value.context["smaller"][-1] == "stream"
