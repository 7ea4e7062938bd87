"""The front of the metrics port: who has a place, who gives way, and what the service is asked."""

from __future__ import annotations

import contextlib
import http.client
import os
import signal
import socket
import subprocess
import sys
import threading
import urllib.request
from functools import partial
from multiprocessing import Pipe
from multiprocessing.connection import wait
from pathlib import Path
from typing import TYPE_CHECKING, Self

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamer.endpoints import front as front_module
from streamer.endpoints.exchange import Answer, Question, Report, Setup
from streamer.endpoints.front import Front
from streamer.endpoints.requests import HEAD_BYTES, Request, read
from streamer.endpoints.serving import Endpoints
from streamer.health import Health
from streamer.metrics import Metrics
from tests.support.crowd import KINDS, crowd
from tests.support.lone_endpoints import lone_endpoints
from tests.support.processes import children
from tests.support.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator

PROBE = b"GET /livez HTTP/1.1\r\nHost: a\r\n\r\n"
SCRAPE = b"GET /metrics HTTP/1.1\r\nHost: a\r\n\r\n"


class Bench:
    """A front in a thread of the test, which is its service."""

    def __init__(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=100)
        self._service, theirs = Pipe()
        self.front = Front(self._listener, theirs, Setup())
        self._thread = threading.Thread(target=self.front.run, daemon=True)
        self._clients: list[socket.socket] = []

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._service.close()
        self._thread.join(30)
        assert not self._thread.is_alive()
        for client in self._clients:
            client.close()
        self._listener.close()

    def connect(self, sent: bytes = b"") -> socket.socket:
        """Come as one more client, and be accepted before the next one comes."""
        client = socket.create_connection(self._listener.getsockname(), timeout=30)
        self._clients.append(client)
        client.sendall(sent)
        return client

    def report(self) -> Report:
        assert self._service.poll(30)
        return msgspec.json.decode(self._service.recv_bytes(), type=Report)

    def answer(self, body: bytes) -> None:
        self._service.send_bytes(msgspec.json.encode(Answer("200 OK", [])))
        self._service.send_bytes(body)

    def answer_until(self, client: socket.socket, body: bytes) -> None:
        """Answer whatever is asked until this client has its answer; how many questions that takes hangs on time."""
        while not wait([client], 0.01):
            if self._service.poll(0):
                self.report()
                self.answer(body)

    def asks_no_more(self) -> bool:
        return not self._service.poll(0)


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> Iterator[Bench]:
    monkeypatch.setattr(front_module, "PLACES", dict.fromkeys(front_module.PLACES, 3))
    with Bench() as made:
        yield made


def received(client: socket.socket) -> bytes:
    """Return what a client gets until it is disconnected."""
    parts = []
    try:
        while part := client.recv(1 << 16):
            parts.append(part)
    except ConnectionResetError:
        pass
    return b"".join(parts)


def body_of(client: socket.socket) -> bytes:
    return received(client).partition(b"\r\n\r\n")[2]


def ask(bench: Bench) -> None:
    """Have a question of another kind answered, so that all that came before has been looked at."""
    client = bench.connect(SCRAPE)
    assert bench.report().question.path == "/metrics"
    bench.answer(b"metrics")
    assert body_of(client) == b"metrics"


def test_who_has_been_without_a_request_for_longest_gives_way_to_who_comes(bench: Bench) -> None:
    crowd_of_four = [bench.connect(b"GET /li") for _ in range(4)]
    assert received(crowd_of_four[0]) == b""
    client = bench.connect(PROBE)
    # It may have been accepted before it sent its request, and so have taken one more place.
    assert bench.report().refused in ({"crowded": 1}, {"crowded": 2})
    bench.answer(b"ok")
    assert body_of(client) == b"ok"
    # Who has a place can still complete its request.
    crowd_of_four[-1].sendall(b"vez HTTP/1.1\r\n\r\n")
    assert bench.report().refused == {}
    bench.answer(b"ok")
    assert body_of(crowd_of_four[-1]) == b"ok"


def test_all_who_wait_for_the_same_answer_share_it(bench: Bench) -> None:
    first = bench.connect(PROBE)
    assert bench.report().question == Question("/livez", admitted=True)
    # These came after the question was asked, so what they get must be as new as they are.
    others = [bench.connect(PROBE.replace(b"Host: a", name)) for name in (b"Host: b", b"X: y")]
    bench.answer(b"old")
    assert body_of(first) == b"old"
    assert bench.report().question == Question("/livez", admitted=True)
    bench.answer(b"new")
    assert [body_of(other) for other in others] == [b"new", b"new"]
    ask(bench)
    assert bench.asks_no_more()


def test_in_a_crowd_of_equal_questions_who_gives_way_gets_the_last_answer(bench: Bench) -> None:
    first = bench.connect(PROBE)
    bench.report()
    bench.answer(b"last")
    assert body_of(first) == b"last"
    waiting = [bench.connect(PROBE) for _ in range(4)]
    assert body_of(waiting[0]) == b"last"
    bench.answer_until(waiting[3], b"next")
    assert body_of(waiting[3]) == b"next"


def test_probes_and_scrapes_do_not_take_each_others_places(bench: Bench) -> None:
    scrapers = [bench.connect(SCRAPE) for _ in range(4)]
    assert bench.report().question.path == "/metrics"
    assert received(scrapers[0]) == b""
    probe = bench.connect(PROBE)
    bench.answer(b"metrics")
    assert bench.report().question.path == "/livez"
    bench.answer(b"ok")
    assert body_of(probe) == b"ok"


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        (b"x: " + b"y" * HEAD_BYTES, b"431 Request Header Fields Too Large"),
        (b"GET /livez HTTP/1.1\r\n" + b"x: y\r\n" * 200 + b"\r\n", b"431 Request Header Fields Too Large"),
        (b"GET /livez FTP/1.1\r\n\r\n", b"400 Bad Request"),
        (b"\x16\x03\x01\x00\r\n\r\n", b"400 Bad Request"),
        (b"\r\n\r\n", b"400 Bad Request"),
        (b"GET /livez HTTP/3.0\r\n\r\n", b"505 HTTP Version Not Supported"),
        (b"POST /livez HTTP/1.1\r\n\r\n", b"405 Method Not Allowed"),
        (b"GET /elsewhere HTTP/1.1\r\n\r\n", b"404 Not Found"),
    ],
)
def test_what_is_no_request_of_ours_is_answered_without_the_service(bench: Bench, sent: bytes, status: bytes) -> None:
    assert received(bench.connect(sent)).startswith(b"HTTP/1.0 " + status + b"\r\n")
    assert bench.asks_no_more()


@given(st.binary(max_size=200), st.binary(max_size=200))
def test_any_bytes_are_a_request_or_refused(line: bytes, headers: bytes) -> None:
    for head in (line, b"GET /metrics " + line, b"GET /livez HTTP/1.1\r\n" + headers, line + b"\r\n" + headers):
        found = read(head + b"\r\n\r\n", b"user:password")
        assert isinstance(found, Request) or found.startswith((b"HTTP/1.0 4", b"HTTP/1.0 5"))


def test_a_request_in_pieces_is_read(bench: Bench) -> None:
    client = bench.connect()
    client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    for byte in PROBE.replace(b"\r\n", b"\n"):
        client.sendall(bytes([byte]))
    bench.report()
    bench.answer(b"ok")
    assert body_of(client) == b"ok"


@pytest.mark.parametrize("sent", [b"", b"GET /livez HTTP/1.1\r\n"], ids=["silent", "slow"])
def test_time_is_limited_in_all(monkeypatch: pytest.MonkeyPatch, sent: bytes) -> None:
    monkeypatch.setattr(front_module, "TOTAL_SECONDS", 0.05)
    with Bench() as bench:
        assert received(bench.connect(sent)) == b""
        assert bench.asks_no_more()


def test_where_the_service_does_not_answer_the_front_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(front_module, "TOTAL_SECONDS", 0.05)
    with Bench() as bench:
        client = bench.connect(PROBE)
        assert received(client).startswith(b"HTTP/1.0 503 Service Unavailable\r\n")


def test_few_descriptors_make_few_places() -> None:
    code = (
        "import resource; resource.setrlimit(resource.RLIMIT_NOFILE, (100, 100))\n"
        "import socket; from multiprocessing import Pipe; from streamer.endpoints.front import Front\n"
        "from streamer.endpoints.exchange import Setup\n"
        "print(sum(Front(socket.create_server(('127.0.0.1', 0)), Pipe()[0], Setup())._limits.values()))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert 6 <= int(done.stdout) <= 40


# -- with the process of a service ---------------------------------------------------------------------------


def get(port: int, path: str) -> int:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=60) as response:
        response.read()
        return int(response.status)


def is_answered(port: int, path: str) -> bool:
    """Ask once; on a busy machine one may have to give way, and to come again."""
    with contextlib.suppress(OSError, http.client.HTTPException):
        return get(port, path) == 200
    return False


@pytest.fixture
def endpoints() -> Iterator[Endpoints]:
    metrics = Metrics()
    health = Health(metrics)
    health.ready("start")
    served = Endpoints(health, metrics, host="127.0.0.1", port=0)
    try:
        yield served
    finally:
        served.close()


@pytest.mark.parametrize("kind", KINDS)
def test_a_crowd_takes_no_answer_from_others_and_nothing_from_the_service(kind: str) -> None:
    with lone_endpoints() as service:
        wait_until(partial(is_answered, service.port, "/livez"), "/livez")
        before = service.cost()
        with crowd(service.port, kind, 300):
            for _ in range(10):
                for path in ("/livez", "/readyz", "/metrics"):
                    wait_until(partial(is_answered, service.port, path), path)
            assert service.cost() == before


def test_a_front_that_dies_is_replaced(endpoints: Endpoints) -> None:
    assert get(endpoints.port, "/livez") == 200
    [pid] = [pid for pid in children(os.getpid()) if b"endpoints" in Path(f"/proc/{pid}/cmdline").read_bytes()]
    os.kill(pid, signal.SIGTERM)
    assert get(endpoints.port, "/livez") == 200  # it goes on until its service has stopped
    os.kill(pid, signal.SIGKILL)
    assert get(endpoints.port, "/livez") == 200
    wait_until(lambda: pid not in children(os.getpid()))


def test_a_front_does_not_outlive_its_service() -> None:
    code = (
        "import os, signal\nfrom streamer.endpoints.serving import Endpoints\nfrom streamer.health import Health\n"
        "from streamer.metrics import Metrics\nimport urllib.request\nmetrics = Metrics()\n"
        "served = Endpoints(Health(metrics), metrics, host='127.0.0.1', port=0)\n"
        "urllib.request.urlopen(f'http://127.0.0.1:{served.port}/livez').read()\n"
        "print(served._front.pid, flush=True)\nos.kill(os.getpid(), signal.SIGKILL)"
    )
    done = subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, timeout=60, check=False)
    assert done.returncode == -signal.SIGKILL
    wait_until(lambda: not _runs(int(done.stdout)))


def _runs(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
