"""The real Python client, unchanged, uploads here by every way it knows; the environment alone leads it.

The large upload, 606 MB back and forth through TLS, is marked slow.
"""

import os
import re
import shlex
import subprocess
import sys

import pytest

from server.__main__ import main

PRELUDE = """
import asyncio, io, json, os, pathlib, sys, tempfile, time
import fal_client, httpx
from fal_client import StorageACL, StorageSettings
from PIL import Image
E = "fal-ai/ltx-2.3-quality/image-to-video"
picture = Image.new("RGB", (64, 48), "teal")
buffer = io.BytesIO()
picture.save(buffer, "PNG")
png = buffer.getvalue()
folder = pathlib.Path(tempfile.mkdtemp())
file = folder / "a photo.png"
file.write_bytes(png)

def read(url):
    answer = httpx.get(url)
    assert answer.status_code == 200, (url, answer)
    return answer.content, answer.headers["content-type"]

def is_start_image(url):
    out = fal_client.run(E, arguments={"prompt": "a", "image_url": url})
    assert out["video"]["file_size"] > 0, out
"""

SMALL = """
for repository in ("fal_v3", "fal"):
    url = fal_client.upload(png, "image/png", file_name="a.png", repository=repository, fallback_repository=[])
    assert url.endswith("/a.png"), url
    assert read(url) == (png, "image/png")
    is_start_image(url)
    url = fal_client.upload_file(file, repository=repository, fallback_repository=[])
    assert url.endswith("/a_photo.png"), url
    assert read(url) == (png, "image/png")
    url = fal_client.upload_image(picture, repository=repository, fallback_repository=[])
    assert read(url)[1] == "image/jpeg"
    is_start_image(url)
assert read(fal_client.upload("text", "text/plain"))[0] == b"text"
"""

ASYNC = """
async def go():
    url = await fal_client.upload_async(png, "image/png", fallback_repository=[])
    assert read(url) == (png, "image/png")
    url = await fal_client.upload_image_async(picture, repository="fal", fallback_repository=[])
    out = await fal_client.run_async(E, arguments={"prompt": "a", "image_url": url})
    assert out["video"]["file_size"] > 0
asyncio.run(go())
"""

LIFE = """
acl = StorageACL(default="hide")
for repository in ("fal_v3", "fal"):
    said = dict(repository=repository, fallback_repository=[])
    short = fal_client.upload(png, "image/png", lifecycle=StorageSettings(expires_in=4, initial_acl=acl), **said)
    long = fal_client.upload(png, "image/png", lifecycle=StorageSettings(expires_in="1h"), **said)
    ever = fal_client.upload(png, "image/png", lifecycle=StorageSettings(expires_in="never"), **said)
    assert read(short)[0] == png
    age = int(httpx.get(long).headers["cache-control"].split("max-age=")[1].split(",")[0])
    assert 3500 < age <= 3600, age
    while httpx.get(short).status_code != 404:
        time.sleep(0.2)
    assert read(ever)[0] == png
"""

LARGE = """
data = os.urandom(1024 * 1024) * 101
large = folder / "large.bin"
large.write_bytes(data)
urls = [fal_client.upload(data, "video/mp4", file_name="x.mp4"), fal_client.upload_file(large)]
async def go():
    return await fal_client.upload_async(data, "video/mp4")
urls.append(asyncio.run(go()))
for url in urls:
    assert read(url)[0] == data, url
"""


@pytest.fixture
def environment(server, capsys):
    ports = [f"--tls-port={server.ports.tls}", f"--proxy-port={server.ports.proxy}"]
    assert main(["client", "env", "--way=proxy", f"--data={server.settings.data}", *ports]) == 0
    printed = dict(re.findall(r"^export (\w+)=(.*)$", capsys.readouterr().out, re.MULTILINE))
    values = {name: shlex.split(value)[0] for name, value in printed.items()}
    clean = {k: v for k, v in os.environ.items() if not k.lower().endswith("_proxy") and not k.startswith("SSL_")}
    return {"FAL_KEY": "x"} | clean | values


@pytest.mark.parametrize(
    "script",
    [
        pytest.param(SMALL, id="small"),
        pytest.param(ASYNC, id="async"),
        pytest.param(LIFE, id="life"),
        pytest.param(LARGE, id="large", marks=pytest.mark.slow),
    ],
)
def test_the_python_client_uploads_with_the_environment_alone(environment, script):
    done = subprocess.run(
        [sys.executable, "-c", PRELUDE + script],
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
