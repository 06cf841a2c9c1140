"""`ltxd compare` against two stubs on loopback that answer as fal's queue does."""

import json
import threading
from dataclasses import dataclass, field
from fractions import Fraction
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import av
import numpy as np
import pytest

from server.__main__ import main

ENDPOINT = "/fal-ai/ltx-2.3-quality/image-to-video"


def clip(path, *, size, frames, grey):
    with av.open(path, "w") as file:
        stream = file.add_stream("libx264", rate=Fraction(24))
        stream.width, stream.height, stream.pix_fmt = *size, "yuv420p"
        for _ in range(frames):
            picture = np.full((size[1], size[0], 3), grey, np.uint8)
            file.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        file.mux(stream.encode(None))
    return path.read_bytes()


@dataclass
class Stub:
    """A server that makes one clip for whoever asks."""

    url: str
    status: int = 200
    polls: int = 0
    """Times a status is asked for before it is COMPLETED."""
    seen: list = field(default_factory=list)
    """(method, path, key, body) of every call."""


def serve(video):
    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *_):
            pass

        def do_POST(self):
            self.answer(self.rfile.read(int(self.headers["Content-Length"])))

        def do_GET(self):
            self.answer(b"")

        def answer(self, sent):
            stub = self.server.stub
            stub.seen.append((self.command, self.path, self.headers.get("Authorization"), sent))
            job = f"{stub.url}/requests/r1"
            if self.path == "/clip.mp4":
                body = video
            elif self.path == ENDPOINT:
                body = {"request_id": "r1", "status_url": f"{job}/status", "response_url": job}
            elif self.path.endswith("/status"):
                stub.polls -= 1
                body = {"status": "COMPLETED" if stub.polls < 0 else "IN_PROGRESS"}
            else:
                body = {"video": {"url": f"{stub.url}/clip.mp4"}, "seed": 7, "prompt": "expanded"}
            data = body if isinstance(body, bytes) else json.dumps(body).encode()
            self.send_response(stub.status if self.path == ENDPOINT else 200)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.stub = Stub(f"http://127.0.0.1:{server.server_port}")
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}).start()
    return server


@pytest.fixture
def stubs(tmp_path, monkeypatch):
    """fal's stub, which makes 64x64 and 5 frames, and ours, 128x96 and 3 frames."""
    monkeypatch.setenv("FAL_KEY", "fal-key")
    servers = [
        serve(clip(tmp_path / "a.mp4", size=(64, 64), frames=5, grey=40)),
        serve(clip(tmp_path / "b.mp4", size=(128, 96), frames=3, grey=200)),
    ]
    yield [server.stub for server in servers]
    for server in servers:
        server.shutdown()
        server.server_close()


@pytest.fixture
def flags(stubs, tmp_path):
    image = tmp_path / "photo.png"
    image.write_bytes(b"picture")
    fal, ours = stubs
    where = ["--fal-server", fal.url, "--server", ours.url, "--out", str(tmp_path / "out")]
    return ["compare", "--prompt", "a cat", "--image-url", str(image), "--num-frames", "9", *where]


def test_both_get_the_same_request_and_each_only_its_own_key(stubs, flags):
    assert main([*flags, "--fal", "--server-key", "our-key"]) == 0
    posts = [next(call for call in stub.seen if call[0] == "POST") for stub in stubs]
    assert posts[0][3] == posts[1][3]
    sent = json.loads(posts[0][3])
    assert sent.keys() == {"prompt", "image_url", "num_frames", "seed"}
    assert (sent["num_frames"], sent["image_url"]) == (9, "data:image/png;base64,cGljdHVyZQ==")
    assert [post[2] for post in posts] == ["Key fal-key", "Key our-key"]
    files = [call[2] for stub in stubs for call in stub.seen if call[1] == "/clip.mp4"]
    assert files == [None, None]


def test_a_clip_is_waited_for(stubs, flags):
    stubs[0].polls = 1
    assert main([*flags, "--fal"]) == 0
    assert [call[1] for call in stubs[0].seen].count("/requests/r1/status") == 2


def test_both_clips_both_answers_and_a_side_by_side_are_saved(flags, tmp_path, capsys):
    assert main([*flags, "--fal"]) == 0
    out = tmp_path / "out"
    assert {path.name for path in out.iterdir()} == {"fal.mp4", "ltxd.mp4", "side-by-side.mp4", "answers.json"}
    answers = json.loads((out / "answers.json").read_text())
    assert answers["fal"]["answer"]["prompt"] == "expanded"
    assert answers["request"]["image_url"].endswith("photo.png")
    assert "fal-key" not in (out / "answers.json").read_text()
    with av.open(out / "side-by-side.mp4") as file:
        frames = [frame.to_ndarray(format="rgb24") for frame in file.decode(video=0)]
    assert frames[0].shape == (64, 64 + 86, 3)
    assert len(frames) == 5
    for frame in (frames[0], frames[-1]):
        assert abs(int(frame[32, 20, 0]) - 40) < 6
        assert abs(int(frame[32, 120, 0]) - 200) < 6
    assert "fal on the left" in capsys.readouterr().out


@pytest.mark.parametrize(("flag", "key", "told"), [([], "k", "--fal"), (["--fal"], "", "FAL_KEY")])
def test_nothing_is_sent_without_a_word_and_a_key(stubs, flags, monkeypatch, capsys, flag, key, told):
    monkeypatch.setenv("FAL_KEY", key)
    assert main([*flags, *flag]) == 2
    assert told in capsys.readouterr().err
    assert [stub.seen for stub in stubs] == [[], []]


def test_a_wrong_field_or_image_is_told_before_anything_is_sent(stubs, flags, capsys):
    assert main([*flags, "--fal", "--num-frames", "3"]) == 2
    assert "--num-frames" in capsys.readouterr().err
    assert main([*flags, "--fal", "--image-url", "nowhere.png"]) == 2
    assert "nowhere.png" in capsys.readouterr().err
    assert [stub.seen for stub in stubs] == [[], []]


def test_if_one_side_fails_the_others_clip_is_kept(stubs, flags, tmp_path, capsys):
    stubs[0].status = 401
    assert main([*flags, "--fal"]) == 1
    assert "fal: it answered 401" in capsys.readouterr().err
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"ltxd.mp4", "answers.json"}
    assert "401" in json.loads((tmp_path / "out" / "answers.json").read_text())["fal"]["error"]


def test_a_clip_that_does_not_come_is_given_up(stubs, flags, capsys):
    stubs[1].polls = 10**9
    assert main([*flags, "--fal", "--timeout", "0.05"]) == 1
    assert "no clip after 0.05 s" in capsys.readouterr().err
