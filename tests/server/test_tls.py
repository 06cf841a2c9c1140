import asyncio
import shlex
import socket
import ssl
from types import SimpleNamespace

import pytest
from cryptography import x509

from server.__main__ import main
from server.covered import ALWAYS, covered_names
from server.settings import Settings
from server.tls import (
    Certificate,
    certificate_in,
    ensure_certificate,
    left_authority,
    new_authority,
    permitting,
    ssl_context,
)


def sign(data, authority: bytes, *, names=ALWAYS, known=()) -> Certificate:
    """The certificate in `data`, by `authority`."""
    return ensure_certificate(data, authority, known=known or [authority], names=names)


def make(data) -> Certificate:
    """A certificate in `data`, by an authority of its own."""
    return sign(data, new_authority())


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


async def shake(found: Certificate, name: str, *, trusted=None) -> None:
    """A TLS handshake with a client that trusts our authority alone and calls the server `name`."""
    server = await asyncio.start_server(lambda _, writer: writer.close(), "127.0.0.1", 0, ssl=ssl_context(found))
    async with server:
        port = server.sockets[0].getsockname()[1]
        trust = ssl.create_default_context(cafile=trusted or found.authority)
        _, writer = await asyncio.open_connection("127.0.0.1", port, ssl=trust, server_hostname=name)
        writer.close()
        await writer.wait_closed()


@pytest.mark.parametrize("name", ALWAYS)
async def test_the_certificate_is_good_for_every_name_of_fals_and_this_machine(tmp_path, name):
    await shake(make(tmp_path), name)


async def test_the_certificate_is_good_for_nothing_else(tmp_path):
    with pytest.raises(ssl.SSLCertVerificationError):
        await shake(make(tmp_path), "bank.example")


def test_the_authority_may_sign_for_no_other_domain(tmp_path):
    authority = x509.load_pem_x509_certificate(make(tmp_path).authority.read_bytes())
    limits = authority.extensions.get_extension_for_class(x509.NameConstraints)
    assert limits.critical
    assert x509.DNSName("fal.ai") in limits.value.permitted_subtrees


async def test_the_authority_signs_for_addresses_of_private_networks_and_no_others(tmp_path):
    authority = new_authority()
    for number, (address, good) in enumerate([("192.168.7.7", True), ("fd00::7", True), ("198.51.100.7", False)]):
        found = sign(tmp_path / str(number), authority, names=[*ALWAYS, address])
        if good:
            await shake(found, address)
        else:
            with pytest.raises(ssl.SSLCertVerificationError, match="permitted subtree"):
                await shake(found, address)


async def test_an_authority_that_is_told_a_name_signs_for_it_with_the_key_it_had(tmp_path):
    first = new_authority()
    names = [*ALWAYS, "studio.example", "198.51.100.7"]
    told = permitting(first, names=names)
    assert told.partition(b"-----BEGIN CERTIFICATE")[0] == first.partition(b"-----BEGIN CERTIFICATE")[0]
    for name in names:
        await shake(sign(tmp_path, told, names=names), name)
    assert permitting(told, names=names) == told
    assert permitting(told, names=[*ALWAYS, "10.1.2.3"]) == told
    with pytest.raises(ssl.SSLCertVerificationError):
        await shake(sign(tmp_path, told, names=[*names, "other.example"]), "other.example")


def test_a_certificate_is_made_anew_when_the_server_is_called_otherwise_and_the_authority_stays(tmp_path):
    authority = new_authority()
    one = sign(tmp_path, authority)
    before, trusted = one.certificate.read_bytes(), one.authority.read_bytes()
    assert sign(tmp_path, authority, names=[*ALWAYS, "10.1.2.3"]).certificate.read_bytes() != before
    assert one.authority.read_bytes() == trusted


async def test_while_an_authority_is_turned_over_clients_that_trust_both_never_notice(tmp_path):
    old, new = new_authority(), new_authority()
    alone = tmp_path / "old.pem"
    alone.write_bytes(sign(tmp_path, old).authority.read_bytes())
    during = sign(tmp_path, old, known=[old, new])
    await shake(during, "fal.run")
    await shake(during, "fal.run", trusted=alone)
    both = tmp_path / "both.pem"
    both.write_bytes(during.authority.read_bytes())
    after = sign(tmp_path, new, known=[new])
    await shake(after, "fal.run", trusted=both)
    with pytest.raises(ssl.SSLCertVerificationError):
        await shake(after, "fal.run", trusted=alone)


@pytest.mark.parametrize(
    ("given", "more"),
    [
        ({}, []),
        ({"host": "::1"}, []),
        ({"host": "192.168.1.20"}, ["192.168.1.20"]),
        ({"host": "Box.lan"}, ["box.lan"]),
        ({"trusted_hosts": "ltx.example,10.0.0.9,[fd00::9],müller.example"}, ["ltx.example", "10.0.0.9", "fd00::9"]),
    ],
)
def test_the_certificate_is_for_what_the_settings_call_the_server(given, more):
    assert list(covered_names(Settings(**given))) == [*ALWAYS, *more]


EVERYWHERE = "0.0.0.0"  # noqa: S104 -- nothing is bound


def test_a_server_that_listens_on_all_addresses_is_called_by_those_in_private_networks(monkeypatch):
    entries = ["127.0.0.1", "192.168.1.20", "203.0.113.5", "fe80::1%eth0", "fd00::2", "02:fc:00:00:00:01"]
    there = {"eth0": [SimpleNamespace(address=text) for text in entries]}
    monkeypatch.setattr("server.covered.psutil.net_if_addrs", lambda: there)
    assert list(covered_names(Settings(host=EVERYWHERE))) == [*ALWAYS, "192.168.1.20", "fd00::2"]
    assert list(covered_names(Settings(host="203.0.113.5"))) == [*ALWAYS, "203.0.113.5"]


def test_keys_are_for_the_owner_alone_and_are_made_once(tmp_path):
    authority = new_authority()
    before = sign(tmp_path, authority).certificate.read_bytes()
    keys = list((tmp_path / "tls").glob("*.key"))
    assert [path.name for path in keys] == ["server.key"]
    assert keys[0].stat().st_mode & 0o777 == 0o600
    assert sign(tmp_path, authority).certificate.read_bytes() == before


def test_a_lost_certificate_is_made_again_by_the_same_authority(tmp_path):
    authority = new_authority()
    first = sign(tmp_path, authority)
    public = first.authority.read_bytes()
    first.certificate.unlink()
    again = sign(tmp_path, authority)
    assert again.certificate.exists()
    assert again.authority.read_bytes() == public


def test_two_nodes_have_certificates_of_their_own_by_one_authority(tmp_path):
    authority = new_authority()
    one, two = (sign(tmp_path / name, authority) for name in ("one", "two"))
    assert one.authority.read_bytes() == two.authority.read_bytes()
    assert one.certificate.read_bytes() != two.certificate.read_bytes()


def test_a_certificate_by_another_authority_is_made_anew(tmp_path):
    old = make(tmp_path).certificate.read_bytes()
    authority = new_authority()
    again = sign(tmp_path, authority)
    assert again.certificate.read_bytes() != old
    assert again.authority.read_bytes() in authority


def leave_authority(data) -> bytes:
    """What an earlier version left in the folder `data`; gives the public half."""
    head, dashes, tail = new_authority().partition(b"-----BEGIN CERTIFICATE")
    folder = data / "tls"
    folder.mkdir(parents=True)
    (folder / "ca.key").write_bytes(head)
    (folder / "ca.pem").write_bytes(dashes + tail)
    assert left_authority(data) == head + dashes + tail
    return dashes + tail


def test_the_authority_of_an_earlier_version_goes_on_in_the_store(launch, tmp_path):
    data = tmp_path / "data"
    left = leave_authority(data)
    for _ in range(2):
        with launch(tls_port=free_port()) as it:
            assert certificate_in(it.settings.data).authority.read_bytes() == left
    assert not (data / "tls/ca.key").exists()


def test_the_authority_of_an_earlier_version_does_not_come_back_when_it_is_turned_over(launch, tmp_path, capsys):
    data = tmp_path / "data"
    left = leave_authority(data)
    assert main(["secrets", "rotate", "authority", f"--data={data}"]) == 0
    with launch(tls_port=free_port()) as it:
        found = certificate_in(it.settings.data).authority
        old, new = x509.load_pem_x509_certificates(found.read_bytes())
        assert old == x509.load_pem_x509_certificate(left)
        assert new.public_key() != old.public_key()
    assert main(["secrets", "rotate", "authority", "--at-once", f"--data={data}"]) == 0
    assert "ca.pem for the old one" in capsys.readouterr().out
    with launch(tls_port=free_port()):
        (now,) = x509.load_pem_x509_certificates(found.read_bytes())
        assert now.public_key() not in (old.public_key(), new.public_key())


def test_the_bundle_holds_the_public_authorities_too(tmp_path):
    trust = ssl.create_default_context(cafile=make(tmp_path).bundle)
    assert len(trust.get_ca_certs()) > 50
    assert any("ltxd" in str(one["subject"]) for one in trust.get_ca_certs())


def test_client_env_prints_lines_that_a_shell_reads(tmp_path, capsys, monkeypatch):
    monkeypatch.delenv("FAL_KEY", raising=False)
    data = tmp_path / "it's here"
    assert main(["client", "env", f"--data={data}", "--tls-port=9443"]) == 0
    lines = [shlex.split(line) for line in capsys.readouterr().out.splitlines()]
    assert all(line[0] == "export" for line in lines)
    values = dict(line[1].split("=", 1) for line in lines)
    assert values == {
        "FAL_RUN_HOST": "127.0.0.1:9443/run",
        "FAL_QUEUE_RUN_HOST": "127.0.0.1:9443/queue",
        "SSL_CERT_FILE": str(data / "tls" / "bundle.pem"),
        "NODE_EXTRA_CA_CERTS": str(data / "tls" / "ca.pem"),
        "FAL_KEY": "dummy",
    }


def test_client_env_leaves_a_key_alone_and_needs_tls(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("FAL_KEY", "mine")
    assert main(["client", "env", f"--data={tmp_path}"]) == 0
    assert "FAL_KEY" not in capsys.readouterr().out
    assert main(["client", "env", f"--data={tmp_path}", "--tls-port=0"]) == 1


def test_client_env_names_no_host_that_the_certificate_is_not_for(tmp_path, capsys):
    assert main(["client", "env", f"--data={tmp_path}"]) == 0
    assert main(["client", "env", f"--data={tmp_path}", "--host=192.168.1.20"]) == 1
    assert "192.168.1.20: add it to LTX_TRUSTED_HOSTS" in capsys.readouterr().err
    assert main(["client", "env", f"--data={tmp_path}", "--host=192.168.1.20", "--way=proxy", "--proxy-port=9"]) == 0
