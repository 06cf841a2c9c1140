"""A bucket that is gone or out of order for a while: no clip is lost, readers are told to come back, and it heals."""

import contextlib
import os
import selectors
import socket
import socketserver
import threading
import time
from urllib.parse import urlsplit

import pytest

from server.routes.health import KEEP_SECONDS, PATIENCE_SECONDS
from tests.server.test_uploads import by_address, png

UNWELL = b"HTTP/1.1 503 Slow Down\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"


class Front(socketserver.ThreadingTCPServer):
    """Stands before the S3 server at `behind`. While `trouble` is set it is hung up on, or answers 503 itself."""

    daemon_threads = True
    allow_reuse_address = True

    def __init__(self, behind: tuple[str, int]) -> None:
        super().__init__(("127.0.0.1", 0), Between)
        self.behind = behind
        self.trouble: str | None = None


class Between(socketserver.BaseRequestHandler):
    """One connection, passed on until there is trouble."""

    server: Front

    def handle(self) -> None:
        with contextlib.suppress(OSError), socket.create_connection(self.server.behind) as behind:
            with selectors.DefaultSelector() as ready:
                ready.register(self.request, selectors.EVENT_READ, behind)
                ready.register(behind, selectors.EVENT_READ, self.request)
                while self.server.trouble is None:
                    for key, _ in ready.select(0.05):
                        if self.server.trouble is not None:
                            break
                        data = key.fileobj.recv(65_536)
                        if not data:
                            return
                        key.data.sendall(data)
            if self.server.trouble == "503":
                self.request.settimeout(1)
                self.request.recv(65_536)
                self.request.sendall(UNWELL)


@pytest.fixture
def front(bucket, monkeypatch):
    """What stands before the bucket, and the bucket's URL."""
    url = bucket(monkeypatch)
    behind = urlsplit(os.environ["AWS_ENDPOINT_URL"])
    with Front((behind.hostname, behind.port)) as it:
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{it.server_address[1]}")
        thread = threading.Thread(target=it.serve_forever, args=(0.05,))
        thread.start()
        yield it, url
        it.shutdown()
        thread.join()


@pytest.mark.full
@pytest.mark.parametrize("trouble", ["gone", "503"])
def test_a_bucket_in_trouble_costs_no_clip_and_readers_are_told_to_come_back(launch, image, front, trouble):
    before, url = front
    with launch(blobs_url=url, lease_seconds=60) as it:
        clip = it.run(prompt="a", image_url=image).json()["video"]["url"]
        within = it.submit(prompt="a", image_url=image, sync_mode=True)
        it.wait(within)
        uploaded = by_address(it, png())
        running = it.submit(prompt="slow", image_url=image)
        waiting = it.submit(prompt="a", image_url=uploaded)
        it.wait(running, "IN_PROGRESS")
        before.trouble = trouble
        for address in (clip, within["response_url"]):
            answer = it.http.get(address)
            assert (answer.status_code, answer.headers["retry-after"]) == (503, "5")
            assert answer.json()["error_type"] == "storage_unavailable"
        ready = it.http.get("/health/ready")
        assert (ready.status_code, ready.json()["status"]) == (503, "storage_unavailable")
        # the clip takes 1.2 s: what is waited for now is the bucket
        time.sleep(3)
        assert it.http.get(running["status_url"]).json()["status"] == "IN_PROGRESS"
        before.trouble = None
        for job in (running, waiting):
            assert "error" not in it.wait(job)
            made = it.http.get(it.http.get(job["response_url"]).json()["video"]["url"])
            assert made.status_code == 200
        assert it.http.get(clip).content == made.content
        time.sleep(KEEP_SECONDS + PATIENCE_SECONDS)
        assert it.http.get("/health/ready").status_code == 200


@pytest.mark.full
def test_a_job_that_waits_for_a_bucket_can_be_cancelled_and_is_held_to_its_time(launch, image, front):
    before, url = front
    with launch(blobs_url=url, lease_seconds=60, job_timeout=8) as it:
        before.trouble = "503"
        unwanted, late = (it.submit(prompt="a", image_url=image) for _ in range(2))
        it.wait(unwanted, "IN_PROGRESS")
        time.sleep(1)
        it.http.put(unwanted["cancel_url"])
        assert it.wait(unwanted)["error_type"] == "client_cancelled"
        assert it.wait(late)["error_type"] == "generation_timeout"
