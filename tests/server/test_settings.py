from ipaddress import ip_network
from pathlib import Path

import pytest
from pydantic import ValidationError

from server.settings import Settings


def test_every_setting_says_what_it_is_for():
    for name, field in Settings.model_fields.items():
        assert field.description, name
        assert field.description.endswith("."), name


def test_the_environment_sets_and_the_command_line_wins(monkeypatch):
    monkeypatch.setenv("LTX_PORT", "9000")
    monkeypatch.setenv("LTX_CORS_ORIGINS", "https://a.example, https://b.example")
    monkeypatch.setenv("LTX_ALLOW_PRIVATE_NETWORKS", "10.0.0.0/8,fd00::/8")
    settings = Settings()
    assert settings.port == 9000
    assert settings.cors_origins == ("https://a.example", "https://b.example")
    assert settings.allow_private_networks == (ip_network("10.0.0.0/8"), ip_network("fd00::/8"))
    assert Settings(port=9001).port == 9001
    monkeypatch.setenv("LTX_ALLOW_PRIVATE_NETWORKS", '["10.0.0.0/8"]')
    assert settings.allow_private_networks[:1] == Settings().allow_private_networks


def test_the_data_folder_follows_xdg_and_the_home(monkeypatch):
    monkeypatch.delenv("LTX_DATA", raising=False)
    monkeypatch.setenv("XDG_DATA_HOME", "/x")
    assert Settings().data == Path("/x/ltxd")
    assert Settings().models == Path("/x/ltxd/models")
    monkeypatch.delenv("XDG_DATA_HOME")
    monkeypatch.setenv("HOME", "/home/me")
    assert Settings().data == Path("/home/me/.local/share/ltxd")
    monkeypatch.setenv("LTX_DATA", "~/y")
    assert Settings().data == Path("/home/me/y")


@pytest.mark.parametrize(
    ("name", "value"), [("LTX_PORT", "70000"), ("LTX_ALLOW_PRIVATE_NETWORKS", "lan"), ("LTX_DRAIN_TIMEOUT", "-1")]
)
def test_a_wrong_setting_is_refused_by_name(monkeypatch, name, value):
    monkeypatch.setenv(name, value)
    with pytest.raises(ValidationError, match=name.removeprefix("LTX_").lower()):
        Settings()


def test_settings_do_not_change():
    with pytest.raises(ValidationError):
        Settings().port = 1
