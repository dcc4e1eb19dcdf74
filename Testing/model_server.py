"""A web server on this computer that offers one file, and can break off in the middle."""

from __future__ import annotations

import hashlib
import http.server
import threading
from collections.abc import Iterator
from contextlib import contextmanager


class ModelServer(http.server.ThreadingHTTPServer):
    """Gives ``content``, whole or from the byte asked for.

    ``breaks_off_after`` so many bytes of the next answer it hangs up; ``waits_after`` so many it says no more.
    ``headers`` take the place of its own, None leaves one out; ``leads_to`` is where it sends who asks; ``trickles`` so
    many seconds between two bytes.
    """

    daemon_threads = True

    def __init__(self, content: bytes) -> None:
        super().__init__(("127.0.0.1", 0), _Answer)
        self.content = content
        self.breaks_off_after: int | None = None
        self.waits_after: int | None = None
        self.headers: dict[str, str | None] = {}
        self.leads_to: str | None = None
        self.trickles: float | None = None
        self.ranges: list[str | None] = []
        self.closing = threading.Event()

    @property
    def address(self) -> str:
        """With the file's checksum, as the program asks for it."""
        return f"http://127.0.0.1:{self.server_port}/model.zip#sha256={hashlib.sha256(self.content).hexdigest()}"


class _Answer(http.server.BaseHTTPRequestHandler):
    server: ModelServer

    def do_GET(self) -> None:
        server, asked = self.server, self.headers.get("Range")
        server.ranges.append(asked)
        start = int(asked.removeprefix("bytes=").removesuffix("-")) if asked else 0
        if self.path != "/model.zip":
            self.send_error(404)
            return
        if server.leads_to is not None:
            self.send_response(302)
            self.send_header("Location", server.leads_to)
            self.end_headers()
            return
        if start >= len(server.content):
            self.send_error(416)
            return
        body = server.content[start:]
        self.send_response(206 if asked else 200)
        for name, value in {"Content-Length": str(len(body)), **server.headers}.items():
            if value is not None:
                self.send_header(name, value)
        self.end_headers()
        if server.trickles is not None:
            for byte in body:
                self.wfile.write(bytes([byte]))
                if server.closing.wait(server.trickles):
                    return
        if server.breaks_off_after is not None:
            body, server.breaks_off_after = body[: server.breaks_off_after], None
        if server.waits_after is not None:
            self.wfile.write(body[: server.waits_after])
            body = body[server.waits_after :]
            server.closing.wait(30)
        self.wfile.write(body)

    def log_message(self, format: str, *arguments: object) -> None:
        """Silent: the tests look at ``ranges``."""


@contextmanager
def serving(content: bytes) -> Iterator[ModelServer]:
    """The server, running for as long as the context lasts."""
    server = ModelServer(content)
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
    try:
        yield server
    finally:
        server.closing.set()
        server.shutdown()
        server.server_close()
