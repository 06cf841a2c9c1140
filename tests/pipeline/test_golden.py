"""Golden cases, through the product's own entry points, against the model authors' code.

Source: tests/golden/public/*, made with LTX-2 1.2.0 on the tiny checkpoint that canonical.py writes. `python
tests/golden/run.py tests/golden/public` prints the table.
"""

import hashlib
import json
import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from tests.golden import cases, parts, reference, reference_models, run

PUBLIC = Path(__file__).parent.parent / "golden" / "public"
QUICK = (
    "a_cfgpp_comfy",
    "a_cfgpp_official",
    "b_cfgpp_cfg3",
    "d_res2s_guided",
    "e_t2v_euler8",
    "f_two_stage",
    "components",
)
"""Each sampler, semantics and kind of guidance once; the others are more steps of the same."""
SLOW = (
    "a15_cfgpp_comfy",
    "a8_cfgpp_comfy",
    "a8_cfgpp_official",
    "b8_cfgpp_cfg3_comfy",
    "b8_cfgpp_cfg3_official",
    "c_euler8",
)
BY_COMMAND = ("text",)
PARAMS = json.loads((PUBLIC / "a_cfgpp_comfy.json").read_text())["params"]


@pytest.fixture(scope="module")
def scratch(tmp_path_factory):
    return tmp_path_factory.mktemp("golden")


@pytest.mark.parametrize("case", [*QUICK, *(pytest.param(name, marks=pytest.mark.slow) for name in SLOW)])
def test_a_case_is_made_as_the_official_code_makes_it(case, scratch):
    rows = list(run.check(PUBLIC / f"{case}.json", scratch=scratch))
    assert len(rows) > 5
    assert [row for row in rows if not row.passed] == []


def test_every_public_case_is_named_here():
    assert {path.stem for path in PUBLIC.glob("*.json")} == {*QUICK, *SLOW, *BY_COMMAND}


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"sampler": "heun"}, "sampler 'heun'"),
        ({"temperature": 2}, "temperature"),
        ({"video_guider": {"cfg_scale": 2.0}}, "both cfg and a guider"),
        ({"num_model_calls": {"stage3.": 1}}, "stage3"),
        ({"video_tokens": 37}, "video_tokens 37"),
        ({"audio_rate": 44_100}, "audio_rate"),
        ({"frames": 18}, "8k"),
    ],
)
def test_what_the_runner_does_not_know_fails_aloud(change, told):
    with pytest.raises(cases.UnknownParamError, match=told):
        cases.generation(PARAMS | change, image=PUBLIC / "image.png")


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"lora": [0.25, 0.5]}, r"lora is \[0.25, 0.5\], not a number"),
        ({"semantics": "diffusers"}, "semantics 'diffusers', not one of official, comfy"),
        ({"sampler": "euler"}, "eta 1.0 with the sampler euler"),
        ({"steps": None, "schedule_tokens": 8160}, "schedule_tokens"),
    ],
)
def test_a_param_that_is_no_use_fails_aloud(change, told):
    with pytest.raises(cases.UnknownParamError, match=told):
        cases.generation(PARAMS | change, image=PUBLIC / "image.png")


@pytest.mark.parametrize("key", ["apg", "skip_step"])
def test_a_guider_param_that_nobody_reads_fails_aloud(key):
    params = {key: value for key, value in PARAMS.items() if key != "cfg"}
    with pytest.raises(cases.UnknownParamError, match=key):
        cases.generation(params | {"audio_guider": {"cfg_scale": 2.0, key: 1}}, image=PUBLIC / "image.png")


def test_a_rate_is_told_to_the_model_as_the_case_has_it_however_long_the_clip():
    case = cases.generation(PARAMS | {"fps": 0.5}, image=PUBLIC / "image.png")
    made = cases.planned(case.request, case.recipe)
    assert (made.conditioning_fps, made.audio_tokens) == (0.5, 850)


@pytest.mark.parametrize(
    ("sampler", "held", "passes"),
    [
        ("euler", "stage2.call00.video_x0", ("cond",)),
        ("euler", "stage2.call00.video_uncond", ("cond", "uncond")),
        ("cfg_pp", "stage2.call00.video_uncond", ("cond", "uncond")),
    ],
)
def test_a_second_stage_is_guided_only_where_the_case_shows_that_it_was(sampler, held, passes):
    two = {"sampler": sampler, "cfg": 3.0, "num_model_calls": {"stage1.": 3, "stage2.": 3}}
    two |= {"height": 128, "width": 128, "video_tokens": 12, "eta": 1.0 if sampler == "cfg_pp" else None}
    case = cases.generation(PARAMS | two, image=PUBLIC / "image.png", names=[held])
    first, second = cases.planned(case.request, case.recipe).stages
    assert (first.video.scale, second.passes) == (3.0, passes)
    assert second.video.scale == (3.0 if (sampler, len(passes)) == ("euler", 2) else 1.0)


def test_each_guider_has_its_own_scale():
    params = {key: value for key, value in PARAMS.items() if key != "cfg"}
    params |= {"video_guider": {"cfg_scale": 1.0}, "audio_guider": {"cfg_scale": 7.0, "stg_scale": 1.0}}
    case = cases.generation(params, image=PUBLIC / "image.png")
    shares = [stream.share for stream in (case.recipe.stages[0].video, case.recipe.stages[0].audio)]
    assert [1 + share * (case.request.guidance_scale - 1) for share in shares] == [1.0, 7.0]


@pytest.fixture
def broken(tmp_path):
    """A folder with the smallest case, for a test to spoil."""
    for suffix in ("json", "safetensors"):
        shutil.copy(PUBLIC / f"text.{suffix}", tmp_path)
    shutil.copy(PUBLIC.parent / "layout_tiny.json", tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"salt": "another"}, "has the digest"),
        ({"layout": "nowhere.json"}, "nowhere.json lies neither"),
        ({"dtype": "fp16"}, "fp16"),
    ],
)
def test_a_case_that_cannot_be_run_fails_and_says_why(broken, change, told, capsys):
    sidecar = broken / "text.json"
    sidecar.write_text(json.dumps(json.loads(sidecar.read_text()) | change))
    assert run.main([str(broken)]) == 1
    out = capsys.readouterr().out
    assert told in out
    assert out.endswith("0 passed, 1 failed\n")


def test_prompts_and_components_fail_aloud_as_well(tmp_path):
    with pytest.raises(cases.UnknownParamError, match="512"):
        parts.prompts({"prompts": {}, "max_length": 512}, models=tmp_path, dtype=torch.float32)
    with pytest.raises(cases.UnknownParamError, match="blur"):
        parts.components({"seed": 1, "blur": 2}, models=tmp_path, dtype=torch.float32, about={})


def test_the_last_line_counts_the_cases_and_the_status_agrees(capsys):
    assert run.main([str(PUBLIC), "--only", "text"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 25 + 1
    assert lines[-1] == "1 passed, 0 failed"


PARAMS_ELSEWHERE = {
    "prompt": "rain",
    "negative_prompt": "snow",
    "frames": 9,
    "fps": 25.0,
    "height": 96,
    "width": 64,
    "sampler": "euler",
    "steps": 2,
    "cfg": 2.0,
    "strength": 0.6,
    "crf": 23,
    "lora": 0.8,
    "seed": 2**40,
    "video_tokens": 12,
    "num_model_calls": {"stage": 2},
    "audio_rate": 48_000,
}


def another_layout():
    """A transformer of three blocks instead of two, and a picture with odd sides."""
    layout = json.loads((PUBLIC.parent / "layout_tiny.json").read_text())
    layout["config"]["transformer"]["num_layers"] = 3
    layout["image"] = [77, 101, 1]
    for part in ("checkpoint", "lora"):
        second = [entry for entry in layout["files"][part] if "diffusion_model.transformer_blocks.1." in entry["key"]]
        layout["files"][part] += [entry | {"key": entry["key"].replace("blocks.1.", "blocks.2.")} for entry in second]
    return layout


def written(folder, name, params, models, digests):
    """Writes the case as the second implementation makes it; gives its tensors."""
    tensors = reference.tensors(
        params, reference_models.models(models, lora=params["lora"]), image=models / "image.png"
    )
    about = {
        key: {
            "full_shape": list(value.shape),
            "norm": value.double().norm().item(),
            "mean": value.double().mean().item(),
        }
        for key, value in tensors.items()
    }
    about["frames"]["stride"] = [2, 4, 4, 1]
    held = {key: value.contiguous() for key, value in tensors.items() if not key.startswith("call01")}
    held["frames"] = tensors["frames"][::2, ::4, ::4].contiguous()
    save_file(held | {"alt_fp32_fuse.video_latent": torch.zeros(1)}, folder / f"{name}.safetensors")
    facts = {"case": name, "layout": "other.json", "salt": "elsewhere", "dtype": "fp32", "file_digests": digests}
    (folder / f"{name}.json").write_text(json.dumps(facts | {"params": params, "tensors": about}))
    return held


def test_cases_made_elsewhere_run_each_for_itself(tmp_path, capsys):
    """Another layout, in the parent, and salt; sizes and tensors of which only norm and mean are told."""
    folder = tmp_path / "cases"
    folder.mkdir()
    (tmp_path / "other.json").write_text(json.dumps(another_layout()))
    digests = run.build(tmp_path / "other.json", tmp_path / "models", salt="elsewhere", dtype="fp32")
    with Image.open(tmp_path / "models" / "image.png") as picture:
        digests["image_pixels_sha256"] = hashlib.sha256(picture.tobytes()).hexdigest()
    held = written(folder, "b_good", PARAMS_ELSEWHERE, tmp_path / "models", digests)
    facts = json.loads((folder / "b_good.json").read_text())

    (folder / "a_broken.json").write_text("{")
    save_file(held, folder / "a_broken.safetensors")
    (folder / "c_untold.json").write_text(json.dumps(facts | {"tensors": {"sigmas": facts["tensors"]["sigmas"]}}))
    save_file(held, folder / "c_untold.safetensors")
    (folder / "d_missing.json").write_text(json.dumps(facts))
    (folder / "e_wrong.json").write_text(json.dumps(facts | {"params": PARAMS_ELSEWHERE | {"sampler": "heun"}}))
    save_file(held, folder / "e_wrong.safetensors")
    (folder / "notes.json").write_text("[]")
    save_file({"x": torch.zeros(1)}, folder / "stray.safetensors")

    assert run.main([str(folder)]) == 1
    out, err = capsys.readouterr()
    lines = out.splitlines()
    assert lines[-1] == "1 passed, 4 failed"
    failed = {line.split()[1] for line in lines if line.startswith("FAIL")}
    assert failed == {"a_broken", "c_untold", "d_missing", "e_wrong"}
    assert "does not name" in out
    assert "stray.safetensors has no sidecar" in err
    assert sum(line.split()[1] == "b_good" for line in lines[:-1]) == len(facts["tensors"])


TOLD = {"full_shape": [2, 3], "norm": 91**0.5, "mean": 3.5}
HELD = torch.arange(1.0, 7).reshape(2, 3)


@pytest.mark.parametrize(
    ("found", "told", "wrong"),
    [
        (HELD + 1e-6, {}, ""),
        (HELD[::2], {}, "is [1, 3], not [2, 3]"),
        (HELD * float("inf"), {}, "is not finite"),
        (HELD, {"norm": 9.6}, "has the norm 9.53939201, not 9.6"),
        (HELD, {"mean": 3.6}, "has the mean 3.5, not 3.6"),
        (None, {}, "not made"),
    ],
)
def test_a_tensor_is_held_against_all_that_is_told_of_it(found, told, wrong):
    for expected in (HELD, None):
        row = run.compare("case", "video_latent", expected, found, about=TOLD | told, dtype="fp32")
        assert (row.wrong, row.passed) == (wrong, wrong == "")


def test_a_tensor_too_far_off_fails_and_its_distance_is_the_relative_one():
    far = HELD.clone()
    far[0, 0] += 1e-3
    row = run.compare("case", "video_latent", HELD, far, about=TOLD, dtype="fp32")
    assert row.distance == pytest.approx(1e-3 / 91**0.5, rel=1e-3)
    assert not row.passed


@pytest.mark.parametrize(
    ("name", "dtype", "limit"),
    [
        ("noise_video", "fp32", 0),
        ("stage2.step_noise.03", "fp32", 0),
        ("text.input_ids", "fp32", 0),
        ("stage1.image_pixels", "fp32", 1e-6),
        ("call00.video_x0", "fp32", 1e-5),
        ("stage2.call00.video_x0", "fp32", 1e-4),
        ("call03.video_x0", "fp32", 1e-4),
        ("frames", "fp32", 1e-4),
        ("wave", "fp32", 1e-3),
        ("audio_latent", "bf16", 3e-2),
        ("wave", "bf16", float("inf")),
    ],
)
def test_limits_are_those_of_the_golden_files(name, dtype, limit):
    assert run.tolerance(name, dtype=dtype) == limit


def test_a_folder_without_cases_is_a_failure(tmp_path, capsys):
    assert run.main([str(tmp_path)]) == 1
    assert capsys.readouterr().out == "0 passed, 0 failed\n"
