"""Fetching from hostile file URIs and from a real HTTP server on loopback that misbehaves in every way."""

from __future__ import annotations

import contextlib
import os
import pickle
import tempfile
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, ClassVar

import pytest

from streamer.events import Reason
from streamer.video import ClipError, Fetcher

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

CLIP = bytes(range(256)) * 400


def fetcher(*allowed: str, max_bytes: int = 200_000, timeout: float = 10.0) -> Fetcher:
    return Fetcher(allowed, max_bytes=max_bytes, timeout=timeout)


def refusal(source: Fetcher, uri: str) -> ClipError:
    with pytest.raises(ClipError) as caught, source.fetch(uri) as path:
        pytest.fail(f"{uri} was fetched as {path}")
    assert str(caught.value) == caught.value.detail != ""
    return caught.value


class Server(ThreadingHTTPServer):
    """Answers by path and remembers what was asked for."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.asked: list[str] = []
        self.stopped = threading.Event()
        self.elsewhere = ""

    @property
    def origin(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def handle_error(self, request: object, client_address: object) -> None:
        """Clients hang up on purpose here."""


class Handler(BaseHTTPRequestHandler):
    server: Server
    protocol_version = "HTTP/1.1"
    redirects: ClassVar[dict[str, str]] = {
        "/clips/moved": "/clips/a.mp4",
        "/clips/out": "/private/a.mp4",
        "/clips/dots": "/clips/../private/a.mp4",
        "/clips/scheme": "file:///etc/hostname",
        "/clips/round": "/clips/round",
        "/clips/https": "https://127.0.0.1/clips/a.mp4",
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

    def do_GET(self) -> None:  # noqa: C901 - a table of misbehaviours
        self.server.asked.append(self.path)
        path, _, query = self.path.partition("?")
        match path.rpartition("/")[2]:
            case "a.mp4" | "signed.mp4":
                assert path == "/clips/a.mp4" or query == "signature=1"
                self.answer(200, CLIP)
            case "endless":
                self.send_response(200)
                self.send_header("Connection", "close")
                self.end_headers()
                while not self.server.stopped.is_set():
                    self.wfile.write(bytes(10_000))
            case "slow":
                self.answer(200, b"x" * 10, Content_Length="1000")
                self.server.stopped.wait(20)
            case "silent":
                self.server.stopped.wait(20)
            case "short":  # announces more than it sends
                self.answer(200, CLIP[:1000], Content_Length="5000")
                self.close_connection = True
            case "huge":  # announces more than is allowed, and sends nothing
                self.answer(200, Content_Length=str(10**12))
                self.server.stopped.wait(20)
            case "noise":
                self.wfile.write(b"SSH-2.0-dropbear\r\n")
                self.close_connection = True
            case "away":
                self.answer(302, Location=self.server.elsewhere)
            case name if name.isdigit():
                self.answer(int(name), b"sorry")
            case _ if path in self.redirects:
                self.answer(302, Location=self.redirects[path])
            case _:
                self.answer(404)


@contextlib.contextmanager
def serve() -> Iterator[Server]:
    server = Server()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield server
    finally:
        server.stopped.set()
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.fixture
def server() -> Iterator[Server]:
    with serve() as running:
        yield running


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Allowed ``clips`` beside forbidden ``clips-secret``."""
    for name in ("clips", "clips-secret"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "a.mp4").write_bytes(CLIP)
    return tmp_path


@pytest.mark.parametrize("prefix", ["file:", "file://", "file://localhost", "FILE:"])
@pytest.mark.parametrize("scheme", ["file:", "file://", "file://localhost"])
def test_a_file_is_read_where_it_is(folder: Path, prefix: str, scheme: str) -> None:
    with fetcher(f"{prefix}{folder}/clips").fetch(f"{scheme}{folder}/clips/a.mp4") as path:
        assert path == folder / "clips" / "a.mp4"
    assert path.exists()


def test_a_single_file_can_be_allowed(folder: Path) -> None:
    source = fetcher(f"file:{folder}/clips/a.mp4")
    with source.fetch(f"file:{folder}/clips/a.mp4") as path:
        assert path.read_bytes() == CLIP


def test_percent_encoding_and_spaces_name_the_same_file(folder: Path) -> None:
    odd = folder / "my clips" / "100% #1?::é.mp4"
    odd.parent.mkdir()
    odd.write_bytes(CLIP)
    for prefix in (f"file:{folder}/my clips", odd.parent.as_uri()):
        with fetcher(prefix).fetch(odd.as_uri().replace("::", "%3A%3A")) as path:
            assert path == odd


def test_an_allowed_folder_may_itself_be_a_link(folder: Path) -> None:
    (folder / "current").symlink_to(folder / "clips")
    with fetcher(f"file:{folder}/current").fetch(f"file:{folder}/current/a.mp4") as path:
        assert path == folder / "clips" / "a.mp4"


@pytest.mark.parametrize(
    "uri",
    [
        "file:{folder}/clips-secret/a.mp4",
        "file:{folder}/clips/../clips-secret/a.mp4",
        "file:{folder}/clips/%2e%2e/clips-secret/a.mp4",
        "file:{folder}/clips/%2e%2e%2fclips-secret%2fa.mp4",
        "file:{folder}/clips/out.mp4",
        "file:{folder}/clips/up/clips-secret/a.mp4",
        "file:{folder}/clips/absent/../../clips-secret/absent.mp4",
        "file:{folder}/clips/loop",
        "file:{folder}/clips/fifo",
        "file:{folder}/clips/null",
        "file:{folder}/clips",
        "file:{folder}/clips/",
        "file://host{folder}/clips/a.mp4",
        "file:clips/a.mp4",
        "file:",
        "{folder}/clips/a.mp4",
        "file:{folder}/clips/a.mp4?x=1",
        "file:{folder}/clips/a.mp4#x",
        "file:{folder}/clips/a.mp4%00.txt",
        "file:{folder}/clips/a.mp4\n",
        "file:{folder}/clips/a.zip::zip://a.mp4",
        "local:{folder}/clips/a.mp4",
        "local::{folder}/clips/a.mp4",
        "simplecache::file:{folder}/clips/a.mp4",
        "zip://a.mp4::file:{folder}/clips/a.zip",
        "memory://a.mp4",
        "data:video/mp4;base64,AAAA",
        "ftp://127.0.0.1/a.mp4",
        "",
    ],
)
def test_hostile_file_uris_are_refused(folder: Path, uri: str) -> None:
    clips = folder / "clips"
    (clips / "out.mp4").symlink_to(folder / "clips-secret" / "a.mp4")
    (clips / "up").symlink_to(folder)
    (clips / "loop").symlink_to(clips / "loop")
    (clips / "null").symlink_to("/dev/null")
    os.mkfifo(clips / "fifo")
    error = refusal(fetcher(f"file:{clips}"), uri.format(folder=folder))
    expected = Reason.FETCH_FAILED if uri.endswith("loop") else Reason.URI_REFUSED
    assert (error.reason, error.transient) == (expected, False)


def test_devices_are_refused_even_where_allowed() -> None:
    assert refusal(fetcher("file:/dev"), "file:/dev/null").reason is Reason.URI_REFUSED


@pytest.mark.parametrize("name", ["absent.mp4", "a.mp4/below"])
def test_a_missing_file_is_not_found(folder: Path, name: str) -> None:
    error = refusal(fetcher(f"file:{folder}/clips"), f"file:{folder}/clips/{name}")
    assert (error.reason, error.transient) == (Reason.NOT_FOUND, False)


def test_a_name_that_is_too_long_is_a_lasting_failure(folder: Path) -> None:
    error = refusal(fetcher(f"file:{folder}/clips"), f"file:{folder}/clips/{'x' * 300}")
    assert (error.reason, error.transient) == (Reason.FETCH_FAILED, False)


def test_the_byte_limit_counts_for_files(folder: Path) -> None:
    with fetcher(f"file:{folder}", max_bytes=len(CLIP)).fetch(f"file:{folder}/clips/a.mp4"):
        pass
    error = refusal(fetcher(f"file:{folder}", max_bytes=len(CLIP) - 1), f"file:{folder}/clips/a.mp4")
    assert (error.reason, error.transient) == (Reason.CLIP_TOO_LARGE, False)


@pytest.mark.parametrize(
    "prefix",
    [
        "clips",
        "/clips",
        "file:clips",
        "file://host/clips",
        "s3://bucket/clips",
        "http://",
        "https:///clips",
        "http://user:secret@host/",
        "http://host/clips?a=b",
        "http://host/clips#a",
        "http://host:port/",
        "",
    ],
)
def test_a_wrong_prefix_is_named_at_construction(prefix: str) -> None:
    with pytest.raises(ValueError, match="is no URI prefix: ") as caught:
        fetcher("file:/clips", prefix)
    assert repr(prefix) in str(caught.value)


def test_http_gives_a_temporary_file_that_is_removed(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    source = fetcher(f"{server.origin}/clips")
    with source.fetch(f"{server.origin}/clips/a.mp4") as path:
        assert path.read_bytes() == CLIP
        assert path.is_relative_to(tmp_path)
    with pytest.raises(KeyError), source.fetch(f"{server.origin}/clips/a.mp4"):
        raise KeyError
    refusal(source, f"{server.origin}/clips/short")
    assert list(tmp_path.iterdir()) == []


def test_a_query_belongs_to_the_source(server: Server) -> None:
    with fetcher(server.origin).fetch(f"{server.origin}/clips/signed.mp4?signature=1") as path:
        assert path.read_bytes() == CLIP
    assert server.asked == ["/clips/signed.mp4?signature=1"]


def test_a_redirect_within_the_prefix_is_followed(server: Server) -> None:
    with fetcher(f"{server.origin}/clips/").fetch(f"{server.origin}/clips/moved") as path:
        assert path.read_bytes() == CLIP
    assert server.asked == ["/clips/moved", "/clips/a.mp4"]


@pytest.mark.parametrize("name", ["out", "dots", "scheme", "https"])
def test_a_redirect_out_of_the_prefix_is_refused_before_it_is_asked_for(server: Server, name: str) -> None:
    error = refusal(fetcher(f"{server.origin}/clips", f"{server.origin}/clips-b"), f"{server.origin}/clips/{name}")
    assert (error.reason, error.transient) == (Reason.URI_REFUSED, False)
    assert server.asked == [f"/clips/{name}"]


def test_a_redirect_to_another_server_is_refused_unless_that_is_allowed(server: Server) -> None:
    with serve() as other:
        server.elsewhere = f"{other.origin}/clips/a.mp4"
        uri = f"{server.origin}/clips/away"
        assert refusal(fetcher(server.origin), uri).reason is Reason.URI_REFUSED
        assert other.asked == []
        with fetcher(server.origin, f"{other.origin}/clips").fetch(uri) as path:
            assert path.read_bytes() == CLIP
        assert other.asked == ["/clips/a.mp4"]


def test_redirects_in_a_circle_end(server: Server) -> None:
    error = refusal(fetcher(server.origin), f"{server.origin}/clips/round")
    assert (error.reason, error.transient) == (Reason.FETCH_FAILED, False)
    assert "redirects" in error.detail


@pytest.mark.parametrize(
    "uri",
    [
        "{origin}/private/a.mp4",
        "{origin}/clips-secret/a.mp4",
        "{origin}/clips/../private/a.mp4",
        "{origin}/clips/%2e%2e/private/a.mp4",
        "{origin}/clips/..%2fprivate/a.mp4",
        "{origin}/clips/..%5cprivate/a.mp4",
        "{origin}/private/?/clips/a.mp4",
        "{origin}/clips/a.mp4#fragment",
        "{origin}/clips/a.mp4\r\nX-Injected: 1",
        "{origin}",
        "http://localhost:{port}/clips/a.mp4",
        "http://127.0.0.1:{port}@example.invalid/clips/a.mp4",
        "http://user:secret@127.0.0.1:{port}/clips/a.mp4",
        "http://example.invalid\\@127.0.0.1:{port}/clips/a.mp4",
        "https://127.0.0.1:{port}/clips/a.mp4",
        "simplecache::{origin}/clips/a.mp4",
        "{origin}/clips/a.zip::zip://a.mp4",
        "http:///clips/a.mp4",
        "http:",
        "http://[::1/clips/a.mp4",
    ],
)
def test_hostile_http_uris_are_refused_and_no_server_is_asked(server: Server, uri: str) -> None:
    port = str(server.server_address[1])
    error = refusal(fetcher(f"{server.origin}/clips"), uri.format(origin=server.origin, port=port))
    assert (error.reason, error.transient) == (Reason.URI_REFUSED, False)
    assert "secret" not in error.detail
    assert server.asked == []


@pytest.mark.parametrize(
    ("status", "reason", "transient"),
    [
        (400, Reason.FETCH_FAILED, False),
        (401, Reason.FETCH_FAILED, False),
        (403, Reason.FETCH_FAILED, False),
        (404, Reason.NOT_FOUND, False),
        (410, Reason.NOT_FOUND, False),
        (429, Reason.FETCH_FAILED, True),
        (500, Reason.FETCH_FAILED, True),
        (503, Reason.FETCH_FAILED, True),
    ],
)
def test_http_statuses_are_lasting_or_transient(server: Server, status: int, reason: Reason, transient: bool) -> None:
    error = refusal(fetcher(server.origin), f"{server.origin}/clips/{status}")
    assert (error.reason, error.transient) == (reason, transient)
    assert str(status) in error.detail


@pytest.mark.parametrize("name", ["slow", "silent"])
def test_the_time_limit_ends_a_slow_answer(server: Server, name: str) -> None:
    began = time.monotonic()
    error = refusal(fetcher(server.origin, timeout=0.4), f"{server.origin}/clips/{name}")
    assert (error.reason, error.transient) == (Reason.FETCH_FAILED, True)
    assert "0.4 s" in error.detail
    assert time.monotonic() - began < 5


def test_an_endless_body_stops_at_the_byte_limit(server: Server) -> None:
    error = refusal(fetcher(server.origin), f"{server.origin}/clips/endless")
    assert (error.reason, error.transient) == (Reason.CLIP_TOO_LARGE, False)


def test_an_announced_length_over_the_limit_is_refused_without_the_body(server: Server) -> None:
    began = time.monotonic()
    error = refusal(fetcher(server.origin), f"{server.origin}/clips/huge")
    assert (error.reason, error.transient) == (Reason.CLIP_TOO_LARGE, False)
    assert str(10**12) in error.detail
    assert time.monotonic() - began < 5


def test_a_body_shorter_than_announced_is_a_transient_failure(server: Server) -> None:
    error = refusal(fetcher(server.origin), f"{server.origin}/clips/short")
    assert (error.reason, error.transient) == (Reason.FETCH_FAILED, True)


def test_what_is_no_http_at_all_is_a_failure(server: Server) -> None:
    assert refusal(fetcher(server.origin), f"{server.origin}/clips/noise").reason is Reason.FETCH_FAILED


def test_no_server_at_all_is_a_transient_failure() -> None:
    with serve() as server:
        origin = server.origin
    error = refusal(fetcher(origin), f"{origin}/clips/a.mp4")
    assert (error.reason, error.transient) == (Reason.FETCH_FAILED, True)


def test_no_room_for_the_temporary_file_is_a_transient_failure(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Every write to /dev/full fails as on a full disk.
    full = tmp_path / "folder"
    full.mkdir()
    (full / "clip").symlink_to("/dev/full")
    monkeypatch.setattr(tempfile, "mkdtemp", lambda *_, **__: str(full))
    error = refusal(fetcher(server.origin), f"{server.origin}/clips/a.mp4")
    assert (error.reason, error.transient) == (Reason.FETCH_FAILED, True)
    assert error.detail == "No space left on device"


def test_several_threads_share_one_fetcher(server: Server) -> None:
    source = fetcher(server.origin)
    lengths: list[int] = []

    def work() -> None:
        with source.fetch(f"{server.origin}/clips/a.mp4") as path:
            lengths.append(path.stat().st_size)

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert lengths == [len(CLIP)] * 8


def test_a_clip_error_survives_the_way_between_processes() -> None:
    sent = pickle.dumps(ClipError(Reason.FETCH_FAILED, "http 503", transient=True))
    error = pickle.loads(sent)  # noqa: S301 - made in the line above
    assert (error.reason, error.detail, error.transient) == (Reason.FETCH_FAILED, "http 503", True)
