"""An HTTP server on this machine that answers as a test says."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


@dataclass
class Shelf:
    """The server's address, the requests it got (path and headers), and how it answers them."""

    url: str
    answer: Callable[[BaseHTTPRequestHandler], None]
    requests: list[tuple[str, dict[str, str]]] = field(default_factory=list)


@contextmanager
def serve(answer: Callable[[BaseHTTPRequestHandler], None]) -> Iterator[Shelf]:
    """A server that answers until the block ends."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            shelf.requests.append((self.path, dict(self.headers)))
            shelf.answer(self)
            self.close_connection = True

        def log_message(self, *_: object) -> None:
            pass

    class Server(ThreadingHTTPServer):
        daemon_threads = True

        def handle_error(self, *_: object) -> None:
            pass

    server = Server(("127.0.0.1", 0), Handler)
    shelf = Shelf(f"http://127.0.0.1:{server.server_port}", answer)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield shelf
    finally:
        server.shutdown()
        server.server_close()


def whole(content: bytes, tag: str = '"one"', kind: str = "application/octet-stream", ranges: bool = True):
    """Answer with the content, or the rest of it where a client asks for that and has the same version."""

    def answer(request: BaseHTTPRequestHandler) -> None:
        asked, condition = request.headers.get("Range"), request.headers.get("If-Range")
        start = 0
        if ranges and asked and condition in (None, tag):
            start = int(asked.removeprefix("bytes=").rstrip("-"))
        head(request, 206 if start else 200, len(content) - start, tag, kind)
        if start:
            request.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        request.end_headers()
        request.wfile.write(content[start:])

    return answer


def head(request: BaseHTTPRequestHandler, status: int, length: int, tag: str = '"one"', kind: str = "x/y") -> None:
    """Send the first lines of an answer."""
    request.send_response(status)
    request.send_header("Content-Length", str(length))
    request.send_header("Content-Type", kind)
    request.send_header("ETag", tag)


def broken(content: bytes, count: int, tag: str = '"one"'):
    """Announce the whole content, and send the first bytes of it."""

    def answer(request: BaseHTTPRequestHandler) -> None:
        head(request, 200, len(content), tag)
        request.end_headers()
        request.wfile.write(content[:count])

    return answer


def redirect(target: str):
    """Lead elsewhere."""

    def answer(request: BaseHTTPRequestHandler) -> None:
        request.send_response(302)
        request.send_header("Location", target)
        request.send_header("Content-Length", "0")
        request.end_headers()

    return answer


def fail(status: int):
    """Answer with an error."""
    return lambda request: request.send_error(status)
