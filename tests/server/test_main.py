import contextlib
import gc
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import httpx2
import pytest

from server.__main__ import main, settle

SERVE_FAKE = Path(__file__).with_name("serve_fake.py")
ENDPOINT = "fal-ai/ltx-2.3-quality/image-to-video"


@contextlib.contextmanager
def served(data: Path, clip: Path):
    """The server as a process; gives it, its first line, and the seconds until its port answered."""
    began = time.monotonic()
    with subprocess.Popen(
        [sys.executable, str(SERVE_FAKE), str(data), str(clip)], stdout=subprocess.PIPE, text=True
    ) as process:
        try:
            port, _, loaded = process.stdout.readline().rstrip("\n").partition(" ")
            with httpx2.Client(base_url=f"http://127.0.0.1:{port}", trust_env=False, timeout=30) as http:
                assert http.get("/health/live").status_code == 200
                yield process, http, loaded, time.monotonic() - began
        finally:
            process.kill()


def children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def alive(pid: int) -> bool:
    with contextlib.suppress(FileNotFoundError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    return False


def test_the_server_is_up_in_two_seconds_without_torch_and_ends_on_sigterm(tmp_path, image, clip):
    with served(tmp_path, clip) as (process, http, loaded, seconds):
        assert loaded == ""
        # twice the promise, for a machine that is busy with other tests
        assert seconds < 4
        given = {"prompt": "slow", "image_url": image}
        job = http.post(f"/queue/{ENDPOINT}", json=given).json()
        while http.get(job["status_url"]).json()["status"] != "IN_PROGRESS":
            time.sleep(0.02)
        process.send_signal(signal.SIGTERM)
        assert process.wait(15) == 0
    with served(tmp_path, clip) as (_, http, _, _):
        assert http.get(f"/queue/{ENDPOINT}/requests/{job['request_id']}").status_code == 200


def test_the_generating_process_dies_with_a_server_that_is_killed_and_the_job_is_done_after(tmp_path, image, clip):
    with served(tmp_path, clip) as (process, http, _, _):
        job = http.post(f"/queue/{ENDPOINT}", json={"prompt": "slow", "image_url": image}).json()
        while http.get(job["status_url"]).json()["status"] != "IN_PROGRESS":
            time.sleep(0.02)
        (child,) = children(process.pid)
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        deadline = time.monotonic() + 5
        while alive(child):
            assert time.monotonic() < deadline
            time.sleep(0.02)
    with served(tmp_path, clip) as (_, http, _, _):
        url = f"/queue/{ENDPOINT}/requests/{job['request_id']}"
        while http.get(f"{url}/status").status_code != 200:
            time.sleep(0.05)
        assert http.get(url).status_code == 200


def test_a_second_server_on_the_same_folder_is_refused(server, capsys):
    assert main(["serve", f"--data={server.settings.data}", "--port=0", "--tls-port=0"]) == 1
    assert "another ltxd already owns" in capsys.readouterr().err


def test_a_port_in_use_is_said(server, tmp_path, capsys):
    assert main(["serve", f"--data={tmp_path}", f"--port={server.ports.http}", "--tls-port=0"]) == 1
    assert f"port {server.ports.http}" in capsys.readouterr().err


def test_without_keys_the_server_refuses_to_be_reached_from_elsewhere(tmp_path, capsys):
    assert main(["serve", f"--data={tmp_path}", "--host=0.0.0.0"]) == 1
    assert "loopback" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_server_whose_model_cannot_be_loaded_ends_with_status_1_and_says_why_in_its_last_line(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "server", "serve", f"--data={tmp_path}", "--port=0", "--tls-port=0"],
        capture_output=True,
        text=True,
        timeout=500,
    )
    assert done.returncode == 1
    last = done.stderr.splitlines()[-1]
    assert last.startswith("ltxd: the model did not load 3 times within 300 s: the process said WeightsError")
    assert "ltxd weights build-demo" in last


def test_an_unknown_command_is_refused():
    with pytest.raises(SystemExit):
        main(["fly"])


def test_a_self_test_on_a_device_that_is_not_there_says_so(capsys):
    assert main(["selftest", "--device", "cuda:99"]) == 2
    assert "ltxd selftest: there is no device 'cuda:99'" in capsys.readouterr().err


def test_what_the_start_made_is_left_out_of_later_searches_for_garbage():
    try:
        settle()
        assert gc.get_freeze_count() > 10_000
        assert len(gc.get_objects()) < 10_000
    finally:
        gc.unfreeze()
