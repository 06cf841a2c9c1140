import subprocess
import sys
from pathlib import Path

import pytest

from pipeline import fitting, memory
from pipeline.recipe import load
from server import plan_command
from server.__main__ import main
from weights.checkpoint import Checkpoint
from weights.header import Stored
from weights.release import published_transformer
from weights.text_encoder import TextEncoderFiles

PAGE = Path(__file__).parents[2] / "docs" / "recipes.md"


def printed(capsys, *flags):
    status = main(["plan", *flags])
    return status, capsys.readouterr()


@pytest.mark.parametrize(
    ("gpu", "taken"),
    [("h200", "resident"), ("h100", "resident"), ("a100-40", "fp8-evict-text"), ("l40s", "fp8")],
)
def test_the_first_residency_that_fits_is_taken(capsys, gpu, taken):
    status, out = printed(capsys, "--gpu", gpu, "--resolution", "1280x704")
    assert status == 0
    [line] = [line for line in out.out.splitlines() if line.endswith("| taken |")]
    assert line.startswith(f"| {taken} |")
    assert "Estimate, not measured" in out.out


def test_a_residency_is_taken_that_fits_once_decoding_goes_in_smaller_chunks(capsys):
    _, out = printed(capsys, "--memory", "75")
    rows = [line.strip("| ").split(" | ") for line in out.out.splitlines() if line.startswith("|")]
    decode = {row[0]: float(row[rows[0].index("+ decode")]) for row in rows[2:]}
    assert [row[0] for row in rows if row[-1] == "taken"] == ["resident"]
    assert decode["resident"] < decode["evict-text"]


def test_what_fits_nowhere_is_refused(capsys):
    status, out = printed(capsys, "--memory", "8")
    assert status == 1
    assert "Nothing fits" in out.out
    assert "Estimate" not in out.out


def test_a_recipe_that_is_not_there_is_named(capsys):
    status, out = printed(capsys, "--recipe", "nowhere")
    assert status == 2
    assert "nowhere" in out.err


def test_a_clip_over_the_cap_is_refused_as_a_request_would_be(capsys):
    status, out = printed(capsys, "--resolution", "4096x4096", "--num-frames", "481")
    assert status == 2
    assert "latent tokens" in out.err


def test_fewer_passes_in_a_call_take_less_memory(capsys):
    _, together = printed(capsys)
    _, apart = printed(capsys, "--passes-per-call", "1")
    assert together.out != apart.out


def test_passes_are_split_over_calls_where_all_at_once_do_not_fit(capsys):
    large = ("--recipe", "full", "--resolution", "1920x1088", "--num-frames", "241")
    found = {}
    for room in (36, 40, 48):
        status, out = printed(capsys, *large, "--memory", str(room))
        assert status == 0
        rows = [line.strip("| ").split(" | ") for line in out.out.splitlines() if line.startswith("|")]
        [taken] = [row for row in rows if row[-1] == "taken"]
        assert taken[0] == "fp8-evict-text"
        found[room] = int(taken[rows[0].index("passes a call")])
    assert found == {36: 1, 40: 2, 48: 4}


def test_what_stays_on_the_device_is_what_the_names_say():
    held = {r.name: memory.on_device(memory.PUBLISHED_WEIGHTS, r) for r in memory.RESIDENCIES}
    total = {name: sum(parts.values()) / 1e9 for name, parts in held.items()}
    assert total["resident"] == pytest.approx(70.8, abs=0.1)
    assert total["evict-text"] == pytest.approx(46.4, abs=0.1)
    assert total["fp8"] == pytest.approx(41.5, abs=0.1)
    assert total["fp8-evict-text"] == pytest.approx(27.9, abs=0.1)
    assert total["stream"] == pytest.approx(4.5, abs=0.1)


@pytest.mark.parametrize("room", ["12", "24", "141"])
def test_stream_peaks_under_10_gb_on_every_device(capsys, room):
    _, out = printed(capsys, "--resolution", "1280x704", "--memory", room)
    rows = [line.strip("| ").split(" | ") for line in out.out.splitlines() if line.startswith("|")]
    [stream] = [row for row in rows if row[0] == "stream"]
    assert float(stream[rows[0].index("peak")]) < 10
    assert stream[-1] == ("taken" if room in {"12", "24"} else "yes")


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        (("--gpu", "h100"), "by gemma, which is on the device"),
        (("--gpu", "rtx-5090"), "by gemma, which is brought over whole for it, all else waiting on the host"),
        (("--gpu", "rtx-3060"), "by fixed clauses: gemma stays on the host"),
    ],
)
def test_the_plan_says_how_a_prompt_comes_to_be_written(capsys, flags, told):
    _, out = printed(capsys, *flags)
    [line] = [line for line in out.out.splitlines() if line.startswith("Prompt expansion")]
    assert told in line


def test_gemma_comes_over_to_write_beside_what_stays_where_both_have_room():
    needed = memory.needs(fitting.ordinary(load("quality")), memory.PUBLISHED_WEIGHTS, memory=80 * memory.GB)
    writers = {need.residency.name: need.writer for need in needed}
    assert writers == {
        "resident": "resident",
        "evict-text": "visitor",
        "fp8": "resident",
        "fp8-evict-text": "visitor",
        "stream": "none",
    }


def test_seconds_count_the_blocks_of_each_transformer_as_often_as_its_stage_calls_it():
    """31 calls of three passes and 7 of one, which streaming does one pass at a time if there is room for no more."""
    recipe = load("hq")
    plan = fitting.ordinary(recipe)
    weights = plan_command.weights_of(recipe)
    one = memory.PUBLISHED_WEIGHTS.transformer
    assert weights.transformer.whole == 2 * one.whole
    for passes, calls in ((3, 31 + 7), (1, 31 * 3 + 7)):
        [*_, stream] = memory.needs(plan, weights, memory=None, passes_per_call=passes)
        seconds = plan_command.estimate(plan, stream, weights=weights, rate=1e18)
        assert seconds["denoise"] == pytest.approx(calls * one.blocks / plan_command.TRANSFER)
        [evicted] = [n for n in memory.needs(plan, weights, memory=None) if n.residency.name == "evict-text"]
        assert evicted.weights["transformer"] == 2 * one.whole


@pytest.mark.parametrize(("name", "blocks"), [("quality-fp8", range(2, 46)), ("distilled-fp8", range(3, 46))])
def test_a_recipe_in_fp8_takes_what_the_header_of_its_file_says(name, blocks):
    tensors = {
        published: Stored(Path("a"), published, dtype_of(published, shape, blocks), shape, 0)
        for published, shape in published_transformer().items()
    }
    checkpoint = Checkpoint(Path("a"), (), {}, {}, "2.3.0", False, tensors)
    weights = fitting.weights_of(checkpoint, NO_TEXT, upsampler=None, transformers=1, itemsize=2)
    assert weights.fp8
    assert plan_command.weights_of(load(name)).fp8
    told, planned = weights.transformer, plan_command.weights_of(load(name)).transformer
    assert planned.whole == pytest.approx(told.whole, rel=0.001)
    assert planned.linears == pytest.approx(told.linears, rel=0.001)
    assert planned.blocks == pytest.approx(told.blocks, rel=0.001)
    assert planned.block == pytest.approx(told.block, rel=0.001)


NO_TEXT = TextEncoderFiles(Path("a"), (), None, {}, Path("a"), None)


def dtype_of(name, shape, blocks):
    block = name.removeprefix("model.diffusion_model.transformer_blocks.").partition(".")[0]
    in_fp8 = block.isdigit() and int(block) in blocks and name.endswith(".weight") and len(shape) == 2
    return "F8_E4M3" if in_fp8 else "BF16"


@pytest.mark.parametrize("gpu", ["rtx-4090", "rtx-5090", "a100-40", "l40s", "a100-80"])
def test_a_file_in_fp8_and_one_in_bf16_fit_as_the_page_says(capsys, gpu):
    taken = {}
    for recipe in ("quality", "quality-fp8", "distilled-fp8"):
        _, out = printed(capsys, "--recipe", recipe, "--gpu", gpu)
        [line] = [line for line in out.out.splitlines() if line.endswith("| taken |")]
        taken[recipe] = line.split("|")[1].strip()
    assert taken["quality-fp8"] == taken["distilled-fp8"]
    assert f"| {gpu} | `{taken['quality']}` | `{taken['quality-fp8']}` |" in PAGE.read_text()


def test_planning_loads_no_torch():
    program = "import sys; from server.__main__ import main; main(['plan']); sys.exit('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
