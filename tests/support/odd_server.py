"""A real HTTP server on loopback that misbehaves in every way, and remembers what it was asked for."""

from __future__ import annotations

import contextlib
import gzip
import threading
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, ClassVar
from urllib.parse import unquote

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

CLIP = bytes(range(256)) * 400
LOOPBACK = ("127.0.0.0/8", "::1/128")
"""The networks in which the server is, or may be looked for, and which a fetcher refuses unless told otherwise."""


class OddServer(ThreadingHTTPServer):
    """Answers by the last segment of the path.

    ``asked``: the paths, with their queries. ``ranges``: each request's Range, and its If-Range or If-Match.
    ``elsewhere``: where ``away`` redirects to. ``clip``: the good answer's body.
    """

    daemon_threads = True
    request_queue_size = 64

    def __init__(self, host: str = "127.0.0.1", port: int = 0, clip: bytes = CLIP) -> None:
        super().__init__((host, port), _Handler)
        self._host = host
        self.asked: list[str] = []
        self.ranges: list[tuple[str | None, str | None]] = []
        self.stopped = threading.Event()
        self.elsewhere = ""
        self.clip = clip

    @property
    def port(self) -> int:
        return int(self.server_address[1])

    @property
    def origin(self) -> str:
        return f"http://{self._host}:{self.port}"

    def handle_error(self, request: object, client_address: object) -> None:
        """Clients hang up on purpose here."""


class _Handler(BaseHTTPRequestHandler):
    server: OddServer
    protocol_version = "HTTP/1.1"
    redirects: ClassVar[dict[str, str]] = {
        "moved": "/clips/a.mp4",
        "out": "/private/a.mp4",
        "dots": "/clips/../private/a.mp4",
        "encoded-dots": "/clips/%2e%2e%2fprivate/a.mp4",
        "doubly-encoded-dots": "/clips/%252e%252e%252fprivate/a.mp4",
        "to-file": "file:///etc/hostname",
        "to-data": "data:video/mp4;base64,AAAA",
        "to-ftp": "ftp://127.0.0.1/clips/a.mp4",
        "to-nothing": "http://",
        "to-https": "https://127.0.0.1/clips/a.mp4",
        "to-link-local": "http://169.254.169.254/latest/meta-data/",
        "to-ipv6-loopback": "http://[::1]/clips/a.mp4",
        "to-decimal": "http://2130706433/clips/a.mp4",
        "round": "/clips/round",
    }

    def log_message(self, *_: object) -> None:
        pass

    def answer(self, status: int, body: bytes = b"", **headers: str) -> None:
        self.send_response(status)
        headers.setdefault("Content_Length", str(len(body)))
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(body)

    def do_GET(self) -> None:
        self.server.asked.append(self.path)
        self.server.ranges.append((self.headers["Range"], self.headers["If-Range"] or self.headers["If-Match"]))
        name = unquote(self.path.partition("?")[0]).rpartition("/")[2]
        behaviour: Callable[[], None] | None = getattr(self, "do_" + name.replace("-", "_").replace(".", "_"), None)
        if name in self.redirects:
            self.answer(302, Location=self.redirects[name])
        elif name.isdigit():
            self.answer(int(name), b"" if name in {"204", "304"} else b"sorry")
        elif behaviour is not None:
            behaviour()
        else:
            self.answer(404)

    def do_a_mp4(self) -> None:
        self.answer(200, self.server.clip)

    def do_signed_mp4(self) -> None:
        if self.path.endswith("?signature=1"):
            self.answer(200, self.server.clip)
        else:
            self.answer(403)

    def do_away(self) -> None:
        self.answer(302, Location=self.server.elsewhere)

    # -- time ----------------------------------------------------------------------------------------------

    def do_silent(self) -> None:
        """Never say a word."""
        self.server.stopped.wait(20)

    def do_dripping_head(self) -> None:
        """Never come to the end of the head."""
        self.wfile.write(b"HTTP/1.1 200 OK\r\n")
        for number in range(1000):
            if self.server.stopped.wait(0.05):
                break
            self.wfile.write(b"X-%d: 1\r\n" % number)

    def do_stalling(self) -> None:
        """Fall silent in the body."""
        self.answer(200, b"x" * 10, Content_Length="1000")
        self.close_connection = True
        self.server.stopped.wait(20)

    def do_dripping(self) -> None:
        """Send a byte now and then, for ever."""
        self.answer(200, b"", Content_Length="1000")
        while not self.server.stopped.wait(0.05):
            self.wfile.write(b"x")

    # -- size ----------------------------------------------------------------------------------------------

    def do_endless(self) -> None:
        self.send_response(200)
        self.send_header("Connection", "close")
        self.end_headers()
        while not self.server.stopped.is_set():
            self.wfile.write(bytes(10_000))

    def do_endless_chunks(self) -> None:
        self.send_response(200)
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        while not self.server.stopped.is_set():
            self.wfile.write(b"1000\r\n" + bytes(0x1000) + b"\r\n")

    def do_huge(self) -> None:
        """Announce more than is allowed, and send nothing."""
        self.answer(200, Content_Length=str(10**12))
        self.server.stopped.wait(20)

    def do_short(self) -> None:
        """Announce more than is sent."""
        self.answer(200, self.server.clip[:1000], Content_Length="5000")
        self.close_connection = True

    def do_long(self) -> None:
        """Send more than was announced, a moment later: what may be taken for the next answer."""
        self.answer(200, self.server.clip[:1000])
        self.server.stopped.wait(0.1)
        self.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil")

    def do_long_at_once(self) -> None:
        """Send more than was announced, in one piece with it."""
        self.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n" + self.server.clip[:2000])

    # -- drops ---------------------------------------------------------------------------------------------

    def drop(self, **headers: str) -> None:
        """Send 40,000 bytes of what is left, then drop the connection."""
        asked, condition = self.server.ranges[-1]
        whole, begin = self.server.clip, 0
        if asked is not None and condition == (headers.get("ETag") or headers.get("Last_Modified")):
            begin = int(asked.removeprefix("bytes=").removesuffix("-"))
            headers["Content_Range"] = f"bytes {begin}-{len(whole) - 1}/{len(whole)}"
        left = whole[begin:]
        self.answer(206 if begin else 200, left[:40_000], Content_Length=str(len(left)), **headers)
        self.close_connection = True

    def do_drops(self) -> None:
        self.drop(ETag='"v1"', Accept_Ranges="bytes")

    def do_drops_dated(self) -> None:
        self.drop(Last_Modified="Mon, 05 Jan 2026 10:00:00 GMT")

    def do_drops_weak(self) -> None:
        self.drop(ETag='W/"v1"')

    def do_drops_rangeless(self) -> None:
        self.drop(ETag='"v1"', Accept_Ranges="none")

    def do_drops_changed(self) -> None:
        """Be replaced by another version after the first drop, which then comes whole."""
        if Counter(self.server.asked)[self.path] == 1:
            self.drop(ETag='"v1"')
        else:
            self.answer(200, self.server.clip[::-1], ETag='"v2"')

    def do_drops_misplaced(self) -> None:
        """Answer the rest with a part that begins elsewhere."""
        if self.headers["Range"] is None:
            self.drop(ETag='"v1"')
        else:
            self.answer(206, b"x" * 10, Content_Range="bytes 5-14/15")

    def do_drops_at_once(self) -> None:
        """Drop before the first byte of the body."""
        self.answer(200, b"", Content_Length="5000", ETag='"v1"')
        self.close_connection = True

    # -- words ---------------------------------------------------------------------------------------------

    def do_noise(self) -> None:
        self.wfile.write(b"SSH-2.0-dropbear\r\n")
        self.close_connection = True

    def do_strange_words(self) -> None:
        self.wfile.write(b"HTTP/1.1 500 \xff\xfe" + b"x" * 3000 + b"\r\nContent-Length: 0\r\n\r\n")

    def do_gzip(self) -> None:
        self.answer(200, gzip.compress(bytes(10_000_000)), Content_Encoding="gzip")

    def do_odd_coding(self) -> None:
        """Name a content coding that is none, as some stores do."""
        self.answer(200, self.server.clip, Content_Encoding="utf-8")

    def do_part(self) -> None:
        """Answer with a part that nobody asked for."""
        self.answer(206, b"x" * 10, Content_Range="bytes 0-9/1000")

    def do_unavailable_at_first(self) -> None:
        if Counter(self.server.asked)[self.path] == 1:
            self.answer(503)
        else:
            self.answer(200, self.server.clip)

    def do_cookie(self) -> None:
        """Set a cookie, and answer 400 to whoever brings one."""
        if self.headers["Cookie"] is None:
            self.answer(200, self.server.clip, Set_Cookie="who=you; Path=/")
        else:
            self.answer(400)


@contextlib.contextmanager
def serving(host: str = "127.0.0.1", port: int = 0, clip: bytes = CLIP) -> Iterator[OddServer]:
    server = OddServer(host, port, clip)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield server
    finally:
        server.stopped.set()
        server.shutdown()
        thread.join()
        server.server_close()
