import asyncio
import shlex
import socket
import ssl

import pytest
from cryptography import x509

from server.__main__ import main
from server.tls import NAMES, Certificate, authority_of, certificate_in, ensure_certificate, ssl_context


def make(data) -> Certificate:
    """A certificate in `data`, by an authority of its own."""
    return ensure_certificate(data, authority_of(data))


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


async def shake(data, name: str) -> None:
    """A TLS handshake with a client that trusts our authority alone and calls the server `name`."""
    found = make(data)
    server = await asyncio.start_server(lambda _, writer: writer.close(), "127.0.0.1", 0, ssl=ssl_context(found))
    async with server:
        port = server.sockets[0].getsockname()[1]
        trust = ssl.create_default_context(cafile=found.authority)
        _, writer = await asyncio.open_connection("127.0.0.1", port, ssl=trust, server_hostname=name)
        writer.close()
        await writer.wait_closed()


@pytest.mark.parametrize("name", [*NAMES, "127.0.0.1", "::1"])
async def test_the_certificate_is_good_for_every_name_of_fals_and_this_machine(tmp_path, name):
    await shake(tmp_path, name)


async def test_the_certificate_is_good_for_nothing_else(tmp_path):
    with pytest.raises(ssl.SSLCertVerificationError):
        await shake(tmp_path, "bank.example")


def test_the_authority_may_sign_for_no_other_domain(tmp_path):
    authority = x509.load_pem_x509_certificate(make(tmp_path).authority.read_bytes())
    limits = authority.extensions.get_extension_for_class(x509.NameConstraints)
    assert limits.critical
    assert x509.DNSName("fal.ai") in limits.value.permitted_subtrees


def test_keys_are_for_the_owner_alone_and_are_made_once(tmp_path):
    authority = authority_of(tmp_path)
    before = ensure_certificate(tmp_path, authority).certificate.read_bytes()
    keys = list((tmp_path / "tls").glob("*.key"))
    assert [path.name for path in keys] == ["server.key"]
    assert keys[0].stat().st_mode & 0o777 == 0o600
    assert ensure_certificate(tmp_path, authority).certificate.read_bytes() == before


def test_a_lost_certificate_is_made_again_by_the_same_authority(tmp_path):
    authority = authority_of(tmp_path)
    first = ensure_certificate(tmp_path, authority)
    public = first.authority.read_bytes()
    first.certificate.unlink()
    again = ensure_certificate(tmp_path, authority)
    assert again.certificate.exists()
    assert again.authority.read_bytes() == public


def test_two_nodes_have_certificates_of_their_own_by_one_authority(tmp_path):
    authority = authority_of(tmp_path)
    one, two = (ensure_certificate(tmp_path / name, authority) for name in ("one", "two"))
    assert one.authority.read_bytes() == two.authority.read_bytes()
    assert one.certificate.read_bytes() != two.certificate.read_bytes()


def test_a_certificate_by_another_authority_is_made_anew(tmp_path):
    old = make(tmp_path).certificate.read_bytes()
    authority = authority_of(tmp_path)
    again = ensure_certificate(tmp_path, authority)
    assert again.certificate.read_bytes() != old
    assert again.authority.read_bytes() in authority


def test_the_authority_of_an_earlier_version_goes_on_in_the_store(launch):
    with launch() as it:
        folder = it.settings.data / "tls"
        made = authority_of(it.settings.data)
    folder.mkdir()
    head, dashes, tail = made.partition(b"-----BEGIN CERTIFICATE")
    (folder / "ca.key").write_bytes(head)
    (folder / "ca.pem").write_bytes(dashes + tail)
    assert authority_of(it.settings.data) == made
    for _ in range(2):
        with launch(tls_port=free_port()) as it:
            assert certificate_in(it.settings.data).authority.read_bytes() == dashes + tail
    assert not (folder / "ca.key").exists()


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
