import bisect
import contextlib
import re
from dataclasses import replace

import pytest
import torch

from pipeline import fitting, generate, loading, memory, recipe
from pipeline.errors import NoRoomError, OperatorError, OutOfMemoryError, OverMemoryError
from pipeline.flops import PUBLISHED
from pipeline.plan import make_plan
from pipeline.trace import Trace
from pipeline.types import GenerationRequest, Size
from server.plan_command import weights_of

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
    return pipeline, made(pipeline, REQUEST, make_plan(REQUEST, TINY), folder)


def made(pipeline, request, plan, folder):
    trace = Trace()
    for _ in generate.generate(pipeline, request, plan, output=folder / "out.mp4", record=trace):
        pass
    return trace.tensors["video_latent"]


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


ASKS_GEMMA = replace(TINY, expansion="gemma")


def written(tiny, folder, *, here=None, **options):
    """What Gemma, or the template in its place, makes of the words, and the notes on it in the job's log."""
    pipeline = loading.load(ASKS_GEMMA, models=tiny, device="cpu", **options)
    if here is not None:
        pipeline = replace(pipeline, writer_here=here)
    request = replace(REQUEST, expand_prompt=True)
    clip = generate.generate(pipeline, request, make_plan(request, ASKS_GEMMA), output=folder / "out.mp4")
    notes = []
    while True:
        try:
            progress = next(clip)
        except StopIteration as end:
            return pipeline, end.value.prompt, [note.partition(" in ")[0] for note in notes]
        if progress.stage == "expand" and progress.message:
            notes.append(progress.message)


@pytest.mark.parametrize("residency", ["evict-text", "fp8-evict-text"])
def test_gemma_writes_the_same_prompt_when_it_comes_over_for_it(tiny, tmp_path, residency):
    _, *expected = written(tiny, tmp_path)
    pipeline, *found = written(tiny, tmp_path, residency=residency)
    assert pipeline.writer_here is not None
    assert found == expected


def test_gemma_comes_alone_where_there_is_no_room_beside_the_rest():
    """32 GB: 27.9 of fp8-evict-text and Gemma's 24.4 do not fit together, and Gemma does without the rest."""
    needed = memory.needs(fitting.ordinary(TINY), memory.PUBLISHED_WEIGHTS, memory=32 * memory.GB)
    need = fitting.choose("auto", needed, room=32 * memory.GB)
    assert (need.residency.name, need.writer) == ("fp8-evict-text", "alone")
    assert need.stays + need.phases["expand"] == pytest.approx(25.4 * memory.GB, abs=memory.GB)


def test_with_stream_the_template_writes_and_the_log_says_so(tiny, tmp_path):
    pipeline, prompt, notes = written(tiny, tmp_path, residency="stream")
    assert pipeline.writer_here is None
    assert prompt.startswith("a red kite.")
    assert notes == [
        "gemma writes no prompt: with residency 'stream' it stays on the host here",
        "prompt written by template: fixed clauses, no language model",
    ]


@contextlib.contextmanager
def no_room():
    raise torch.OutOfMemoryError("CUDA out of memory")
    yield


@contextlib.contextmanager
def no_way_back():
    yield
    raise torch.OutOfMemoryError("CUDA out of memory")


def test_where_gemma_finds_no_room_the_clip_is_made_without_it_and_the_log_says_so(tiny, tmp_path):
    _, prompt, notes = written(tiny, tmp_path, here=no_room, residency="evict-text")
    assert prompt.startswith("a red kite.")
    assert notes == [
        "gemma writes no prompt: others leave it no room on the device now",
        "prompt written by template: fixed clauses, no language model",
    ]
    assert (tmp_path / "out.mp4").exists()


def test_memory_that_runs_out_when_gemma_leaves_is_told_like_any_other(tiny, tmp_path):
    with pytest.raises(OutOfMemoryError, match="64x64 with 9 frames does not fit"):
        written(tiny, tmp_path, here=no_way_back)


def test_auto_takes_the_first_that_fits_and_refuses_when_none_does(tiny):
    sizes = {need.residency.name: need.peak for need in _needs(tiny, device=0)}
    enough = sizes["resident"] + memory.RESERVE
    assert loading.load(TINY, models=tiny, device="cpu", memory=enough).model.residency == "resident"
    less = loading.load(TINY, models=tiny, device="cpu", memory=enough - 1).model.residency
    assert less != "resident"
    with pytest.raises(OperatorError, match=r"needs .* GB of memory, and the device has 0\.0 GB"):
        loading.load(TINY, models=tiny, device="cpu", memory=10_000)


@pytest.mark.parametrize("name", ["quality", "quality-fp8"])
def test_a_model_tells_the_residencies_that_keep_less_on_the_device_for_its_files(name):
    weights = weights_of(recipe.load(name))
    held = {home.name: sum(memory.on_device(weights, home).values()) for home in memory.RESIDENCIES}
    for home in memory.RESIDENCIES:
        below = memory.smaller(weights, home)
        assert set(below) == {other for other, size in held.items() if size < held[home.name]}
        assert sorted(below, key=held.get, reverse=True) == list(below)
    told = memory.smaller(weights, memory.named("evict-text"))
    assert told == (*(() if name == "quality-fp8" else ("fp8",)), "fp8-evict-text", "stream")


def test_a_loaded_model_tells_which_residencies_are_smaller(tiny):
    told = loading.load(TINY, models=tiny, device="cpu", residency="evict-text").model.smaller
    assert told == memory.smaller(_weights(tiny), memory.named("evict-text"))
    assert told[-1] == "stream"


def test_a_clip_that_is_known_gets_the_first_residency_that_it_fits(tiny):
    plan = make_plan(replace(REQUEST, size=Size(4096, 2176)), TINY)
    weights, size = _weights(tiny), fitting.size_of(fitting.Checkpoint.open(tiny / TINY.checkpoint))

    def stays_resident(room):
        return next(memory.needs(plan, weights, memory=room, size=size)).fits(room)

    room = bisect.bisect_left(range(100 * memory.GB), True, key=stays_resident) - 1
    found = {
        clip: loading.load(TINY, models=tiny, device="cpu", memory=room, clip=clip).model.residency
        for clip in (None, plan)
    }
    assert found == {None: "resident", plan: "evict-text"}


def test_a_clip_that_does_not_fit_the_residency_set_is_told_which_to_set():
    plan = make_plan(LONG, QUALITY)
    room = just_too_small("resident").memory
    needed = list(memory.needs(plan, memory.PUBLISHED_WEIGHTS, memory=room))
    told = r"1888x1056 with 481 frames needs .* 'resident', .* use LTX_RESIDENCY=evict-text, a smaller or shorter clip"
    with pytest.raises(OperatorError, match=told):
        fitting.choose("resident", needed, room=room, clip=plan)


def test_a_residency_is_kept_where_smaller_chunks_make_the_clip_fit(tiny):
    large = replace(TINY, pixels=10**6)
    [whole] = [need for need in _needs(tiny, recipe=large) if need.residency.name == "resident"]
    assert whole.phases["decode"] == max(whole.phases.values())
    pipeline = loading.load(large, models=tiny, device="cpu", memory=whole.peak + memory.RESERVE - 1)
    assert pipeline.model.residency == "resident"
    whole = replace(REQUEST, size=None, image_size=Size(16, 9), num_frames=121)
    pipeline.room.passes_at_once(make_plan(whole, large), whole, recipe=large)


def _needs(tiny, *, recipe=TINY, device=None, plan=None, passes_per_call=0):
    return list(
        memory.needs(
            plan or fitting.ordinary(recipe),
            _weights(tiny),
            memory=device,
            passes_per_call=passes_per_call,
            size=fitting.size_of(fitting.Checkpoint.open(tiny / "ltx-2.3-tiny.safetensors")),
        )
    )


def _weights(tiny):
    return fitting.weights_of(
        fitting.Checkpoint.open(tiny / "ltx-2.3-tiny.safetensors"),
        fitting.TextEncoderFiles.open(tiny / "gemma"),
        upsampler=None,
        transformers=1,
        itemsize=4,
    )


FOUR_PASSES = replace(
    TINY,
    stages=(
        replace(TINY.stages[0], video=recipe.StreamGuidance(stg=1.0, stg_blocks=(1,), modality=3.0, rescale=0.5)),
    ),
)
FOUR = replace(REQUEST, size=Size(256, 256), num_frames=17, guidance_scale=3.0)


WIDE = replace(PUBLISHED, video=2**18)
"""Such that denoising takes the most memory, even of a clip that is made in a test."""


def room_for(plan, passes, *, passes_per_call=0):
    """One byte less than one more pass in a call would take."""
    needed = memory.needs(plan, memory.PUBLISHED_WEIGHTS, memory=None, passes_per_call=passes + 1, size=WIDE)
    more = next(needed)
    assert more.phases["denoise"] == max(more.phases.values())
    return fitting.Room(
        memory=more.peak + memory.RESERVE - 1,
        weights=memory.PUBLISHED_WEIGHTS,
        residency=more.residency,
        size=WIDE,
        passes_per_call=passes_per_call,
    )


@pytest.mark.parametrize("passes", [1, 2, 3])
def test_a_clip_gets_as_many_passes_in_a_call_as_the_device_has_room_for(tiny, tmp_path, passes):
    plan = make_plan(FOUR, FOUR_PASSES)
    pipeline = loading.load(FOUR_PASSES, models=tiny, device="cpu", residency="resident")
    rows = []
    pipeline.transformers[0.0].proj_in.register_forward_pre_hook(lambda _, inputs: rows.append(len(inputs[0])))
    together = made(pipeline, FOUR, plan, tmp_path)
    assert rows == [4, 4]
    rows.clear()
    split = made(replace(pipeline, room=room_for(plan, passes)), FOUR, plan, tmp_path)
    assert rows == {1: [1] * 8, 2: [2] * 4, 3: [3, 1] * 2}[passes]
    assert ((split - together).norm() / together.norm()).item() < 1e-5


def test_the_setting_is_a_bound_that_the_device_may_go_below():
    plan = make_plan(FOUR, FOUR_PASSES)
    assert room_for(plan, 3, passes_per_call=2).passes_at_once(plan, FOUR, recipe=FOUR_PASSES) == 2
    assert room_for(plan, 1, passes_per_call=2).passes_at_once(plan, FOUR, recipe=FOUR_PASSES) == 1


def test_a_clip_is_refused_only_if_one_pass_in_a_call_does_not_fit():
    plan = make_plan(FOUR, FOUR_PASSES)
    enough = room_for(plan, 1)
    [one, *_] = memory.needs(plan, enough.weights, memory=None, passes_per_call=1, size=WIDE)
    least = replace(enough, memory=one.peak + memory.RESERVE)
    assert least.passes_at_once(plan, FOUR, recipe=FOUR_PASSES) == 1
    with pytest.raises(NoRoomError, match=r"256x256 with 17 frames needs .* with residency 'resident'"):
        replace(least, memory=least.memory - 1).passes_at_once(plan, FOUR, recipe=FOUR_PASSES)


LONG = replace(REQUEST, size=Size(1920, 1080), num_frames=481)
QUALITY = recipe.load("quality")


def just_too_small(residency):
    """A device that lacks one byte for LONG with this residency of the published model."""
    plan, weights = make_plan(LONG, QUALITY), memory.PUBLISHED_WEIGHTS

    def fits(size):
        needed = memory.needs(plan, weights, memory=size)
        return any(need.fits(size) for need in needed if need.residency.name == residency)

    enough = bisect.bisect_left(range(200 * memory.GB), True, key=fits)
    return fitting.Room(
        memory=enough - 1, weights=weights, residency=memory.named(residency), size=PUBLISHED, passes_per_call=0
    )


def test_a_clip_that_fits_with_less_of_the_model_on_the_device_is_told_with_which():
    with pytest.raises(NoRoomError, match=r"with residency 'resident'; .* fits with residency 'evict-text'") as caught:
        just_too_small("resident").passes_at_once(make_plan(LONG, QUALITY), LONG, recipe=QUALITY)
    assert caught.value.context == {"residency": "evict-text"}


def test_a_clip_that_fits_no_residency_is_told_what_would_which_does():
    room = just_too_small("stream")
    with pytest.raises(OverMemoryError, match=r"1888x1056 with 481 frames needs at least .* would fit") as caught:
        room.passes_at_once(make_plan(LONG, QUALITY), LONG, recipe=QUALITY)
    offer = re.search(r"(\d+) frames at this size or (\d+)x(\d+) at this length", str(caught.value))
    frames, width, height = map(int, offer.groups())
    assert (caught.value.field, caught.value.context) == ("size", {"max_num_frames": frames})
    for fits, larger in (
        (replace(LONG, num_frames=frames), replace(LONG, num_frames=frames + 8)),
        (replace(LONG, size=Size(width, height)), replace(LONG, size=Size(width + 64, height + 64))),
    ):
        assert room.passes_at_once(make_plan(fits, QUALITY), fits, recipe=QUALITY) == 1
        with pytest.raises(OverMemoryError):
            room.passes_at_once(make_plan(larger, QUALITY), larger, recipe=QUALITY)


def test_a_clip_that_does_not_fit_is_refused_before_anything_is_computed(tiny, tmp_path):
    pipeline = replace(loading.load(TINY, models=tiny, device="cpu"), room=just_too_small("stream"))
    with pytest.raises(OverMemoryError):
        next(generate.generate(pipeline, LONG, make_plan(LONG, QUALITY), output=tmp_path / "out.mp4"))


def test_a_clip_that_runs_out_of_memory_offers_what_is_reckoned_to_take_half(tiny, tmp_path):
    def out_of_memory(name, _tensor):
        if name == "video_latent":
            raise torch.OutOfMemoryError("CUDA out of memory")

    request = replace(REQUEST, size=Size(96, 64), num_frames=33)
    for pipeline in (loading.load(TINY, models=tiny, device="cpu"), _holding_the_ordinary_clip(tiny)):
        plan = make_plan(request, TINY)
        with pytest.raises(OutOfMemoryError, match="96x64 with 33 frames does not fit") as caught:
            for _ in generate.generate(pipeline, request, plan, output=tmp_path / "out.mp4", record=out_of_memory):
                pass
        assert caught.value.context == {"offers": ["9 frames at this size", "64x32 at this length"]}
        assert not (tmp_path / "out.mp4").exists()


def _holding_the_ordinary_clip(tiny):
    enough = max(need.peak for need in _needs(tiny)) + memory.RESERVE
    return loading.load(TINY, models=tiny, device="cpu", memory=enough)
