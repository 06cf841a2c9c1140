"""A page in headless Chromium with every release of fal's JavaScript client, in each way in that a page can use."""

import base64
import hashlib
import json
import queue
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

HERE = Path(__file__).parent
CLIENTS = ("@fal-ai/client", "client-1.6.2", "client-1.0.2", "@fal-ai/serverless-client")
OPERATIONS = ("run", "subscribe", "upload", "queue")
PAGE = b'<!doctype html><meta charset="utf-8"><script type="module" src="/page.js"></script>'
FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
    "--no-default-browser-check",
)

pytestmark = pytest.mark.full


@pytest.fixture(scope="module")
def script(node, tmp_path_factory) -> bytes:
    """The page's program, with all clients in it."""
    out = tmp_path_factory.mktemp("page") / "page.js"
    esbuild = HERE.parent / "node_modules/esbuild/bin/esbuild"
    command = [node, str(esbuild), "page.mjs", "--bundle", "--format=esm", "--log-level=warning", f"--outfile={out}"]
    subprocess.run(command, cwd=HERE, check=True, timeout=120)
    return out.read_bytes()


@contextmanager
def site(script: bytes, order: dict[str, Any]) -> Iterator[tuple[str, "queue.Queue[dict[str, Any]]"]]:
    """The host of the page: its address, and what the page tells it."""
    told: queue.Queue[dict[str, Any]] = queue.Queue()
    pages = {
        "/": ("text/html", PAGE),
        "/page.js": ("text/javascript", script),
        "/order": ("application/json", json.dumps(order).encode()),
    }

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            kind, content = pages.get(self.path, ("text/plain", b""))
            self._answer(kind, content)

        def do_POST(self) -> None:
            told.put(json.loads(self.rfile.read(int(self.headers["content-length"]))))
            self._answer("text/plain", b"")

        def _answer(self, kind: str, content: bytes) -> None:
            self.send_response(200)
            self.send_header("content-type", kind)
            self.send_header("content-length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield f"http://127.0.0.1:{server.server_port}/", told
        finally:
            server.shutdown()


@pytest.fixture
def browse(chromium, script, here, png, tmp_path) -> Callable[..., dict[str, Any]]:
    """What came of every operation with every client on a page, in a browser with these flags."""
    uri = "data:image/png;base64," + base64.b64encode(png).decode()
    inputs = {name: {"prompt": "a", "image_url": uri} for name in OPERATIONS}
    inputs["upload"] = {"prompt": "a", "image": png.hex()}

    def do(*flags: str, config: dict[str, Any] | None = None, server: Any = here) -> dict[str, Any]:
        order = {
            "config": {"credentials": "any", "suppressLocalCredentialsWarning": True} | (config or {}),
            "order": inputs,
        }
        trust = f"--ignore-certificate-errors-spki-list={fingerprint(server.data / 'tls/server.pem')}"
        with site(script, order) as (address, told), (tmp_path / "log").open("w") as log:
            command = [chromium, *FLAGS, f"--user-data-dir={tmp_path / 'profile'}", trust, *flags, address]
            browser = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, start_new_session=True)
            try:
                return told.get(timeout=120)
            except queue.Empty:
                pytest.fail(f"the page told nothing: {(tmp_path / 'log').read_text()[-3000:]}")
            finally:
                browser.terminate()
                browser.wait(30)

    return do


def fingerprint(certificate: Path) -> str:
    """By which Chromium is told to trust a certificate for one run, in place of our authority in its store."""
    key = x509.load_pem_x509_certificate(certificate.read_bytes()).public_key()
    encoded = key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    return base64.b64encode(hashlib.sha256(encoded).digest()).decode()


def assert_every_client_made_clips(told: dict[str, Any], clip: bytes, *, at: str | tuple[str, ...]) -> None:
    assert set(told) == set(CLIENTS)
    for client, came in told.items():
        for operation in OPERATIONS:
            assert "output" in came[operation], (client, operation, came)
            assert came[operation]["output"]["video"]["url"].startswith(at), (client, operation, came)
        assert came["queue"]["output"]["downloaded"] == len(clip)


def assert_every_client_was_refused(told: dict[str, Any]) -> None:
    assert set(told) == set(CLIENTS)
    for client, came in told.items():
        for operation in OPERATIONS:
            error = came[operation]
            assert (error.get("kind"), error.get("status")) == ("ApiError", 401), (client, operation, error)
            assert error["body"] == {"detail": "invalid key credentials"}


NOWHERE = "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1"


def test_proxy_url_leads_every_client_on_a_page_here(browse, here, clip):
    told = browse(NOWHERE, config={"proxyUrl": f"http://127.0.0.1:{here.port}/api/fal/proxy"})
    assert_every_client_made_clips(told, clip, at=f"http://127.0.0.1:{here.port}/files/")


def test_a_proxy_set_in_the_browser_leads_every_client_here(browse, here, clip, fal_files):
    told = browse(f"--proxy-server=http://127.0.0.1:{here.proxy_port}", NOWHERE)
    assert_every_client_made_clips(told, clip, at=fal_files)


def test_the_hosts_file_leads_every_client_on_a_page_here(browse, hosts, clip, fal_files):
    rules = ", ".join(f"MAP {name} 127.0.0.1:{port}" for name, port in hosts.items())
    told = browse(f"--host-resolver-rules={rules}, MAP * ~NOTFOUND, EXCLUDE 127.0.0.1")
    assert_every_client_made_clips(told, clip, at=fal_files)


def test_without_a_way_in_no_client_on_a_page_gets_an_answer(browse):
    told = browse(NOWHERE)
    assert all("error" in came["run"] for came in told.values())


@pytest.mark.parametrize("way", ["proxyUrl", "proxy", "hosts"])
def test_a_key_opens_a_server_that_has_keys_to_every_client_on_a_page(browse, locked, hosts, clip, fal_files, way):
    def with_key(key):
        if way == "proxyUrl":
            address = f"http://127.0.0.1:{locked.port}/api/fal/proxy"
            return browse(NOWHERE, config={"proxyUrl": address, "credentials": key}, server=locked)
        if way == "proxy":
            proxy = f"--proxy-server=http://127.0.0.1:{locked.proxy_port}"
            return browse(proxy, NOWHERE, config={"credentials": key}, server=locked)
        rules = ", ".join(f"MAP {name} 127.0.0.1:{locked.tls_port}" for name in hosts)
        return browse(
            f"--host-resolver-rules={rules}, MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
            config={"credentials": key},
            server=locked,
        )

    at = f"http://127.0.0.1:{locked.port}/files/" if way == "proxyUrl" else fal_files
    assert_every_client_made_clips(with_key(locked.key), clip, at=at)
    assert_every_client_was_refused(with_key("no:key"))
