"""The proxy for HTTPS_PROXY: fal's names lead here, everything else is refused and told why."""

import asyncio
import contextlib
import socket
import ssl
from collections.abc import Iterator

import httpx2
import pytest

from server.roles import HOSTS
from server.serve import StartError, serve
from server.settings import Settings
from server.tls import certificate_in
from server.tunnel import refusal

ENDPOINT = "fal-ai/ltx-2.3-quality/image-to-video"


@contextlib.contextmanager
def said(server, words: bytes) -> Iterator[bytes]:
    """What the proxy answers to these bytes, until it closes."""
    with socket.create_connection(("127.0.0.1", server.ports.proxy), timeout=20) as connection:
        connection.sendall(words)
        answer = b""
        while piece := connection.recv(65_536):
            answer += piece
        yield answer


@pytest.fixture(scope="module")
def client(server) -> Iterator[httpx2.Client]:
    """A client that knows only the proxy and our authority."""
    trust = ssl.create_default_context(cafile=certificate_in(server.settings.data).bundle)
    proxy = f"http://127.0.0.1:{server.ports.proxy}"
    with httpx2.Client(proxy=proxy, verify=trust, trust_env=False, timeout=60) as it:
        yield it


@pytest.mark.parametrize("name", HOSTS)
def test_every_name_of_fals_leads_here(client, name):
    answer = client.get(f"https://{name}/health")
    assert answer.status_code == 200
    assert answer.json()["status"] in ("ready", "loading")


def test_a_job_runs_through_the_proxy_as_if_it_were_fal(client, image):
    submitted = client.post(f"https://queue.fal.run/{ENDPOINT}", json={"prompt": "a", "image_url": image}).json()
    assert submitted["status_url"].startswith("https://queue.fal.run/fal-ai/ltx-2.3-quality/requests/")
    while client.get(submitted["status_url"]).json()["status"] != "COMPLETED":
        pass
    output = client.get(submitted["response_url"]).json()
    assert client.get(output["video"]["url"]).headers["content-type"] == "video/mp4"


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (b"CONNECT example.com:443 HTTP/1.1\r\n\r\n", b"name that host in NO_PROXY"),
        (b"CONNECT fal.run:22 HTTP/1.1\r\n\r\n", b"port 443"),
        (b"CONNECT fal.run.evil.example:443 HTTP/1.1\r\n\r\n", b"not to 'fal.run.evil.example:443'"),
        (b"CONNECT auth.fal.ai:443 HTTP/1.1\r\n\r\n", b"no login by browser"),
        (b"CONNECT [::1:443 HTTP/1.1\r\n\r\n", b"not to"),
        (b"CONNECT fal.run:99999 HTTP/1.1\r\n\r\n", b"not to"),
        (b"GET http://example.com/ HTTP/1.1\r\n\r\n", b"tunnels for HTTPS only"),
        (b"\xff\xfe\x00\r\n\r\n", b"tunnels for HTTPS only"),
    ],
)
def test_anything_else_is_refused_and_told_why(server, words, why):
    with said(server, words) as answer:
        head, _, body = answer.partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 403 ")
        assert why in head.partition(b"\r\n")[0]
        assert why in body


def test_a_client_shows_the_reason(client):
    with pytest.raises(httpx2.ProxyError, match="leads to fal's names alone"):
        client.get("https://example.com/")


def test_a_head_without_end_is_431_and_a_silent_leave_is_no_error(server):
    with said(server, b"CONNECT " + b"x" * 40_000) as answer:
        assert answer.startswith(b"HTTP/1.1 431 ")
    socket.create_connection(("127.0.0.1", server.ports.proxy)).close()


def test_a_name_is_fals_in_any_case():
    assert refusal("CONNECT Queue.Fal.Run:443 HTTP/1.1") is None


async def test_a_proxy_without_https_does_not_start(tmp_path, fake_command):
    settings = Settings(data=tmp_path, port=0, tls_port=0, proxy_port=1)
    with pytest.raises(StartError, match="turn that on"):
        await serve(settings, command=fake_command(), stop=asyncio.Event())
