from dataclasses import replace
from fractions import Fraction

import av
import numpy as np
import pytest
import torch
from torch.overrides import TorchFunctionMode

from pipeline import generate, loading, plan, recipe, safety, trace, word_list
from pipeline.classifiers import Classifier
from pipeline.decoding import Decoding, Tiles
from pipeline.errors import ContentError, SafetyUnavailableError, WeightsError
from pipeline.types import DEFAULT_NEGATIVE_PROMPT, GenerationRequest, Size

TINY = replace(
    recipe.load("demo"), checkpoint="ltx-2.3-tiny.safetensors", text_encoder="gemma", setup="ltxd weights build-demo"
)


@pytest.fixture(scope="module")
def pipeline(tiny):
    harmless = safety.Checker(word_list.shipped(), Classifier("blind", lambda _: 0.0), 0.5)
    return replace(loading.load(TINY, models=tiny, device="cpu"), safety=safety.Safety(harmless))


@pytest.fixture
def request_(tiny):
    return GenerationRequest(
        prompt="a cat",
        image=tiny / "image.png",
        image_size=Size(200, 150),
        seed=5,
        negative_prompt="ugly",
        size=Size(96, 64),
        num_frames=25,
        fps=24.0,
        steps=8,
        guidance_scale=1.0,
        strength=0.7,
        audio=True,
        expand_prompt=True,
        check_safety=True,
        quality="high",
        write_mode="fast",
    )


def run(pipeline, request, output, recipe=TINY):
    made = plan.make_plan(request, recipe)
    clip = generate.generate(replace(pipeline, recipe=recipe), request, made, output=output)
    seen = []
    try:
        while True:
            seen.append(next(clip))
    except StopIteration as end:
        return end.value, seen


def frames(path):
    with av.open(path) as file:
        return np.stack([f.to_ndarray(format="rgb24") for f in file.decode(video=0)])


def test_the_file_is_what_the_plan_says(pipeline, request_, tmp_path):
    made, seen = run(pipeline, request_, tmp_path / "out.mp4")
    assert (made.size, made.num_frames, made.fps, made.seed) == (Size(96, 64), 25, 24.0, 5)
    assert made.prompt.startswith("a cat. ")
    assert frames(made.path).shape == (25, 64, 96, 3)
    with av.open(made.path) as file:
        audio = file.streams.audio[0]
        assert (audio.rate, audio.channels) == (48_000, 2)
        assert float(audio.duration * audio.time_base) <= 25 / 24
        assert "Seed: 5" in file.metadata["comment"]
    assert [p.step for p in seen if p.stage == "denoise"] == list(range(1, 9))
    assert [p.step for p in seen if p.stage == "decode"][-1] == 25
    assert all(p.eta is not None and p.eta >= 0 for p in seen if p.stage in ("denoise", "decode"))


def test_the_same_seed_makes_the_same_frames_and_another_seed_others(pipeline, request_, tmp_path):
    first, _ = run(pipeline, request_, tmp_path / "a.mp4")
    again, _ = run(pipeline, request_, tmp_path / "b.mp4")
    other, _ = run(pipeline, replace(request_, seed=6), tmp_path / "c.mp4")
    assert np.array_equal(frames(first.path), frames(again.path))
    assert not np.array_equal(frames(first.path), frames(other.path))


def test_without_audio_the_picture_is_the_same_and_there_is_no_track(pipeline, request_, tmp_path):
    loud, _ = run(pipeline, request_, tmp_path / "a.mp4")
    silent, _ = run(pipeline, replace(request_, audio=False), tmp_path / "b.mp4")
    assert np.array_equal(frames(loud.path), frames(silent.path))
    with av.open(silent.path) as file:
        assert not file.streams.audio


@pytest.mark.parametrize("change", [{"guidance_scale": 3.0}, {"prompt": "a dog"}, {"strength": 0.2}, {"fps": 12.0}])
def test_everything_that_steers_has_an_effect(pipeline, request_, tmp_path, change):
    before, _ = run(pipeline, request_, tmp_path / "a.mp4")
    after, _ = run(pipeline, replace(request_, **change), tmp_path / "b.mp4")
    assert not np.array_equal(frames(before.path), frames(after.path))


@pytest.mark.parametrize(
    ("sampler", "scale", "matters"),
    [("euler", 1.0, False), ("euler", 3.0, True), ("euler_ancestral_cfg_pp", 1.0, True)],
)
def test_the_negative_prompt_matters_where_a_pass_is_made_for_it(
    pipeline, request_, tmp_path, sampler, scale, matters
):
    chosen = replace(TINY, stages=(replace(TINY.stages[0], sampler=sampler, eta=1.0),))
    asked = replace(request_, guidance_scale=scale)
    before, _ = run(pipeline, asked, tmp_path / "a.mp4", recipe=chosen)
    after, _ = run(pipeline, replace(asked, negative_prompt="blue"), tmp_path / "b.mp4", recipe=chosen)
    assert np.array_equal(frames(before.path), frames(after.path)) != matters


def test_the_log_says_which_engine_wrote_the_prompt(pipeline, request_, tmp_path):
    made, seen = run(pipeline, request_, tmp_path / "a.mp4")
    assert "prompt written by template" in " ".join(p.message or "" for p in seen)
    asked = replace(pipeline, recipe=replace(TINY, expansion="gemma"))
    made, seen = run(asked, request_, tmp_path / "b.mp4")
    written = [p.message for p in seen if "prompt written by" in (p.message or "")]
    assert len(written) == 1
    assert ("by gemma" in written[0]) or ("by template" in written[0] and made.prompt.startswith("a cat"))
    _, seen = run(asked, replace(request_, expand_prompt=False), tmp_path / "c.mp4")
    assert not [p for p in seen if "written by" in (p.message or "")]


def test_the_default_negative_prompt_is_read_when_loading_and_never_again(pipeline, request_, tmp_path):
    calls = []
    handle = pipeline.text_encoder.language_model.register_forward_hook(lambda *_: calls.append(1))
    guided = replace(request_, guidance_scale=3.0, prompt="a new prompt", negative_prompt=DEFAULT_NEGATIVE_PROMPT)
    run(pipeline, guided, tmp_path / "a.mp4")
    assert len(calls) == 1
    run(pipeline, guided, tmp_path / "b.mp4")
    handle.remove()
    assert len(calls) == 1


@pytest.mark.parametrize("stage", ["expand", "denoise", "decode"])
def test_giving_up_at_any_stage_leaves_no_file(pipeline, request_, tmp_path, stage):
    clip = generate.generate(pipeline, request_, plan.make_plan(request_, TINY), output=tmp_path / "out.mp4")
    for progress in clip:
        if progress.stage == stage:
            break
    clip.close()
    assert list(tmp_path.iterdir()) == []


def test_an_empty_prompt_and_a_very_long_one_both_make_a_clip(pipeline, request_, tmp_path):
    for words in ("", "a cat and a dog " * 1250):
        made, seen = run(pipeline, replace(request_, prompt=words), tmp_path / "out.mp4")
        assert frames(made.path).shape[0] == 25
        assert any("tokens are not read" in (p.message or "") for p in seen) == bool(words)


def test_in_bfloat16_the_vocoder_alone_is_float32(tiny, request_, tmp_path):
    half = loading.load(TINY, models=tiny, device="cpu", dtype="bfloat16")
    assert {p.dtype for p in half.vocoder.parameters()} == {torch.float32}
    assert {p.dtype for p in half.vae.decoder.parameters()} == {torch.bfloat16}
    made, _ = run(half, replace(request_, check_safety=False), tmp_path / "out.mp4")
    assert made.has_audio


class Transfers(TorchFunctionMode):
    """Notes the type and shape of every tensor that is asked to come to the host."""

    def __init__(self):
        self.seen = []

    def __torch_function__(self, function, types, args=(), kwargs=None):
        if function is torch.Tensor.cpu:
            self.seen.append((args[0].dtype, args[0].shape))
        return function(*args, **(kwargs or {}))


def test_frames_come_to_the_host_as_bytes(pipeline, request_, tmp_path):
    with Transfers() as transfers:
        run(pipeline, request_, tmp_path / "out.mp4")
    frames = [dtype for dtype, shape in transfers.seen if shape[-3:] == (64, 96, 3)]
    assert frames
    assert set(frames) == {torch.uint8}


def test_in_tiles_the_clip_has_the_same_frames_but_for_the_seams(pipeline, request_, tmp_path):
    asked = replace(request_, size=Size(160, 128), audio=False)
    planned = plan.make_plan(asked, TINY)
    clips = []
    for name, decoding in (("whole", planned.decoding), ("tiles", Decoding(1, Tiles(3, 1)))):
        clip = generate.generate(pipeline, asked, replace(planned, decoding=decoding), output=tmp_path / f"{name}.mp4")
        clips.append(list(clip))
    tiles = [p for p in clips[1] if p.stage == "decode_tiles"]
    assert tiles[-1].step == tiles[-1].total == 4 * 25
    assert not [p for p in clips[0] if p.stage == "decode_tiles"]
    whole, tiled = (frames(tmp_path / f"{name}.mp4").astype(float) for name in ("whole", "tiles"))
    assert whole.shape == tiled.shape
    assert not np.array_equal(whole, tiled)


@pytest.mark.parametrize(("gb", "tiles"), [(None, False), (5, False), (0.5, True)])
def test_only_a_device_short_of_memory_decodes_in_tiles_and_the_log_says_so(request_, gb, tiles):
    asked = replace(request_, size=Size(1280, 704))
    made = plan.make_plan(asked, TINY, decode_memory=None if gb is None else int(gb * 1e9))
    assert (made.decoding.tiles is not None) == tiles
    assert any("decoded in tiles of" in note for note in made.notes) == tiles


def test_on_the_host_decoding_may_take_what_it_likes():
    assert generate.decode_memory("cpu") is None


def test_a_missing_file_is_named_with_the_command_that_makes_it(tmp_path):
    with pytest.raises(WeightsError, match=r"ltx-2\.3-tiny\.safetensors.*ltxd weights build-demo"):
        loading.load(TINY, models=tmp_path, device="cpu")


def watched(pipeline, score, *, threshold=0.5, forced=False):
    """The pipeline with a checker whose classifier is `score`."""
    checker = safety.Checker(word_list.shipped(), Classifier("prude", score), threshold)
    return replace(pipeline, safety=safety.Safety(checker, forced=forced))


def messages(seen):
    return [p.message for p in seen if p.stage == "safety" and p.message]


def refused(pipeline, request, output):
    """The error that ends the generation, and what was said before."""
    seen = []
    with pytest.raises(ContentError) as error:
        seen.extend(generate.generate(pipeline, request, plan.make_plan(request, TINY), output=output))
    return error.value, messages(seen)


def test_what_was_checked_stands_in_the_log(pipeline, request_, tmp_path):
    shown = []
    made, seen = run(watched(pipeline, lambda p: shown.append(p) or 0.25), request_, tmp_path / "out.mp4")
    (said,) = messages(seen)
    assert said == (
        "safety checker: the prompt by the word list, the start image (0.25) and 8 frames (highest 0.25) by prude at "
        "threshold 0.50: nothing flagged"
    )
    assert shown[0].shape == (150, 200, 3)
    clip = frames(made.path)
    assert all(picture.dtype == np.uint8 for picture in shown)
    assert [
        int(np.abs(clip - picture.astype(float)).mean((1, 2, 3)).argmin()) for picture in (shown[1], shown[-1])
    ] == [
        0,
        24,
    ]


def test_a_flagged_start_image_ends_the_generation_before_any_work(pipeline, request_, tmp_path):
    error, said = refused(watched(pipeline, lambda _: 0.9), request_, tmp_path / "out.mp4")
    assert error.field == "image"
    assert said == ["safety checker: start image was flagged by prude: 0.90, threshold 0.50"]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("score", [0.5, 0.9, float("nan")])
def test_a_flagged_frame_ends_the_generation_and_leaves_no_file(pipeline, request_, tmp_path, score):
    scores = iter([0.1, 0.2, score])
    error, said = refused(watched(pipeline, lambda _: next(scores)), request_, tmp_path / "out.mp4")
    assert (error.field, str(error)) == ("prompt", safety.FLAGGED)
    assert said[-1].startswith("safety checker: frame 3 was flagged by prude")
    assert list(tmp_path.iterdir()) == []


def test_a_flagged_prompt_ends_the_generation_before_the_image_is_looked_at(pipeline, request_, tmp_path):
    asked = replace(request_, prompt="A naked man walks in.")
    error, said = refused(watched(pipeline, lambda _: pytest.fail("looked")), asked, tmp_path / "out.mp4")
    assert error.field == "prompt"
    assert said == ["safety checker: the prompt was flagged by the word list, rule 'nudity'"]
    assert "naked" not in str(error)


def test_a_check_that_is_switched_off_sees_nothing_and_the_log_says_so(pipeline, request_, tmp_path):
    free = replace(request_, check_safety=False)
    _, seen = run(watched(pipeline, lambda _: pytest.fail("looked")), free, tmp_path / "out.mp4")
    assert messages(seen) == ["enable_safety_checker is false: nothing is checked"]


def test_the_operator_can_forbid_switching_it_off(pipeline, request_, tmp_path):
    free = replace(request_, check_safety=False)
    error, said = refused(watched(pipeline, lambda _: 0.9, forced=True), free, tmp_path / "out.mp4")
    assert error.field == "image"
    assert said[0] == "enable_safety_checker is true all the same, as the operator says"


@pytest.mark.parametrize(("asked", "forced"), [(True, False), (False, True)])
def test_what_is_to_be_checked_and_cannot_be_is_not_made(pipeline, request_, tmp_path, asked, forced):
    without = replace(pipeline, safety=safety.Safety(None, forced=forced))
    with pytest.raises(SafetyUnavailableError, match="could not be loaded"):
        run(without, replace(request_, check_safety=asked), tmp_path / "out.mp4")
    assert list(tmp_path.iterdir()) == []


def test_without_a_checker_what_need_not_be_checked_is_made(pipeline, request_, tmp_path):
    without = replace(pipeline, safety=safety.Safety(None))
    made, _ = run(without, replace(request_, check_safety=False), tmp_path / "out.mp4")
    assert made.path.exists()


def test_a_clip_played_slower_than_it_was_made_for_falls_silent_after_its_sound(pipeline, request_, tmp_path):
    made = replace(plan.make_plan(request_, TINY), fps=Fraction(12))
    for _ in generate.generate(pipeline, request_, made, output=tmp_path / "out.mp4"):
        pass
    with av.open(tmp_path / "out.mp4") as file:
        picture, sound = file.streams.video[0], file.streams.audio[0]
        assert picture.average_rate == 12
        rate = sound.rate
        waveform = np.concatenate([frame.to_ndarray() for frame in file.decode(audio=0)], 1)
    spoken = (4 * made.audio_tokens - 3) * 480
    assert abs(waveform.shape[1] - 25 / 12 * rate) <= 2048
    assert np.abs(waveform[:, : spoken - 2048]).max() > 0.01
    assert np.abs(waveform[:, spoken + 2048 :]).max() < 1e-3


@pytest.mark.parametrize(("strength", "same"), [(1.0, True), (0.0, True), (0.7, False)])
def test_the_two_semantics_differ_only_where_a_frame_is_partly_pinned(pipeline, request_, tmp_path, strength, same):
    made = {}
    for semantics in ("official", "comfy"):
        stage = replace(TINY.stages[0], sampler="euler_ancestral_cfg_pp", eta=1.0, terminal=0.1)
        chosen = replace(TINY, semantics=semantics, stages=(stage,))
        kept = trace.Trace()
        asked = replace(request_, strength=strength, num_frames=9, steps=3)
        clip = generate.generate(
            replace(pipeline, recipe=chosen),
            asked,
            plan.make_plan(asked, chosen),
            output=tmp_path / "out.mp4",
            record=kept,
        )
        for _ in clip:
            pass
        made[semantics] = kept.tensors["video_latent"]
    off = (made["official"] - made["comfy"]).norm() / made["official"].norm()
    assert (off < 1e-5) == same


def test_a_clip_can_be_made_from_words_alone(pipeline, request_, tmp_path):
    made, _ = run(pipeline, replace(request_, image=None, image_size=None, num_frames=9), tmp_path / "out.mp4")
    assert frames(made.path).shape == (9, 64, 96, 3)
    with pytest.raises(ValueError, match="the size must be given"):
        plan.make_plan(replace(request_, image=None, image_size=None, size=None), TINY)
