"""/metrics, /livez and /readyz, and the conditions behind the two probes.

Live: every watched thread lives and has shown a sign of life lately; a failing probe asks for a restart.
Ready: every named condition holds; a failing probe says which do not, and asks for patience.
"""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING, Any
from wsgiref.simple_server import WSGIRequestHandler, make_server

import structlog
from prometheus_client import make_wsgi_app
from prometheus_client.exposition import ThreadingWSGIServer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from streamer.metrics import Metrics

log = structlog.get_logger()

STUCK_AFTER_S = 60.0
"""A consume loop that has not turned for so long is stuck; its single blocking calls are bounded far below."""


class Health:
    """What the probes report; every method may be called from any thread."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics
        self._lock = threading.Lock()
        self._waiting_for: dict[str, str] = {"start": "starting"}
        self._watched: dict[str, Callable[[], bool]] = {}
        self._beat: float | None = None

    def beat(self) -> None:
        """Note that the consume loop has turned."""
        self._beat = time.monotonic()

    def watch(self, name: str, alive: Callable[[], bool]) -> None:
        """Let liveness depend on ``alive``, such as a thread's ``is_alive``."""
        with self._lock:
            self._watched[name] = alive

    def wait_for(self, condition: str, detail: str) -> None:
        """Be unready until ``condition`` holds. A change is logged once, a repetition is not."""
        with self._lock:
            known = self._waiting_for.get(condition)
            self._waiting_for[condition] = detail
            self._metrics.ready.set(0)
            self._metrics.unready.labels(condition).set(1)
        if known != detail:
            log.warning("not ready", condition=condition, detail=detail)

    def holds(self, condition: str) -> None:
        """Note that ``condition`` holds (again)."""
        with self._lock:
            gone = self._waiting_for.pop(condition, None)
            ready = not self._waiting_for
            self._metrics.ready.set(ready)
            self._metrics.unready.labels(condition).set(0)
        if gone is not None:
            log.info("ready" if ready else "condition holds", condition=condition)

    def not_live(self) -> list[str]:
        """Return what is dead or stuck."""
        with self._lock:
            watched = dict(self._watched)
        problems = [f"{name} is dead" for name, alive in watched.items() if not alive()]
        if self._beat is not None and time.monotonic() - self._beat > STUCK_AFTER_S:
            problems.append(f"the consume loop has not turned for {time.monotonic() - self._beat:.0f} s")
        return problems

    def not_ready(self) -> list[str]:
        """Return the conditions that are waited for."""
        with self._lock:
            return [f"{condition}: {detail}" for condition, detail in self._waiting_for.items()]


class _QuietHandler(WSGIRequestHandler):
    timeout = 10  # a client that sends nothing must not hold a thread for ever

    def log_message(self, *_: object) -> None:
        """Scrapes are no news."""


class HealthServer:
    """Serves the three paths from a thread of its own."""

    def __init__(self, health: Health, metrics: Metrics, *, host: str, port: int) -> None:
        """Bind; raises :class:`OSError` where the address is taken."""
        exposition = make_wsgi_app(metrics.registry)
        probes = {"/livez": health.not_live, "/readyz": health.not_ready}

        def app(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
            path = environ.get("PATH_INFO", "")
            if path == "/metrics":
                body: Iterable[bytes] = exposition(environ, start_response)
                return body
            probe = probes.get(path)
            problems = probe() if probe else ["/metrics, /livez and /readyz are here"]
            status = "200 OK" if not problems else "503 Service Unavailable" if probe else "404 Not Found"
            start_response(status, [("Content-Type", "text/plain; charset=utf-8"), ("Cache-Control", "no-store")])
            return ["\n".join([*(problems or ["ok"]), ""]).encode()]

        self._server = make_server(host, port, app, ThreadingWSGIServer, handler_class=_QuietHandler)
        self.port: int = self._server.server_port
        self._thread = threading.Thread(target=self._server.serve_forever, name="health", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop serving."""
        self._server.shutdown()
        self._server.server_close()
