"""Each supported release of fal_client in each way in that it can use, and where it goes in those it cannot."""

import base64
import json
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


PROGRAM = [sys.executable, str(HERE / "call.py")]
CALLS = ("run", "subscribe", "subscribe_async", "queue", "queue_async")
UPLOADS = ("upload", "upload_async")
WRONG = "no:key"


def packages(version: str) -> list[str]:
    """Where this release of the client is, if not in the environment of the tests."""
    if version == CURRENT:
        return []
    folder = HERE.parent / "python_modules" / version
    if not folder.exists():
        pytest.fail(f"fal-client {version} is missing: run make test-full, which installs it into {folder}")
    return [str(folder)]


def order_of(operations, png) -> dict:
    """What the client is to do."""
    uri = "data:image/png;base64," + base64.b64encode(png).decode()
    inputs = {"image_url": uri}, {"image": png.hex()}
    return {name: {"prompt": "a"} | inputs[name in UPLOADS] for name in operations}


@pytest.fixture(params=EVERY)
def version(request) -> str:
    return request.param


@pytest.fixture
def call(version, machine, png):
    """Does these operations with the client; gives what came of each."""
    path = ":".join([str(HERE / "resolver"), *packages(version)])

    def do(*operations, env, names=None, does=machine.run, key="any"):
        env = env | {"PYTHONPATH": path, "FAL_KEY": key}
        return does(PROGRAM, order=order_of(operations, png), names=names or {}, env=env)

    return do


def assert_all_gave_clips(told, *, at) -> None:
    for name, came in told.items():
        assert "output" in came, (name, came)
        assert came["output"]["video"]["url"].startswith(at), (name, came)


def assert_downloaded(told, clip) -> None:
    for name in {"queue", "queue_async"} & set(told):
        assert told[name]["output"]["downloaded"] == len(clip), name


def assert_every_call_was_refused(told) -> None:
    for name, came in told.items():
        # an upload that may not begin is told of in the words of httpx, but for the asynchronous one since 1.0
        kinds = ("FalClientHTTPError", "HTTPStatusError") if name in UPLOADS else ("FalClientHTTPError",)
        assert came.get("kind") in kinds, (name, came)
        assert came["status"] == 401, (name, came)


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


@pytest.mark.parametrize(
    ("way", "operations"),
    [
        pytest.param("env", CALLS, marks=pytest.mark.full),
        ("proxy", (*CALLS, *UPLOADS)),
    ],
)
def test_a_key_opens_a_server_that_has_keys_and_a_wrong_one_is_refused(call, locked, machine, clip, way, operations):
    told = call(*operations, env=locked.variables(way), key=locked.key)
    assert_all_gave_clips(told, at="https://")
    assert_downloaded(told, clip)
    assert_every_call_was_refused(call(*operations, env=locked.variables(way), key=WRONG))
    assert machine.asked == set()


@pytest.mark.full
def test_a_real_hosts_file_port_443_and_a_key_lead_everything_here(own_machine, version, png, clip, fal_files):
    def call(key):
        env = own_machine.server.variables("hosts") | {"PYTHONPATH": ":".join(packages(version)), "FAL_KEY": key}
        return json.loads(own_machine.run(PROGRAM, order=order_of((*CALLS, *UPLOADS), png), env=env))

    told = call(own_machine.server.key)
    assert_all_gave_clips(told, at=fal_files)
    assert_downloaded(told, clip)
    assert_every_call_was_refused(call(WRONG))


@pytest.mark.full
@pytest.mark.parametrize("called", ["address", "name"])
def test_a_server_in_a_local_network_is_called_by_its_address_and_by_its_name(own_machine, png, called):
    host = getattr(own_machine, called)
    env = own_machine.server.variables("env", host) | {"FAL_KEY": own_machine.server.key}
    assert env["FAL_RUN_HOST"] == f"{host}:443/run"
    told = json.loads(own_machine.run(PROGRAM, order=order_of(CALLS, png), env=env))
    assert_all_gave_clips(told, at=f"https://{host}/files/")


@pytest.mark.full
def test_the_machine_within_has_a_hosts_file_of_its_own(own_machine):
    outside = Path("/etc/hosts").read_text()
    assert "falrun.com" in own_machine.run(["cat", "/etc/hosts"])
    assert "falrun.com" not in outside
