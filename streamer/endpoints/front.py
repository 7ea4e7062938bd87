"""The process that holds the port of metrics and probes, so that clients take from the service no more than this.

A service that has a thread, a descriptor or a turn at the interpreter's lock for each client can be held up by clients.
So they connect to this process, which has one thread and keeps a limited number of them:

1. It accepts every connection at once, since a probe waits after the others in the kernel's queue, and reads what has
   arrived.
2. A connection is in one of three places: its request is not complete (``unread``), or it waits for the answer to a
   probe, or to a scrape. Each place has a limit; in a full one, the oldest connection gives way. A probe's
   request comes in one piece, so that it is in the first place for a moment or not at all, and slow clients do not get
   into the other two.
3. The service is asked one question at a time, for all who wait for the same answer. Before the next question of a
   kind there is a pause of nine times what the last one took, up to a limit, so that clients take at most a tenth of
   the service's time, however many they are. A probe that gives way gets the last answer to its question if it is
   recent. A scrape does not: to send some 100 KB to thousands would take a processor.
4. After ten seconds in all, a connection is closed, and so is one that sends more than a head may have. Only what is
   left of a complete answer is kept by the kernel, for ten seconds more.

It ends when the service does. Run by :mod:`streamer.endpoints.serving`; it imports little, and starts in 0.1 s.
"""

from __future__ import annotations

import contextlib
import resource
import select
import signal
import socket
import ssl
import struct
import sys
import time
from collections import Counter
from multiprocessing.connection import Connection as Channel
from pathlib import Path
from typing import Final

import msgspec

from streamer.endpoints.exchange import Answer, Question, Report, Setup
from streamer.endpoints.requests import END_OF_HEAD, HEAD_BYTES, Request, read, refusal, response
from streamer.process import hide_memory

TOTAL_SECONDS: Final = 10.0
"""From the accepted connection to the last byte of the answer."""
PLACES: Final = {"unread": 512, "probes": 256, "scrapes": 32}
"""How many connections each place holds; proportionally fewer where fewer descriptors are allowed."""
_OTHER_DESCRIPTORS: Final = 64
_ACCEPTED_AT_ONCE: Final = 128
"""Connections that are accepted before others are looked after."""
_RECENT_SECONDS: Final = 5.0
"""How old an answer may be for a client that gives way; a kubelet asks every ten seconds."""
_PAUSE, _MAX_PAUSE_SECONDS = 9.0, 0.25
_RESET: Final = struct.pack("ii", 1, 0)
"""Linger for no time: close at once, and keep nothing of the connection."""
_ANSWERS: Final = msgspec.json.Decoder(Answer)


class _Connection:
    """One client."""

    __slots__ = ("fd", "head", "place", "request", "rest", "socket", "until")

    def __init__(self, accepted: socket.socket, place: dict[int, _Connection]) -> None:
        self.socket = accepted
        self.fd = accepted.fileno()
        self.until = time.monotonic() + TOTAL_SECONDS
        self.place = place
        self.head = b""
        self.request: Request | None = None
        self.rest: memoryview | None = None
        """What is still to be sent of the answer."""


class _Certificate:
    """A certificate and its key, loaded again after they are renewed."""

    def __init__(self, cert: str, key: str) -> None:
        self._paths = Path(cert), Path(key)
        self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._loaded = self._modified()
        self._context.load_cert_chain(*self._paths)
        self.warning: str | None = None

    def wrap(self, accepted: socket.socket) -> ssl.SSLSocket:
        """Wrap a connection in TLS; the handshake happens as it is read."""
        try:
            modified = self._modified()
            if modified != self._loaded:
                self._context.load_cert_chain(*self._paths)
                self._loaded, self.warning = modified, None
        except (OSError, ValueError) as error:
            # A renewal is in progress; the next connection tries again.
            self.warning = f"cannot read the renewed certificate yet: {error}"
        return self._context.wrap_socket(accepted, server_side=True, do_handshake_on_connect=False)

    def _modified(self) -> tuple[int, ...]:
        return tuple(path.stat().st_mtime_ns for path in self._paths)


class Front:
    """Accepts, reads, asks and answers; see the module's description."""

    def __init__(self, listener: socket.socket, service: Channel, setup: Setup) -> None:
        """Serve who connects to ``listener`` what ``service`` answers: to each Report an Answer and its body."""
        self._listener = listener
        self._service = service
        self._credentials = setup.credentials
        self._certificate = _Certificate(setup.cert, setup.key) if setup.cert and setup.key else None
        allowed, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        share = min(1.0, max(0, allowed - _OTHER_DESCRIPTORS) / sum(PLACES.values()))
        self._limits = {name: max(2, int(limit * share)) for name, limit in PLACES.items()}
        self._unread: dict[int, _Connection] = {}
        self._probes: dict[int, _Connection] = {}
        self._scrapes: dict[int, _Connection] = {}
        self._open: dict[int, _Connection] = {}
        """All connections by descriptor, the oldest first."""
        self._asked: tuple[Question, float, list[_Connection]] | None = None
        """The question that the service is answering, since when, and for whom."""
        self._last: dict[Question, tuple[float, dict[bool, bytes]]] = {}
        """When a probe's question was last answered, and the whole response, by whether it is the head alone."""
        self._next_turn = {"probes": 0.0, "scrapes": 0.0}
        self._refused: Counter[str] = Counter()
        self._warned: str | None = None
        self._poll = select.epoll()
        listener.setblocking(False)
        for descriptor in (listener.fileno(), service.fileno()):
            self._poll.register(descriptor, select.EPOLLIN)

    def run(self) -> None:
        """Serve until the service has gone."""
        while True:
            for descriptor, _ in self._poll.poll(self._wait()):
                if descriptor == self._listener.fileno():
                    self._accept()
                elif descriptor == self._service.fileno():
                    if not self._hear():
                        return
                elif (connection := self._open.get(descriptor)) is not None:
                    self._proceed(connection)
            self._expire()
            self._ask()

    # -- connections -----------------------------------------------------------------------------------------

    def _accept(self) -> None:
        for _ in range(_ACCEPTED_AT_ONCE):
            try:
                accepted, _address = self._listener.accept()
            except BlockingIOError:
                return
            except ConnectionError:
                continue
            except OSError:  # the machine has no descriptor, or no memory, for one more
                if self._unread:
                    self._give_way(self._unread)
                time.sleep(0.01)
                return
            accepted.setblocking(False)
            connection = _Connection(accepted, self._unread)
            self._open[connection.fd] = connection
            self._poll.register(connection.fd, select.EPOLLIN)
            if self._certificate is None:
                self._read(connection)
            if connection.request is None and self._open.get(connection.fd) is connection:
                self._enter(connection, "unread")

    def _enter(self, connection: _Connection, name: str) -> None:
        """Move a connection to a place; if that is full, the one that has been there longest gives way."""
        connection.place.pop(connection.fd, None)
        connection.place = place = self._place(name)
        place[connection.fd] = connection
        if len(place) > self._limits[name]:
            self._give_way(place)

    def _place(self, name: str) -> dict[int, _Connection]:
        return {"unread": self._unread, "probes": self._probes, "scrapes": self._scrapes}[name]

    def _give_way(self, place: dict[int, _Connection]) -> None:
        connection = next(iter(place.values()))
        if connection.request is not None and connection.rest is None:
            at, whole = self._last.get(connection.request.question, (0.0, {}))
            if whole and time.monotonic() - at <= _RECENT_SECONDS:
                self._reply(connection, whole[connection.request.head_only])
        if self._open.get(connection.fd) is connection:
            self._drop(connection, "crowded")

    def _proceed(self, connection: _Connection) -> None:
        if connection.rest is not None:
            self._write(connection)
        elif connection.request is None:
            self._read(connection)
        else:
            self._close(connection)  # the client has gone while it waited

    def _read(self, connection: _Connection) -> None:
        try:
            if self._certificate is not None and not isinstance(connection.socket, ssl.SSLSocket):
                connection.socket = self._certificate.wrap(connection.socket)
            while True:
                received = connection.socket.recv(HEAD_BYTES + 1 - len(connection.head))
                if not received:
                    self._close(connection)
                    return
                seen = max(0, len(connection.head) - 3)
                connection.head += received
                if END_OF_HEAD.search(connection.head, seen):
                    break
                if len(connection.head) > HEAD_BYTES:
                    self._refused["malformed"] += 1
                    self._reply(connection, refusal("431 Request Header Fields Too Large"))
                    return
        except (BlockingIOError, ssl.SSLWantReadError):
            return
        except OSError as error:  # it has gone, or does not speak TLS
            self._refused["malformed"] += isinstance(error, ssl.SSLError)
            self._close(connection)
            return
        request = read(connection.head, self._credentials)
        if isinstance(request, bytes):
            self._reply(connection, request)
            return
        connection.request = request
        self._poll.modify(connection.fd, 0)  # nothing but that it goes
        self._enter(connection, _kind(request.question))

    def _reply(self, connection: _Connection, whole: bytes) -> None:
        connection.rest = memoryview(whole)
        self._write(connection)

    def _write(self, connection: _Connection) -> None:
        try:
            while connection.rest:
                connection.rest = connection.rest[connection.socket.send(connection.rest) :]
            if isinstance(connection.socket, ssl.SSLSocket):
                connection.socket.unwrap()  # say that this is the end; what the client says to that is not awaited
        except (BlockingIOError, ssl.SSLWantWriteError):
            self._poll.modify(connection.fd, select.EPOLLOUT)
            return
        except OSError:  # it has gone; or SSLWantReadError after the last byte
            pass
        self._close(connection)

    def _drop(self, connection: _Connection, reason: str) -> None:
        """Close a connection at once, without what it has not taken yet."""
        self._refused[reason] += 1
        with contextlib.suppress(OSError):  # it has gone by itself
            connection.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
        self._close(connection)

    def _close(self, connection: _Connection) -> None:
        connection.place.pop(connection.fd, None)
        self._open.pop(connection.fd, None)
        connection.socket.close()

    def _expire(self) -> None:
        now = time.monotonic()
        while self._open:
            connection = next(iter(self._open.values()))
            if connection.until > now:
                return
            if connection.request is not None and connection.rest is None:
                self._reply(connection, refusal("503 Service Unavailable"))  # the service does not answer
            if self._open.get(connection.fd) is connection:
                self._drop(connection, "slow")

    # -- the service -----------------------------------------------------------------------------------------

    def _wait(self) -> float:
        """Return for how many seconds there is nothing to do unless something comes."""
        now = time.monotonic()
        times = [connection.until for connection in self._open.values()][:1]
        if self._asked is None:
            times += [turn for kind, turn in self._next_turn.items() if self._waiting(kind)]
        return max(0.0, min(times) - now) if times else -1

    def _waiting(self, kind: str) -> list[_Connection]:
        return [each for each in self._place(kind).values() if each.rest is None]

    def _ask(self) -> None:
        """Ask what those want to know who have waited longest, probes first, if the service has answered all else."""
        if self._asked is not None:
            return
        now = time.monotonic()
        for kind, turn in self._next_turn.items():
            waiting = self._waiting(kind) if turn <= now else []
            if not waiting or waiting[0].request is None:
                continue
            question = waiting[0].request.question
            same = [each for each in waiting if each.request is not None and each.request.question == question]
            warning = self._certificate.warning if self._certificate is not None else None
            report = Report(question, dict(self._refused), warning if warning != self._warned else None)
            self._refused.clear()
            self._warned = warning
            self._asked = question, now, same
            self._service.send_bytes(msgspec.json.encode(report))
            return

    def _hear(self) -> bool:
        """Hand an answer to those who wait for it; False if the service has gone."""
        try:
            answer, body = _ANSWERS.decode(self._service.recv_bytes()), self._service.recv_bytes()
        except (EOFError, OSError):
            return False
        if self._asked is None:
            return False
        question, since, waiting = self._asked
        self._asked = None
        now = time.monotonic()
        kind = _kind(question)
        self._next_turn[kind] = now + min(_PAUSE * (now - since), _MAX_PAUSE_SECONDS)
        whole = {head_only: response(answer, body, head_only=head_only) for head_only in (False, True)}
        if kind == "probes":
            self._last[question] = now, whole
        for connection in waiting:
            if self._open.get(connection.fd) is connection and connection.rest is None:
                self._reply(connection, whole[connection.request is not None and connection.request.head_only])
        return True


def _kind(question: Question) -> str:
    return "scrapes" if question.path == "/metrics" else "probes"


def main() -> None:
    """Run the process: its arguments are the descriptors of the listening socket and of the channel to the service."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # probes are answered until the service has stopped
    hide_memory()
    listener, service = socket.socket(fileno=int(sys.argv[1])), Channel(int(sys.argv[2]))
    Front(listener, service, msgspec.json.decode(service.recv_bytes(), type=Setup)).run()
