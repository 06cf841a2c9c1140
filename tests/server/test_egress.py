"""What a stranger's URL may make the server connect to: vectors from elsewhere, no connection to a forbidden address.

Their sources stand in ssrf_vectors.json. There, spellings are what a system's resolver reads as an address without
asking anyone; names lead wherever their owner, or a resolver on the network, likes.
"""

import json
from ipaddress import ip_address, ip_network
from pathlib import Path
from types import SimpleNamespace

import httpcore2
import pytest

from server.bell import Bell
from server.database import open_database
from server.egress import PRIVATE, permitted, system_resolve
from server.errors import FalError, FieldError, plain
from server.media import Media
from server.metrics import Metrics
from server.records import Sender, WebhookTarget
from server.settings import Settings
from server.signing import Signer, make_signing_key
from server.store import Store
from server.webhooks import Webhooks, target

VECTORS = json.loads(Path(__file__).with_name("ssrf_vectors.json").read_text("utf-8"))
ADDRESSES = VECTORS["addresses"]
KNOWN = VECTORS["spellings"] | VECTORS["names"]
FRONT = "93.184.215.14"
CLOUD_SECRETS = [
    "169.254.169.254",
    "169.254.170.2",
    "169.254.0.23",
    "169.254.42.42",
    "fe80::a9fe:a9fe",
    "fd00:ec2::254",
    "fd00:ec2::23",
    "fd20:ce::254",
    "fd00:42::42",
    "100.100.100.200",
    "192.0.0.192",
    "168.63.129.16",
    "::ffff:169.254.169.254",
    "::ffff:100.100.100.200",
    "::168.63.129.16",
    "64:ff9b::169.254.169.254",
    "64:ff9b:1::168.63.129.16",
    "2002:a9fe:a9fe::",
]
EVERYTHING = [ip_network("0.0.0.0/0"), ip_network("::/0")]


def bracketed(address: str) -> str:
    return f"[{address.partition('%')[0]}]" if ":" in address else address


URLS = [
    *(f"http://{name}/" for name in KNOWN),
    *(f"https://{name}:8443/x?y#z" for name in KNOWN),
    *(f"http://{bracketed(address)}/" for address in ADDRESSES),
    *VECTORS["urls"],
]


class Recorder(httpcore2.AsyncNetworkBackend):
    """A network that remembers where it was asked to go, and sends whoever comes on to `onward`."""

    def __init__(self) -> None:
        self.onward = ""
        self.connected: list[str] = []

    async def connect_tcp(self, host, *_rest):
        self.connected.append(host)
        lines = ["HTTP/1.1 302 Found", f"location: {self.onward}", "content-length: 0", "", ""]
        return httpcore2.AsyncMockStream(["\r\n".join(lines).encode()])

    async def connect_unix_socket(self, path, *_rest):
        raise AssertionError(path)


async def resolve(host: str, _port: int) -> list[str]:
    """A resolver that serves the attacker: an address is itself, a name that it does not know is loopback."""
    if host == "front.example":
        return [FRONT]
    try:
        return [str(ip_address(host))]
    except ValueError:
        return [KNOWN.get(host, "127.0.0.1")]


async def no_file(_file_id: str) -> None:
    return None


@pytest.fixture
def network():
    return Recorder()


@pytest.fixture
def media(network):
    return Media(Settings(), own_file=no_file, resolve=resolve, connector=network)


@pytest.mark.parametrize("network", sorted({*VECTORS["networks"]["ssrfguard"], *VECTORS["networks"]["drawbridge"]}))
def test_no_address_of_a_network_that_others_deny_is_permitted(network):
    net = ip_network(network)
    inside = {net[0], net[-1], net[net.num_addresses // 2], net[net.num_addresses // 3]}
    assert [str(address) for address in inside if permitted(str(address))] == []
    if net.version == 4:
        assert [str(address) for address in inside if permitted(f"::ffff:{address}")] == []


@pytest.mark.parametrize("address", ADDRESSES)
def test_an_address_of_the_lists_is_not_permitted(address):
    assert not permitted(address)


@pytest.mark.parametrize("address", VECTORS["public"])
def test_a_public_address_is_permitted(address):
    assert permitted(address)


def test_a_private_network_that_is_named_is_permitted_and_no_other():
    allowed = [ip_network("192.168.0.0/24"), ip_network("fd00::/8")]
    assert permitted("192.168.0.7", allowed)
    assert permitted("::ffff:192.168.0.7", allowed)
    assert permitted("fd00::1", allowed)
    assert not permitted("192.168.1.7", allowed)
    assert not permitted("127.0.0.1", allowed)


@pytest.mark.parametrize("address", CLOUD_SECRETS)
@pytest.mark.parametrize("allowed", [(), PRIVATE, EVERYTHING], ids=["nothing", "private", "everything"])
def test_no_setting_and_no_key_reaches_where_a_cloud_keeps_its_secrets(address, allowed):
    assert not permitted(address, allowed)


@pytest.mark.parametrize("address", ["127.0.0.1", "10.1.2.3", "100.100.100.201", "fd00::1", "64:ff9b::10.0.0.1"])
def test_what_is_allowed_beside_the_clouds_secrets_is_permitted(address):
    assert permitted(address, EVERYTHING)


async def test_a_name_that_leads_to_a_clouds_secrets_gets_no_connection_whatever_is_allowed(network):
    answers = list(CLOUD_SECRETS)

    async def leading(_host: str, _port: int) -> list[str]:
        return [answers.pop()]

    settings = Settings(allow_private_networks=EVERYTHING)
    media = Media(settings, own_file=no_file, resolve=leading, connector=network)
    while answers:
        with pytest.raises(FieldError, match="private network"):
            await media.fetch_image("http://metadata.example/latest/")
    assert network.connected == []


@pytest.mark.parametrize("spelling", VECTORS["spellings"])
async def test_what_the_system_makes_of_a_spelling_is_not_permitted(spelling):
    answers = await system_resolve(spelling, 80)
    assert answers
    assert not any(permitted(answer) for answer in answers)


async def test_no_url_of_the_lists_gets_a_connection_as_an_image(network, media):
    assert len(URLS) > 150
    for url in URLS:
        with pytest.raises(FieldError):
            await media.fetch_image(url)
        assert network.connected == [], url


async def test_no_url_of_the_lists_gets_a_connection_as_the_end_of_a_redirect(network, media):
    for url in URLS:
        network.onward = url.replace("\r", "").replace("\n", "")
        with pytest.raises(FieldError):
            await media.fetch_image("http://front.example/")
        assert set(network.connected) == {FRONT}, url


async def test_no_url_of_the_lists_gets_a_connection_as_a_webhook(tmp_path, network):
    database = open_database(tmp_path)
    store = Store(database)

    class Jobs:
        def __init__(self) -> None:
            self.store = store

        async def get(self, job_id: str):
            return await store.get(job_id)

    key = make_signing_key()
    signer = Signer(SimpleNamespace(current=lambda _name: key))
    box = Webhooks(database, Jobs(), signer, Bell(), Metrics(tmp_path), allowed=(), resolve=resolve, connector=network)
    for number, url in enumerate(URLS):
        # why: past the check at submit, as if a name had turned bad since
        sender = Sender(webhook=WebhookTarget(url, "", private=False))
        await store.submit_failed(str(number), plain("bad_request", "no"), max_waiting=9, sender=sender)
        await box.deliver(await box.claim())
        assert network.connected == [], url
    await database.close()


def test_every_literal_address_of_the_lists_is_refused_as_a_webhook_at_submit():
    for address in ADDRESSES:
        with pytest.raises(FalError):
            target(f"http://{bracketed(address)}/", origin="", key=None, allowed=())


async def test_a_name_with_one_forbidden_address_among_public_ones_gets_no_connection(network):
    answers = [["1.1.1.1", bad] for bad in ADDRESSES]

    async def mixed(_host: str, _port: int) -> list[str]:
        return answers.pop()

    media = Media(Settings(), own_file=no_file, resolve=mixed, connector=network)
    while answers:
        with pytest.raises(FieldError, match="private network"):
            await media.fetch_image("http://mixed.example/")
    assert network.connected == []


async def test_a_name_that_turns_bad_after_the_first_answer_gets_no_second_connection(network):
    network.onward = "http://front.example/again"
    answers = [address for bad in ADDRESSES for address in (bad, FRONT)]

    async def turning(_host: str, _port: int) -> list[str]:
        return [answers.pop()]

    media = Media(Settings(), own_file=no_file, resolve=turning, connector=network)
    while answers:
        with pytest.raises(FieldError, match="private network"):
            await media.fetch_image("http://front.example/")
    assert network.connected == [FRONT] * len(ADDRESSES)


async def test_proxies_of_the_environment_are_not_asked(monkeypatch, network, media):
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    network.onward = "http://127.0.0.1/"
    with pytest.raises(FieldError, match="private network"):
        await media.fetch_image("http://front.example/")
    assert network.connected == [FRONT]
