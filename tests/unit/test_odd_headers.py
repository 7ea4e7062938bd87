"""Headers of a server that no parser expects: a verdict on the source, never an error of ours."""

from __future__ import annotations

import socket
import threading
from typing import TYPE_CHECKING

import pytest

from streamer.video import ClipError
from streamer.video.fetching.fetcher import Fetcher

if TYPE_CHECKING:
    from collections.abc import Iterator

BODY = b"x" * 1000
DATE = b"Date: Sun, 29 Nov 2026 12:00:00 GMT"
DIGITS = b"9" * 5000


def whole(*headers: bytes) -> list[bytes]:
    lines = (b"HTTP/1.1 200 OK", b"Content-Length: 1000", *headers)
    return [b"\r\n".join(lines) + b"\r\n\r\n" + BODY]


def dropped(content_range: bytes) -> list[bytes]:
    """Answer with half of the body, and the rest upon the second request."""
    lines = (b"HTTP/1.1 206 Partial Content", b"Content-Length: 500", b'ETag: "a"', b"Content-Range: " + content_range)
    return [whole(b'ETag: "a"')[0][:-500], b"\r\n".join(lines) + b"\r\n\r\n" + BODY[500:]]


def dated(changed: bytes, date: bytes = DATE) -> list[bytes]:
    return whole(date, b"Last-Modified: " + changed)


FETCHED = {
    "zone of 20 digits": dated(b"Mon, 01 Jan 2020 00:00:00 +" + DIGITS[:20]),
    "zone of 24 hours": dated(b"Mon, 01 Jan 2020 00:00:00 +9900"),
    "year of 20 digits": dated(b"Mon, 01 Jan " + DIGITS[:20] + b" 00:00:00 GMT"),
    "day of 5,000 digits": dated(b"Mon, " + DIGITS + b" Jan 2020 00:00:00 GMT"),
    "hour of 5,000 digits": dated(b"Mon, 01 Jan 2020 " + DIGITS + b":00:00 GMT"),
    "year 1 and a zone": dated(b"Fri, 31 Dec 9999 23:59:59 -2300", b"Date: Mon, 01 Jan 0001 00:00:00 +2300"),
    "date of nothing": dated(b"", b"Date:"),
    "range that goes on": dropped(b"bytes 500-999/1000"),
}
FAILED = {
    "range of 5,000 digits": dropped(b"bytes " + DIGITS + b"-999/1000"),
    "range of other digits": dropped("bytes \u0665\u0660\u0660-999/1000".encode()),
    "range of zeros": dropped(b"bytes " + b"0" * 5000 + b"500-999/1000"),
    "length of 5,000 digits": [b"HTTP/1.1 200 OK\r\nContent-Length: " + DIGITS + b"\r\n\r\n" + BODY],
    "length below zero": [b"HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n" + BODY],
    "chunk of 5,000 digits": [b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + DIGITS + b"\r\n" + BODY],
    "status of 5,000 digits": [b"HTTP/1.1 " + DIGITS + b" OK\r\n\r\n"],
    "version of 5,000 digits": [b"HTTP/" + DIGITS + b".1 200 OK\r\n\r\n"],
    "redirect to a port of 5,000 digits": [
        b"HTTP/1.1 302 Found\r\nLocation: http://127.0.0.1:" + DIGITS + b"/\r\n\r\n"
    ],
    "redirect to a broken address": [b"HTTP/1.1 302 Found\r\nLocation: http://[::1/x\r\n\r\n"],
    "redirect to a name that unfolds": [b"HTTP/1.1 302 Found\r\nLocation: http://a\xe2\x84\x80b.example/\r\n\r\n"],
    "redirect to a label of 5,000 letters": [b"HTTP/1.1 302 Found\r\nLocation: http://" + b"a" * 5000 + b"/\r\n\r\n"],
    "cookie of 5,000 digits": [b"HTTP/1.1 404 No\r\nSet-Cookie: a=b; Max-Age=" + DIGITS + b"\r\n\r\n"],
    "wait of 5,000 digits": [b"HTTP/1.1 503 No\r\nRetry-After: " + DIGITS + b"\r\nContent-Length: 0\r\n\r\n"],
}


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as made:
        yield made


def fetch(listener: socket.socket, answers: list[bytes]) -> int:
    def serve() -> None:
        for answer in answers:
            connection, _ = listener.accept()
            with connection:
                connection.recv(65536)
                connection.sendall(answer)

    threading.Thread(target=serve, daemon=True).start()
    origin = f"http://127.0.0.1:{listener.getsockname()[1]}"
    fetcher = Fetcher([origin], allowed_networks=["127.0.0.1"], max_bytes=1 << 20, timeout=10, first_byte_timeout=4)
    with fetcher.fetch(f"{origin}/a.mp4") as path:
        return path.stat().st_size


@pytest.mark.parametrize("answers", FETCHED.values(), ids=list(FETCHED))
def test_what_the_body_does_not_need_does_not_matter(listener: socket.socket, answers: list[bytes]) -> None:
    assert fetch(listener, answers) == len(BODY)


@pytest.mark.parametrize("answers", FAILED.values(), ids=list(FAILED))
def test_a_response_that_cannot_be_read_is_an_error_of_its_source(
    listener: socket.socket, answers: list[bytes]
) -> None:
    with pytest.raises(ClipError):
        fetch(listener, answers)
