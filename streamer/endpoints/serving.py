"""The service's side of its endpoints: it binds the port, keeps the front running, and answers the front's questions.

This costs the service one thread, one process, and two descriptors, whoever connects.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
from email.utils import formatdate
from multiprocessing import Pipe
from typing import TYPE_CHECKING, Any, Final

import msgspec
import structlog
from prometheus_client import make_wsgi_app

from streamer.endpoints.access import Access
from streamer.endpoints.exchange import REFUSALS, Answer, Question, Report
from streamer.endpoints.front import TOTAL_SECONDS
from streamer.machine import start
from streamer.printable import printable
from streamer.settings import invalid_setting

if TYPE_CHECKING:
    from streamer.health import Health
    from streamer.metrics import Metrics
    from streamer.settings import MetricsSettings

log = structlog.get_logger()

_BACKLOG: Final = 4096
"""Connections that the kernel keeps until they are accepted; it allows no more by default."""
_UNSENT_BYTES: Final = 1 << 18
"""Bytes of an answer that the kernel keeps for a client."""
_RESTART_SECONDS: Final = 1.0
_FRONT = "import sys; sys.path[:] = sys.argv[3:]; from streamer.endpoints.front import main; main()"
_PASSED_ON: Final = ("LD_LIBRARY_PATH", "LC_ALL", "LANG")
"""The environment variables that the front gets; others may be secrets."""
_MAX_REPORT_BYTES: Final = 1 << 16
_REPORTS: Final = msgspec.json.Decoder(Report)
_HEADERS: Final = (("Content-Type", "text/plain; charset=utf-8"), ("Cache-Control", "no-store"))


class Endpoints:
    """The HTTP server of the three paths."""

    def __init__(self, health: Health, metrics: Metrics, *, host: str, port: int, access: Access | None = None) -> None:
        """Bind the socket.

        Raises OSError if the address is in use, SettingsError if the certificate cannot be used,
        :class:`~streamer.machine.MachineError` if this machine has no thread.
        """
        self._health = health
        self._metrics = metrics
        self._exposition = make_wsgi_app(metrics.registry)
        for reason in REFUSALS:
            metrics.connections_refused.labels(reason)  # exposed from the start, so that the first one is an increase
        self._setup = (access or Access()).setup()
        self._listener = _listen(host, port)
        self.port: int = self._listener.getsockname()[1]
        self._closing = threading.Event()
        self._front: subprocess.Popen[bytes] | None = None
        self._thread = threading.Thread(target=self._run, name="endpoints", daemon=True)
        start(self._thread)
        health.watch(self._thread.name, self._thread.is_alive)

    @classmethod
    def of(cls, settings: MetricsSettings, default_port: int, health: Health, metrics: Metrics) -> Endpoints:
        """Serve as the settings say.

        Raises SettingsError if they are inconsistent or the address is in use.
        """
        port = settings.metrics_port if settings.metrics_port is not None else default_port
        access = Access.of(settings)
        try:
            return cls(health, metrics, host=settings.metrics_host, port=port, access=access)
        except OSError as error:
            problem = f"cannot listen on {settings.metrics_host}:{port}: {error}"
            raise invalid_setting("metrics_port", problem) from None

    def close(self) -> None:
        """Stop serving."""
        self._closing.set()
        if self._front is not None:
            self._front.kill()
        self._thread.join()
        self._listener.close()

    def _run(self) -> None:
        """Keep a front running, and answer its questions."""
        while not self._closing.is_set():
            try:
                self._serve()
            except (OSError, MemoryError) as error:
                # The port's clients wait in the kernel's queue meanwhile.
                log.warning("the process that serves the metrics port cannot be started yet", error=str(error))
            self._closing.wait(_RESTART_SECONDS)

    def _serve(self) -> None:
        ours, theirs = Pipe()
        with ours:
            with theirs:
                descriptors = self._listener.fileno(), theirs.fileno()
                front = subprocess.Popen(  # noqa: S603 - this interpreter and this package
                    [sys.executable, "-I", "-c", _FRONT, *map(str, descriptors), *sys.path],
                    env={name: os.environ[name] for name in _PASSED_ON if name in os.environ},
                    pass_fds=descriptors,
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                )
            self._front = front
            if self._closing.is_set():
                front.kill()
            try:
                ours.send_bytes(msgspec.json.encode(self._setup))
                while True:
                    report = _REPORTS.decode(ours.recv_bytes(_MAX_REPORT_BYTES))
                    for reason in REFUSALS:
                        self._metrics.connections_refused.labels(reason).inc(report.refused.get(reason, 0))
                    if report.warning is not None:
                        log.warning("problem of the process that serves the metrics port", error=report.warning)
                    answer, body = self._answer(report.question)
                    answer.headers.append(("Date", formatdate(usegmt=True)))  # by the clock that stamps its records
                    ours.send_bytes(msgspec.json.encode(answer))
                    ours.send_bytes(body)
            except (EOFError, OSError, MemoryError, msgspec.MsgspecError):
                front.kill()
        code = front.wait()
        if not self._closing.is_set():
            log.warning("the process that serves the metrics port has ended and is started again", exit_code=code)

    def _answer(self, question: Question) -> tuple[Answer, bytes]:
        if question.path == "/metrics":
            return self._exposed(question)
        health = self._health
        live = question.path == "/livez"
        problems = health.liveness_problems() if live else health.readiness_problems()
        notes = [] if live or not question.admitted else health.notes()
        if not question.admitted:
            problems = [problem.partition(": ")[0] for problem in problems]
        status = "503 Service Unavailable" if problems else "200 OK"
        lines = [*(problems or ["ok"]), *notes]
        return Answer(status, [*_HEADERS]), "".join(f"{printable(line)}\n" for line in lines).encode()

    def _exposed(self, question: Question) -> tuple[Answer, bytes]:
        started: list[Answer] = []
        environ: dict[str, Any] = {
            "REQUEST_METHOD": "GET",
            "PATH_INFO": question.path,
            "HTTP_ACCEPT": question.accept,
            "HTTP_ACCEPT_ENCODING": question.accept_encoding,
        }
        try:
            body = b"".join(self._exposition(environ, lambda status, headers: started.append(Answer(status, headers))))
        except Exception:
            log.exception("metrics cannot be exposed")
            return Answer("500 Internal Server Error", [*_HEADERS]), b"see the log\n"
        return started[-1], body


def _listen(host: str, port: int) -> socket.socket:
    """Return a socket that listens; what it is set to, the connections inherit."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.create_server((host, port), family=family, backlog=_BACKLOG)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _UNSENT_BYTES)
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(1000 * TOTAL_SECONDS))
    return listener
