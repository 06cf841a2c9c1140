"""A hub on loopback: answers HEAD and GET of /REPOSITORY/resolve/REVISION/PATH as the real one, and misbehaves."""

import contextlib
import hashlib
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


@dataclass
class Hub:
    """What it serves, and what it was asked."""

    files: dict[str, bytes] = field(default_factory=dict)
    """By path of the URL."""
    token: str | None = None
    """Whoever does not send it is told that the repository is gated."""
    cut_after: list[int] = field(default_factory=list)
    """Bytes after which the next answers break off, one answer each."""
    refuses_ranges: bool = False
    """Whether it answers 500 to whoever wants to go on."""
    asked: list[tuple[str, str | None]] = field(default_factory=list)
    """Path and range of every GET."""
    address: str = ""


@contextlib.contextmanager
def serve(hub):
    """Runs `hub` on a port of its own."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *args):
            pass

        def do_HEAD(self):
            self.answer(with_body=False)

        def do_GET(self):
            hub.asked.append((self.path, self.headers["Range"]))
            self.answer(with_body=True)

        def answer(self, *, with_body):
            if hub.token is not None and self.headers["Authorization"] != f"Bearer {hub.token}":
                self.refuse(403 if self.headers["Authorization"] else 401, "GatedRepo")
            elif hub.refuses_ranges and self.headers["Range"]:
                self.refuse(500, "InternalServerError")
            elif self.path not in hub.files:
                self.refuse(404, "EntryNotFound")
            else:
                self.send(hub.files[self.path], with_body=with_body)

        def refuse(self, status, code):
            self.send_response(status)
            self.send_header("X-Error-Code", code)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def send(self, content, *, with_body):
            begin = int((self.headers["Range"] or "bytes=0-")[len("bytes=") : -1])
            self.send_response(206 if begin else 200)
            if begin:
                self.send_header("Content-Range", f"bytes {begin}-{len(content) - 1}/{len(content)}")
            git = hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()
            self.send_header("ETag", f'"{git}"')
            self.send_header("X-Repo-Commit", self.path.split("/resolve/")[1].split("/")[0])
            self.send_header("Content-Length", str(len(content) - begin))
            self.end_headers()
            if with_body:
                end = begin + hub.cut_after.pop(0) if hub.cut_after else len(content)
                self.wfile.write(content[begin:end])
                self.close_connection = end < len(content)

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        hub.address = f"http://127.0.0.1:{server.server_port}"
        try:
            yield hub
        finally:
            server.shutdown()
            thread.join()
