"""Reads the head of a request, and writes responses: HTTP/1.0, one request a connection."""

from __future__ import annotations

import base64
import binascii
import hmac
import io
import re
from email.utils import formatdate
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler
from typing import TYPE_CHECKING, Final, NamedTuple, get_args

from streamer.endpoints import exchange
from streamer.endpoints.exchange import Answer, Question

if TYPE_CHECKING:
    from email.message import Message

HEAD_BYTES: Final = 8192
"""Largest request line with headers; Prometheus sends 400 bytes, a kubelet 120."""
END_OF_HEAD: Final = re.compile(rb"\r?\n\r?\n")
_PATHS: Final = {path: path for path in get_args(exchange.Path)}
_PLAIN: Final = [("Content-Type", "text/plain; charset=utf-8"), ("Cache-Control", "no-store")]


class Request(NamedTuple):
    """A request that the service has to answer, and whether only the answer's head is wanted."""

    question: Question
    head_only: bool


def admits(credentials: bytes | None, authorization: str) -> bool:
    """Return whether an Authorization header is correct, in constant time; ``credentials``: ``user:password``."""
    if credentials is None:
        return True
    scheme, _, encoded = authorization.partition(" ")
    try:
        given = base64.b64decode(encoded, validate=True)
    except (ValueError, binascii.Error):
        given = b""
    return hmac.compare_digest(given, credentials) and scheme.lower() == "basic"


def read(head: bytes, credentials: bytes | None) -> Request | bytes:
    """Read a head that ends with an empty line; return the response where the service need not be asked."""
    parsed = _Parser(head)
    if parsed.refusal is not None:
        return parsed.refusal
    head_only = parsed.command == "HEAD"
    if parsed.command not in {"GET", "HEAD"}:
        return response(Answer("405 Method Not Allowed", [*_PLAIN, ("Allow", "GET, HEAD")]), b"GET or HEAD\n")
    path = _PATHS.get(parsed.path.partition("?")[0])
    if path is None:
        text = f"{', '.join(_PATHS)} are here\n".encode()
        return response(Answer("404 Not Found", _PLAIN), text, head_only=head_only)
    admitted = admits(credentials, parsed.headers.get("Authorization", ""))
    if path != "/metrics":
        return Request(Question(path, admitted), head_only)
    if not admitted:
        headers = [*_PLAIN, ("WWW-Authenticate", 'Basic realm="metrics"')]
        return response(Answer("401 Unauthorized", headers), b"user and password required\n", head_only=head_only)
    return Request(Question(path, admitted, **_format(parsed.headers)), head_only)


def _format(headers: Message[str, str]) -> dict[str, str]:
    """Return one of four combinations, so that strangers cannot ask for the same in a thousand ways."""
    openmetrics = "application/openmetrics-text" in headers.get("Accept", "")
    return {
        "accept": "application/openmetrics-text; version=1.0.0" if openmetrics else "text/plain; version=0.0.4",
        "accept_encoding": "gzip" if "gzip" in headers.get("Accept-Encoding", "") else "",
    }


def response(answer: Answer, body: bytes, *, head_only: bool = False) -> bytes:
    """Return a whole response, dated here where the answer has no date of its own."""
    dated = any(name == "Date" for name, _ in answer.headers)
    headers = [
        *([] if dated else [("Date", formatdate(usegmt=True))]),
        *answer.headers,
        ("Content-Length", str(len(body))),
        ("Connection", "close"),
    ]
    lines = [f"HTTP/1.0 {answer.status}", *(f"{name}: {value}" for name, value in headers), "", ""]
    return "\r\n".join(lines).encode("latin-1") + (b"" if head_only else body)


def refusal(status: str) -> bytes:
    """Return a response that says no more than its status."""
    return response(Answer(status, _PLAIN), f"{status}\n".encode())


class _Parser(BaseHTTPRequestHandler):
    """The standard library's parser of heads, on bytes instead of a socket."""

    def __init__(self, head: bytes) -> None:
        """Parse; ``refusal`` is the response to what is not HTTP, else None."""
        self.rfile = io.BufferedReader(io.BytesIO(head))
        self.raw_requestline = self.rfile.readline()
        self.refusal: bytes | None = None
        if not self.parse_request() and self.refusal is None:
            self.send_error(HTTPStatus.BAD_REQUEST)

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:  # noqa: ARG002
        """Note what is wrong with the head."""
        self.refusal = refusal(f"{code} {HTTPStatus(code).phrase}")
