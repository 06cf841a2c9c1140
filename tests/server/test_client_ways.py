"""What `ltxd client` prints for the ways in that are not environment variables alone; those are in test_tls.py."""

import shlex

import pytest

from server.__main__ import main
from server.roles import HOSTS


def printed(capsys) -> dict[str, str]:
    lines = [shlex.split(line) for line in capsys.readouterr().out.splitlines()]
    return dict(line[1].split("=", 1) for line in lines)


def test_the_proxy_way_names_the_proxy_in_both_spellings_and_our_authority(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("FAL_KEY", "mine")
    assert main(["client", "env", "--way=proxy", f"--data={tmp_path}", "--proxy-port=8080"]) == 0
    assert printed(capsys) == {
        "HTTPS_PROXY": "http://127.0.0.1:8080",
        "https_proxy": "http://127.0.0.1:8080",
        "SSL_CERT_FILE": str(tmp_path / "tls/bundle.pem"),
        "NODE_EXTRA_CA_CERTS": str(tmp_path / "tls/ca.pem"),
    }


def test_the_proxy_way_needs_a_port(tmp_path, capsys):
    assert main(["client", "env", "--way=proxy", f"--data={tmp_path}"]) == 1
    assert "--proxy-port" in capsys.readouterr().err


def test_the_hosts_way_sets_trust_alone(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("FAL_KEY", "mine")
    assert main(["client", "env", "--way=hosts", f"--data={tmp_path}"]) == 0
    assert set(printed(capsys)) == {"SSL_CERT_FILE", "NODE_EXTRA_CA_CERTS"}


def test_the_way_by_environment_warns_of_uploads(tmp_path, capsys):
    assert main(["client", "env", f"--data={tmp_path}"]) == 0
    assert "upload() still goes to fal" in capsys.readouterr().err


EVERY_INTERFACE = "0.0.0.0"  # noqa: S104 -- nothing is bound, it is only printed


@pytest.mark.parametrize(
    ("host", "wanted"),
    [(EVERY_INTERFACE, "127.0.0.1:8443"), ("::", "[::1]:8443"), ("::1", "[::1]:8443"), ("box", "box:8443")],
)
def test_the_address_is_one_that_a_client_can_call(tmp_path, capsys, host, wanted):
    assert main(["client", "env", f"--data={tmp_path}", f"--host={host}"]) == 0
    assert printed(capsys)["FAL_RUN_HOST"] == f"{wanted}/run"


def test_the_hosts_lines_hold_every_name_but_fals_own_pages_and_warn_of_the_fallback(capsys):
    assert main(["client", "hosts"]) == 0
    text = capsys.readouterr().out
    lines = [line.split() for line in text.splitlines() if not line.startswith("#")]
    assert {name for _, name in lines} == set(HOSTS) - {"fal.ai"}
    assert {"falrun.com", "queue.falrun.com", "rest.alpha.fal.ai"} <= {name for _, name in lines}
    assert {address for address, _ in lines} == {"127.0.0.1"}
    assert "would then reach the real fal" in text
