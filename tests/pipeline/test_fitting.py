from dataclasses import replace

import pytest
import torch

from pipeline import fitting, generate, loading, memory, recipe
from pipeline.errors import OperatorError, OutOfMemoryError
from pipeline.plan import make_plan
from pipeline.trace import Trace
from pipeline.types import GenerationRequest, Size

TINY = replace(
    recipe.load("demo"),
    checkpoint="ltx-2.3-tiny.safetensors",
    text_encoder="gemma",
    max_tokens=10**6,
)
REQUEST = GenerationRequest(
    prompt="a red kite",
    image=None,
    image_size=None,
    seed=7,
    negative_prompt="",
    size=Size(64, 64),
    num_frames=9,
    fps=24.0,
    steps=2,
    guidance_scale=1.0,
    strength=0.7,
    audio=False,
    expand_prompt=False,
    check_safety=False,
    quality="high",
    write_mode="fast",
)


def latents(tiny, folder, **options):
    pipeline = loading.load(TINY, models=tiny, device="cpu", **options)
    trace = Trace()
    for _ in generate.generate(pipeline, REQUEST, make_plan(REQUEST, TINY), output=folder / "out.mp4", record=trace):
        pass
    return pipeline, trace.tensors["video_latent"]


@pytest.mark.parametrize("residency", ["evict-text", "stream"])
def test_where_weights_wait_changes_no_number(tiny, tmp_path, residency):
    _, expected = latents(tiny, tmp_path)
    pipeline, found = latents(tiny, tmp_path, residency=residency)
    assert pipeline.model.residency == residency
    assert torch.equal(found, expected)


def test_fp8_changes_numbers_a_little(tiny, tmp_path):
    _, expected = latents(tiny, tmp_path)
    pipeline, found = latents(tiny, tmp_path, residency="fp8")
    block = pipeline.transformers[0.0].transformer_blocks[0]
    assert block.attn1.to_q.weight.dtype is torch.float8_e4m3fn
    assert 0 < ((found - expected).norm() / expected.norm()).item() < 0.2


def test_auto_takes_the_first_that_fits_and_refuses_when_none_does(tiny):
    sizes = {need.residency.name: need.peak for need in _needs(tiny, device=0)}
    enough = sizes["resident"] + memory.RESERVE
    assert loading.load(TINY, models=tiny, device="cpu", memory=enough).model.residency == "resident"
    less = loading.load(TINY, models=tiny, device="cpu", memory=enough - 1).model.residency
    assert less != "resident"
    with pytest.raises(OperatorError, match=r"needs .* GB of memory, and the device has 0\.0 GB"):
        loading.load(TINY, models=tiny, device="cpu", memory=10_000)


def test_a_residency_is_kept_where_smaller_chunks_make_the_clip_fit(tiny):
    large = replace(TINY, pixels=10**6)
    [whole] = [need for need in _needs(tiny, recipe=large) if need.residency.name == "resident"]
    assert whole.phases["decode"] == max(whole.phases.values())
    pipeline = loading.load(large, models=tiny, device="cpu", memory=whole.peak + memory.RESERVE - 1)
    assert pipeline.model.residency == "resident"
    pipeline.room.check(fitting.ordinary(large))


def _needs(tiny, *, recipe=TINY, device=None):
    checkpoint = fitting.Checkpoint.open(tiny / "ltx-2.3-tiny.safetensors")
    weights = fitting.weights_of(
        checkpoint,
        fitting.TextEncoderFiles.open(tiny / "gemma"),
        upsampler=None,
        transformers=1,
        itemsize=4,
    )
    return list(memory.needs(fitting.ordinary(recipe), weights, memory=device, size=fitting.size_of(checkpoint)))


def test_the_bytes_told_from_the_headers_are_those_that_are_loaded(tiny):
    checkpoint = fitting.Checkpoint.open(tiny / "ltx-2.3-tiny.safetensors")
    pipeline = loading.load(TINY, models=tiny, device="cpu")
    [need] = [need for need in _needs(tiny) if need.residency.name == "resident"]
    loaded = sum(p.nbytes for p in pipeline.transformers[0.0].parameters())
    assert need.weights["transformer"] == loaded
    assert fitting.size_of(checkpoint).layers == len(pipeline.transformers[0.0].transformer_blocks)


def test_a_clip_that_does_not_fit_is_refused_before_anything_is_computed(tiny, tmp_path):
    enough = max(need.peak for need in _needs(tiny)) + memory.RESERVE
    pipeline = loading.load(TINY, models=tiny, device="cpu", memory=enough)
    large = replace(REQUEST, size=Size(2048, 2048), num_frames=121)
    running = generate.generate(pipeline, large, make_plan(large, TINY), output=tmp_path / "out.mp4")
    with pytest.raises(OutOfMemoryError, match=r"2048x2048 at 121 frames needs .* residency 'resident'"):
        next(running)
