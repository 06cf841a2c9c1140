"""What is nowhere in the log, and what in a database's error would be."""

import logging
import os
import subprocess
import sys
import time
from pathlib import Path

import httpx2
import pytest
from sqlalchemy.exc import IntegrityError

from server.__main__ import main
from server.database import open_database
from server.jobs import freeze
from server.logs import set_up_logs
from server.schema import ImageToVideoInput
from server.store import Store

SERVE_FAKE = Path(__file__).with_name("serve_fake.py")
ENDPOINT = "fal-ai/ltx-2.3-quality/image-to-video"
SECRET = "zanzibar"  # noqa: S105 no password, a word to look for
"""A word of every prompt and URL below."""


def test_the_handshake_of_a_websocket_is_answered_without_a_word_in_the_log(launch, capsys):
    upgrade = {"connection": "upgrade", "upgrade": "websocket", "sec-websocket-version": "13"}
    with launch() as server:
        set_up_logs("json")
        logging.getLogger("uvicorn.error").warning("another warning")
        assert server.http.get(f"/{ENDPOINT}/realtime", headers=upgrade).status_code == 404
    told = capsys.readouterr().err
    assert "another warning" in told
    assert "upgrade" not in told
    assert "WebSocket" not in told


def test_no_prompt_url_or_key_is_logged(tmp_path, image, clip, capsys):
    assert main(["keys", "create", f"--data={tmp_path}", "--name=test"]) == 0
    key = capsys.readouterr().out.strip().removeprefix("FAL_KEY=")
    path = tmp_path / "log"
    environment = os.environ | {"LTX_ALLOW_PRIVATE_NETWORKS": "127.0.0.0/8"}
    with (
        path.open("w") as log,
        subprocess.Popen(
            [sys.executable, str(SERVE_FAKE), str(tmp_path), str(clip)],
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            env=environment,
        ) as process,
    ):
        try:
            port = process.stdout.readline().partition(" ")[0]
            origin = f"http://127.0.0.1:{port}"
            headers = {"authorization": f"Key {key}"}
            with httpx2.Client(base_url=origin, trust_env=False, timeout=60, headers=headers) as http:
                hook = {"fal_webhook": f"{origin}/{SECRET}"}
                for prompt in ("a", "fail", "broken", "crash-once", "unsafe"):
                    given = {"prompt": f"{SECRET} {prompt}", "image_url": image, "negative_prompt": SECRET}
                    http.post(f"/{ENDPOINT}", json=given)
                    http.post(f"/queue/{ENDPOINT}", params=hook, json=given)
                for url in (f"{origin}/{SECRET}.png", f"http://{SECRET}.invalid/", f"data:image/png,{SECRET}", SECRET):
                    assert http.post(f"/{ENDPOINT}", json={"prompt": SECRET, "image_url": url}).status_code == 422
                http.post(f"/{ENDPOINT}", content=f'{{"prompt": "{SECRET}"')
                http.get(f"/{SECRET}?fal_jwt_token={SECRET}", headers={"authorization": f"Key {SECRET}:{SECRET}"})
                http.post("/rest/tokens/", json={"allowed_apps": [SECRET]})
                deadline = time.monotonic() + 20
                while path.read_text().count("webhook of job") < 5:
                    assert time.monotonic() < deadline
                    time.sleep(0.05)
        finally:
            process.terminate()
            process.wait(20)
    told = path.read_text()
    assert '"attempt": 1' in told
    assert SECRET not in told
    assert key.partition(":")[2] not in told
    assert "data:image" not in told


async def test_an_error_of_the_database_tells_no_values(tmp_path):
    database = open_database(tmp_path)
    store = Store(database)
    given = freeze(ImageToVideoInput(prompt=SECRET, image_url=f"http://{SECRET}/"))
    await store.submit("a", given, max_waiting=9, max_bytes=9999)
    with pytest.raises(IntegrityError) as caught:
        await store.submit("a", given, max_waiting=9, max_bytes=9999)
    assert SECRET not in str(caught.value)
    await database.close()


def test_an_input_that_is_no_longer_understood_tells_no_values():
    with pytest.raises(ValueError, match="num_frames") as caught:
        ImageToVideoInput.model_validate_json(f'{{"prompt": "{SECRET}", "image_url": "x", "num_frames": "{SECRET}"}}')
    assert SECRET not in str(caught.value)


def test_the_data_folder_is_its_owners_alone(launch):
    with launch() as it:
        assert it.settings.data.stat().st_mode & 0o777 == 0o700
        for name in ("ltxd.sqlite3", "ltxd.sqlite3-wal", "control.sock"):
            assert (it.settings.data / name).stat().st_mode & 0o777 == 0o600, name
        assert (it.settings.data / "blobs").stat().st_mode & 0o777 == 0o700
