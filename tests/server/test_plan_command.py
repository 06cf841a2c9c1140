import subprocess
import sys

import pytest

from pipeline import memory
from server.__main__ import main


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
    assert total["fp8-evict-text"] == pytest.approx(27.9, abs=0.1)
    assert total["stream"] < 12


def test_planning_loads_no_torch():
    program = "import sys; from server.__main__ import main; main(['plan']); sys.exit('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
