"""Each release of fal's JavaScript client in Node, in each way in, and where it goes in those it cannot use."""

import base64
import json
from pathlib import Path

import pytest

HERE = Path(__file__).parent
CURRENT = "@fal-ai/client"
OLD = ("client-1.6.2", "client-1.0.2", "@fal-ai/serverless-client")
VERSIONS = {CURRENT: "1.10.1", "client-1.6.2": "1.6.2", "client-1.0.2": "1.0.2", "@fal-ai/serverless-client": "0.15.0"}
ALL = ("run", "subscribe", "upload")
WITH_KEYS = ("run", "queue", "upload")
WRONG = "no:key"

pytestmark = pytest.mark.full


def order_of(client, operations, png, *, config) -> dict:
    """What the client is to do."""
    uri = "data:image/png;base64," + base64.b64encode(png).decode()
    given = {name: {"prompt": "a", "image_url": uri} for name in operations if name != "upload"}
    if "upload" in operations:
        given["upload"] = {"prompt": "a", "image": png.hex()}
    return {"client": client, "config": {"credentials": "any"} | config, "order": given}


@pytest.fixture
def call(machine, node, png):
    """Does these operations with the client; gives what came of each."""

    def do(client, *operations, config=None, env=None, names=None, preload=(), does=machine.run):
        order = order_of(client, operations, png, config=config or {})
        imports = [f"--import=./{name}" for name in ("resolver.mjs", *preload)]
        command = [node, *imports, "in_node.mjs"]
        return does(command, order=order, names=names or {}, env=env or {})

    return do


@pytest.fixture
def proxy_url(here) -> str:
    return f"http://127.0.0.1:{here.port}/api/fal/proxy"


def assert_all_gave_clips(told, *, at) -> None:
    for name, came in told.items():
        assert "output" in came, (name, came)
        assert came["output"]["video"]["url"].startswith(at), (name, came)


def assert_all_was_refused(told) -> None:
    for name, came in told.items():
        assert (came.get("kind"), came.get("status")) == ("ApiError", 401), (name, came)
        assert came["body"] == {"detail": "invalid key credentials"}, (name, came)


def assert_a_key_opens(call, clip, *, key, at) -> None:
    """`call` does all operations with the given credentials."""
    told = call(key)
    assert_all_gave_clips(told, at=at)
    assert told["queue"]["output"]["downloaded"] == len(clip)
    assert_all_was_refused(call(WRONG))


def test_the_clients_are_the_releases_that_they_are_called_by():
    for name, version in VERSIONS.items():
        package = json.loads((HERE.parent / "node_modules" / name / "package.json").read_text())
        assert package["version"] == version


def test_proxy_url_as_an_object_leads_the_newest_client_here(call, here, machine, proxy_url):
    told = call(CURRENT, *ALL, config={"proxyUrl": {"url": proxy_url, "when": "always"}})
    assert_all_gave_clips(told, at=f"http://127.0.0.1:{here.port}/files/")
    assert machine.asked == set()


@pytest.mark.parametrize("client", OLD)
def test_older_clients_pass_over_proxy_url_in_node_and_call_fal(call, machine, proxy_url, client):
    config = {"proxyUrl": {"url": proxy_url, "when": "always"}}
    assert call(client, "run", config=config, does=machine.stray) == "fal.run"


@pytest.mark.parametrize("client", [CURRENT, *OLD])
def test_a_request_middleware_leads_every_client_here(call, here, machine, proxy_url, client):
    told = call(client, *ALL, config={"middleware": proxy_url})
    assert_all_gave_clips(told, at=f"http://127.0.0.1:{here.port}/files/")
    assert machine.asked == set()


def test_no_environment_variable_leads_a_client_here(call, here, machine):
    assert call(CURRENT, "run", env=here.variables("env"), does=machine.stray) == "fal.run"


def test_nodes_fetch_passes_over_https_proxy_and_calls_fal(call, here, machine):
    assert call(CURRENT, "run", env=here.variables("proxy"), does=machine.stray) == "fal.run"


@pytest.mark.parametrize("client", [CURRENT, *OLD])
def test_the_proxy_leads_every_client_here_once_fetch_heeds_it(call, here, machine, client, fal_files):
    told = call(client, *ALL, env=here.variables("proxy"), preload=["env_proxy.mjs"])
    assert_all_gave_clips(told, at=fal_files)
    assert machine.asked == set()


@pytest.mark.parametrize("client", [CURRENT, *OLD])
def test_the_hosts_file_leads_every_client_here(call, here, machine, hosts, client, fal_files):
    told = call(client, *ALL, env=here.variables("hosts"), names=hosts)
    assert_all_gave_clips(told, at=fal_files)
    assert machine.asked <= set(hosts)
    assert {"fal.run", "queue.fal.run"} <= machine.asked


def test_a_key_opens_a_server_that_has_keys_by_proxy_url(call, locked, clip):
    url = f"http://127.0.0.1:{locked.port}/api/fal/proxy"

    def with_key(key):
        return call(CURRENT, *WITH_KEYS, config={"proxyUrl": {"url": url, "when": "always"}, "credentials": key})

    assert_a_key_opens(with_key, clip, key=locked.key, at=f"http://127.0.0.1:{locked.port}/files/")


@pytest.mark.parametrize("client", [CURRENT, *OLD])
def test_a_key_opens_a_server_that_has_keys_by_middleware(call, locked, clip, client):
    url = f"http://127.0.0.1:{locked.port}/api/fal/proxy"

    def with_key(key):
        return call(client, *WITH_KEYS, config={"middleware": url, "credentials": key})

    assert_a_key_opens(with_key, clip, key=locked.key, at=f"http://127.0.0.1:{locked.port}/files/")


@pytest.mark.parametrize("client", [CURRENT, *OLD])
def test_a_key_opens_a_server_that_has_keys_through_the_proxy(call, locked, clip, client, fal_files):
    def with_key(key):
        env = locked.variables("proxy")
        return call(client, *WITH_KEYS, config={"credentials": key}, env=env, preload=["env_proxy.mjs"])

    assert_a_key_opens(with_key, clip, key=locked.key, at=fal_files)


@pytest.mark.parametrize("client", [CURRENT, *OLD])
def test_a_real_hosts_file_port_443_and_a_key_lead_every_client_here(own_machine, node, png, clip, client, fal_files):
    def with_key(key):
        order = order_of(client, WITH_KEYS, png, config={"credentials": key})
        env = own_machine.server.variables("hosts")
        return json.loads(own_machine.run([node, str(HERE / "in_node.mjs")], order=order, env=env))

    assert_a_key_opens(with_key, clip, key=own_machine.server.key, at=fal_files)
