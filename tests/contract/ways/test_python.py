"""Each supported release of fal_client in each way in that it can use, and where it goes in those it cannot."""

import base64
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
OLD = ("0.11.0", "0.13.2")
CURRENT = "1.0.3"
EVERY = [CURRENT, *(pytest.param(version, marks=pytest.mark.full) for version in OLD)]
REST = {"0.11.0": "rest.alpha.fal.ai"}
CLOSED_PORT = 1
FALLBACKS = {"falrun.com", "queue.falrun.com"}


@pytest.fixture(params=EVERY)
def version(request) -> str:
    return request.param


@pytest.fixture
def call(version, machine, png):
    """Does these operations with the client; gives what came of each."""
    path = [str(HERE / "resolver")]
    if version != CURRENT:
        folder = HERE.parent / "python_modules" / version
        if not folder.exists():
            pytest.fail(f"fal-client {version} is missing: run make test-full, which installs it into {folder}")
        path.append(str(folder))
    uri = "data:image/png;base64," + base64.b64encode(png).decode()
    given = {"image_url": uri}

    def do(*operations, env, names=None, does=machine.run):
        order = {name: {"prompt": "a"} | (given if name != "upload" else {"image": png.hex()}) for name in operations}
        env = env | {"PYTHONPATH": ":".join(path), "FAL_KEY": "any"}
        return does([sys.executable, str(HERE / "call.py")], order=order, names=names or {}, env=env)

    return do


def assert_all_gave_clips(told, *, at) -> None:
    for name, came in told.items():
        assert "output" in came, (name, came)
        assert came["output"]["video"]["url"].startswith(at), (name, came)


def test_environment_variables_alone_lead_every_call_here(call, here, machine):
    told = call("run", "subscribe", "subscribe_async", env=here.variables("env"))
    assert_all_gave_clips(told, at=f"https://127.0.0.1:{here.tls_port}/files/")
    assert machine.asked == set()


def test_environment_variables_alone_do_not_lead_uploads_here(call, here, machine, version):
    strange = call("upload", env=here.variables("env"), does=machine.stray)
    assert strange == REST.get(version, "rest.fal.ai")


def test_the_proxy_leads_everything_here_and_no_name_is_looked_up(call, here, machine, fal_files):
    told = call("run", "subscribe", "subscribe_async", "upload", env=here.variables("proxy"))
    assert_all_gave_clips(told, at=fal_files)
    assert machine.asked == set()


def test_the_hosts_file_leads_everything_here(call, here, machine, hosts, fal_files):
    told = call("run", "subscribe", "upload", env=here.variables("hosts"), names=hosts)
    assert_all_gave_clips(told, at=fal_files)
    assert machine.asked <= set(hosts)
    assert {"fal.run", "queue.fal.run"} <= machine.asked


@pytest.mark.parametrize("version", [CURRENT])
def test_a_server_that_is_down_makes_the_newest_client_call_the_fallback_domain(call, here, machine, hosts):
    # a hosts file that someone wrote by hand, with the names of today
    down = {name: CLOSED_PORT for name in hosts if name not in FALLBACKS}
    strange = call("run", env=here.variables("hosts"), names=down, does=machine.stray)
    assert strange == "falrun.com"
    assert set(hosts) >= FALLBACKS


def test_without_any_way_in_a_call_goes_to_fal(call, machine):
    assert call("run", env={}, does=machine.stray) == "fal.run"
