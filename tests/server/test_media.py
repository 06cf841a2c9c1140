import base64
import http.server
import random
import threading

import httpcore2
import pytest

from server.errors import FieldError
from server.media import PIECE, Media, decode_data_uri
from server.settings import Settings


class Recorder(httpcore2.AsyncNetworkBackend):
    """A network that answers every connection with the next of `answers`, and remembers where it was asked to go."""

    def __init__(self, *answers: bytes) -> None:
        self.answers = list(answers)
        self.connected: list[str] = []

    async def connect_tcp(self, host, *_rest):
        self.connected.append(host)
        return httpcore2.AsyncMockStream([self.answers.pop(0)])


def answer(body: bytes, status: str = "200 OK", **headers: str) -> bytes:
    lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    return f"HTTP/1.1 {status}\r\ncontent-length: {len(body)}\r\n{lines}\r\n".encode() + body


def fetching(network: Recorder, names: dict[str, list[str]], **given: object) -> Media:
    async def resolve(host: str, _port: int) -> list[str]:
        return names[host]

    async def none(_file_id: str) -> None:
        return None

    return Media(Settings(**given), own_file=none, resolve=resolve, connector=network)


async def test_the_connection_goes_to_the_address_that_was_checked():
    network = Recorder(answer(b"picture"))
    media = fetching(network, {"img.example": ["93.184.215.14"]})
    assert await media.fetch_image("http://img.example/a.png") == b"picture"
    assert network.connected == ["93.184.215.14"]


async def test_a_name_with_one_private_address_among_public_ones_is_refused():
    network = Recorder()
    media = fetching(network, {"img.example": ["1.1.1.1", "127.0.0.1"]})
    with pytest.raises(FieldError, match="private network"):
        await media.fetch_image("https://img.example/a.png")
    assert network.connected == []


async def test_a_redirect_into_a_private_network_is_refused():
    network = Recorder(answer(b"", "302 Found", location="http://inside.example/"))
    media = fetching(network, {"img.example": ["1.1.1.1"], "inside.example": ["10.0.0.1"]})
    with pytest.raises(FieldError, match="private network"):
        await media.fetch_image("http://img.example/a.png")
    assert network.connected == ["1.1.1.1"]


async def test_a_name_that_changes_its_address_is_checked_at_every_connection():
    answers = iter([["1.1.1.1"], ["127.0.0.1"]])
    network = Recorder(answer(b"", "302 Found", location="http://img.example/b.png"))

    async def resolve(_host: str, _port: int) -> list[str]:
        return next(answers)

    async def none(_file_id: str) -> None:
        return None

    media = Media(Settings(), own_file=none, resolve=resolve, connector=network)
    with pytest.raises(FieldError, match="private network"):
        await media.fetch_image("http://img.example/a.png")
    assert network.connected == ["1.1.1.1"]


@pytest.mark.parametrize("location", ["file:///etc/passwd", "gopher://x/", "ftp://x/"])
async def test_a_redirect_to_another_scheme_is_refused(location):
    network = Recorder(answer(b"", "302 Found", location=location))
    with pytest.raises(FieldError, match="not http"):
        await fetching(network, {"img.example": ["1.1.1.1"]}).fetch_image("http://img.example/")
    assert len(network.connected) == 1


async def test_five_redirects_are_followed_and_not_six():
    hop = answer(b"", "302 Found", location="/next")
    names = {"img.example": ["1.1.1.1"]}
    network = Recorder(*[hop] * 5, answer(b"picture"))
    assert await fetching(network, names).fetch_image("http://img.example/") == b"picture"
    network = Recorder(*[hop] * 6, answer(b"picture"))
    with pytest.raises(FieldError, match="more than 5 times"):
        await fetching(network, names).fetch_image("http://img.example/")


async def test_a_name_without_address_and_a_server_that_says_404_cannot_be_downloaded():
    async def unknown(_host: str, _port: int) -> list[str]:
        raise OSError("no such name")

    media = Media(Settings(), own_file=unknown, resolve=unknown, connector=Recorder())
    with pytest.raises(FieldError, match="did not answer properly"):
        await media.fetch_image("http://img.example/")
    network = Recorder(answer(b"", "404 Not Found"))
    with pytest.raises(FieldError, match="answered 404"):
        await fetching(network, {"img.example": ["1.1.1.1"]}).fetch_image("http://img.example/")


async def test_a_file_over_the_limit_is_given_up_while_it_comes():
    names = {"img.example": ["1.1.1.1"]}
    told = Recorder(answer(b"x" * 3000))
    with pytest.raises(FieldError, match="at most 2000 bytes"):
        await fetching(told, names, max_image_bytes=2000).fetch_image("http://img.example/")
    untold = Recorder(b"HTTP/1.1 200 OK\r\nconnection: close\r\n\r\n" + b"x" * 3000)
    with pytest.raises(FieldError, match="at most 2000 bytes"):
        await fetching(untold, names, max_image_bytes=2000).fetch_image("http://img.example/")


async def test_an_own_file_is_read_without_a_connection_whatever_the_host():
    network = Recorder()

    async def own(file_id: str) -> bytes | None:
        return b"mine" if file_id == "a1" else None

    media = Media(Settings(), own_file=own, connector=network)
    assert await media.fetch_image("https://127.0.0.1:8443/files/a1/x.mp4") == b"mine"
    with pytest.raises(FieldError, match="private network"):
        await media.fetch_image("https://127.0.0.1:8443/files/b2/x.mp4")
    assert network.connected == []


@pytest.fixture
def loopback_host():
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b"from the lan")

        def log_message(self, *_args: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as host:
        thread = threading.Thread(target=host.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{host.server_port}/a.png"
        host.shutdown()
        thread.join()


async def test_a_host_in_a_network_that_is_allowed_is_fetched_for_real(loopback_host):
    media = Media.standalone(Settings(allow_private_networks="127.0.0.0/8"))
    assert await media.fetch_image(loopback_host) == b"from the lan"
    with pytest.raises(FieldError, match="private network"):
        await Media.standalone(Settings()).fetch_image(loopback_host)


@pytest.mark.parametrize(
    "uri",
    [
        "data:image/png;base64,aGVsbG8=",
        "data:;base64,aGVsbG8",
        "DATA:image/png;BASE64,aGVs bG8=",
        "data:image/png;base64,aGVsbG8%3D",
        "data:text/plain,hello",
        "data:,h%65llo",
    ],
)
def test_a_data_uri_is_read_in_its_usual_spellings(uri):
    assert decode_data_uri(uri, max_bytes=100) == b"hello"


def test_base64_is_decoded_in_pieces_as_it_would_be_in_one():
    for count in (PIECE // 4 * 3, PIECE // 4 * 3 + 1, 2 * PIECE):
        data = random.Random(count).randbytes(count)
        assert decode_data_uri("data:;base64," + base64.b64encode(data).decode(), max_bytes=4 * PIECE) == data


@pytest.mark.parametrize("text", ["aGVsbG8==", "aGVs=bG8", "aGVsb", "=aGVsbG8", "====", "a*Vs"])
def test_base64_with_padding_or_characters_that_do_not_belong_is_an_error_of_the_image(text):
    for before in ("", "a" * PIECE):
        with pytest.raises(FieldError, match="not valid base64"):
            decode_data_uri(f"data:;base64,{before}{text}", max_bytes=2 * PIECE)


def test_a_data_uri_may_be_as_long_as_the_limit_and_no_longer():
    def uri(count: int) -> str:
        return "data:image/png;base64," + base64.b64encode(b"x" * count).decode()

    assert len(decode_data_uri(uri(99), max_bytes=99)) == 99
    with pytest.raises(FieldError, match="at most 99 bytes"):
        decode_data_uri(uri(100), max_bytes=99)
    with pytest.raises(FieldError, match="at most 99 bytes"):
        decode_data_uri("data:," + "x" * 1000, max_bytes=99)
