"""Two web servers that serve the clips: one at once, the other, when it is told to, a byte now and then."""

from __future__ import annotations

import threading
import time
from collections import Counter
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

NETWORKS = ("127.0.0.0/8", "::1/128")
_BYTE_S = 0.2
_LONGEST_S = 40.0
"""A service gives up a download that takes longer than a minute; this one must only be slow."""


class Sources:
    """Both servers; they serve inside a ``with`` block.

    ``fast`` and ``slow``: the prefixes of their URIs. What is between the slow one's and the file's name is ignored.
    ``folder`` holds the ``files``.
    """

    def __init__(self, folder: Path, files: Sequence[str]) -> None:
        self.folder = folder
        self.files = files
        self._fast, self._slow = _Server(folder), _Server(folder)
        self.fast = f"http://127.0.0.1:{self._fast.server_port}"
        self.slow = f"http://localhost:{self._slow.server_port}"

    def __enter__(self) -> Self:
        for server in (self._fast, self._slow):
            threading.Thread(target=server.serve_forever, name="source", daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        for server in (self._fast, self._slow):
            server.shutdown()
            server.server_close()

    def spellings(self) -> list[str]:
        """Return ways to write the slow one's prefix that are all the same origin (RFC 3986, 6.2)."""
        port = self._slow.server_port
        authorities = [
            f"{host}:{zeros}{port}" for host in ("localhost", "LOCALHOST", "LocalHost") for zeros in ("", "00")
        ]
        return [f"{scheme}://{authority}" for authority in authorities for scheme in ("http", "HTTP")]

    def strangers(self) -> list[str]:
        """Return prefixes that lead to the slow one too, and are not its origin or not allowed to be written so."""
        port = self._slow.server_port
        return [f"http://{authority}:{port}" for authority in ("localhost.", "someone@localhost", "127.0.0.1", "127.1")]

    @contextmanager
    def slowed(self) -> Iterator[None]:
        """Have the slow one serve slowly meanwhile; what it is asked then it serves at once in the end."""
        self._slow.is_slow.set()
        try:
            yield
        finally:
            self._slow.is_slow.clear()

    def waiting(self) -> Counter[str]:
        """Count the requests that are being served slowly, by what stands before the file's name."""
        with self._slow.turn:
            return +self._slow.waiting


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128

    def __init__(self, folder: Path) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.folder = folder
        self.is_slow = threading.Event()
        self.turn = threading.Lock()
        self.waiting: Counter[str] = Counter()

    def handle_error(self, request: object, client_address: object) -> None:
        """Clients are killed while they read."""


class _Handler(BaseHTTPRequestHandler):
    server: _Server

    def do_GET(self) -> None:
        """Serve a file, slowly as long as the server is to be slow."""
        before, _, name = self.path.strip("/").rpartition("/")
        try:
            content = (self.server.folder / name).read_bytes()
        except FileNotFoundError:
            self.send_error(404)
            return
        self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.server.is_slow.is_set():
            content = self._drip(before, content)
        with suppress(OSError):
            self.wfile.write(content)

    def _drip(self, name: str, content: bytes) -> bytes:
        """Send a byte now and then until the server is to be slow no more; return what is left."""
        until = time.monotonic() + _LONGEST_S
        with self.server.turn:
            self.server.waiting[name] += 1
        try:
            while self.server.is_slow.is_set() and time.monotonic() < until and len(content) > 1:
                self.wfile.write(content[:1])
                content = content[1:]
                time.sleep(_BYTE_S)
        finally:
            with self.server.turn:
                self.server.waiting[name] -= 1
        return content

    def log_message(self, *_: object) -> None:
        """Say nothing: there are thousands of requests."""
