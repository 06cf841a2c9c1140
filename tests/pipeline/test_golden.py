"""Golden cases, through the product's own entry points, against the model authors' code.

Source: tests/golden/public/*, made with LTX-2 1.2.0 on the tiny checkpoint that canonical.py writes. `python
tests/golden/run.py tests/golden/public` prints the table.
"""

import json
import shutil
from pathlib import Path

import pytest
import torch

from tests.golden import cases, parts, run

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


def test_a_guider_param_that_nobody_reads_fails_aloud():
    params = {key: value for key, value in PARAMS.items() if key != "cfg"}
    with pytest.raises(cases.UnknownParamError, match="apg"):
        cases.generation(params | {"audio_guider": {"cfg_scale": 2.0, "apg": 1}}, image=PUBLIC / "image.png")


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
        parts.components({"seed": 1, "blur": 2}, models=tmp_path, dtype=torch.float32)


def test_the_last_line_counts_the_cases_and_the_status_agrees(capsys):
    assert run.main([str(PUBLIC), "--only", "text"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 25 + 1
    assert lines[-1] == "1 passed, 0 failed"


def test_a_folder_without_cases_is_a_failure(tmp_path, capsys):
    assert run.main([str(tmp_path)]) == 1
    assert capsys.readouterr().out == "0 passed, 0 failed\n"
