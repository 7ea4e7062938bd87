"""/metrics, /livez and /readyz over HTTP or HTTPS, served from a separate thread.

If a user and a password are set, /metrics requires them (basic authentication). The probes never do: a kubelet that
needs a password has it in every Pod's specification. Without the password, probes list only the names of failing
checks, no addresses and no errors.
"""

from __future__ import annotations

import base64
import binascii
import hmac
import socket
import ssl
import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from wsgiref.simple_server import WSGIRequestHandler, make_server

import structlog
from prometheus_client import make_wsgi_app
from prometheus_client.exposition import ThreadingWSGIServer

from streamer.settings import invalid_setting

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from pathlib import Path

    from streamer.health import Health
    from streamer.metrics import Metrics
    from streamer.settings import MetricsSettings

log = structlog.get_logger()

_SILENCE_S = 10
"""The time after which a client that sends nothing, or does not complete its handshake, is disconnected."""


@dataclass(frozen=True, slots=True)
class Access:
    """Credentials and TLS files of the endpoints; the default is open access over HTTP."""

    credentials: bytes | None = None
    """``user:password``."""
    cert: Path | None = None
    key: Path | None = None

    @classmethod
    def of(cls, settings: MetricsSettings) -> Access:
        """Read the settings and the password file; SettingsError if they are inconsistent."""
        password = settings.read_metrics_password()
        if settings.metrics_user and not password:
            raise invalid_setting("metrics_password", "required, or its file, because metrics_user is set")
        if password and not settings.metrics_user:
            raise invalid_setting("metrics_user", "required, because a password is set")
        if settings.metrics_user and ":" in settings.metrics_user:
            raise invalid_setting("metrics_user", "must not contain a colon")
        if (settings.metrics_cert is None) != (settings.metrics_key is None):
            missing = "metrics_key" if settings.metrics_key is None else "metrics_cert"
            raise invalid_setting(missing, "required: TLS needs a certificate and its key")
        credentials = f"{settings.metrics_user}:{password}".encode() if password else None
        return cls(credentials, settings.metrics_cert, settings.metrics_key)

    def admits(self, authorization: str) -> bool:
        """Return whether an Authorization header is correct, in constant time."""
        if self.credentials is None:
            return True
        scheme, _, encoded = authorization.partition(" ")
        try:
            given = base64.b64decode(encoded, validate=True)
        except (ValueError, binascii.Error):
            given = b""
        return hmac.compare_digest(given, self.credentials) and scheme.lower() == "basic"


class Endpoints:
    """The HTTP server of the three paths."""

    def __init__(self, health: Health, metrics: Metrics, *, host: str, port: int, access: Access | None = None) -> None:
        """Bind the socket. Raises OSError if the address is in use, SettingsError if the certificate cannot be used."""
        access = access or Access()
        exposition = make_wsgi_app(metrics.registry)
        probes = {"/livez": health.liveness_problems, "/readyz": health.readiness_problems}

        def answer(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
            path = environ.get("PATH_INFO", "")
            admitted = access.admits(environ.get("HTTP_AUTHORIZATION", ""))
            headers = [("Content-Type", "text/plain; charset=utf-8"), ("Cache-Control", "no-store")]
            if path == "/metrics" and admitted:
                body: Iterable[bytes] = exposition(environ, start_response)
                return body
            if path == "/metrics":
                headers.append(("WWW-Authenticate", 'Basic realm="metrics"'))
                start_response("401 Unauthorized", headers)
                return [b"user and password required\n"]
            probe = probes.get(path)
            problems = probe() if probe else ["/metrics, /livez and /readyz are here"]
            notes = health.notes() if path == "/readyz" and admitted else []
            if probe and not admitted:
                problems = [problem.partition(": ")[0] for problem in problems]
            status = "200 OK" if not problems else "503 Service Unavailable" if probe else "404 Not Found"
            start_response(status, headers)
            return ["\n".join([*(problems or ["ok"]), *notes, ""]).encode()]

        def app(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
            if environ["REQUEST_METHOD"] != "HEAD":
                return answer(environ, start_response)
            started: list[tuple[str, list[tuple[str, str]]]] = []
            got = {**environ, "REQUEST_METHOD": "GET"}
            size = sum(map(len, answer(got, lambda status, headers: started.append((status, headers)))))
            [(status, headers)] = started
            start_response(status, [*headers, ("Content-Length", str(size))])
            return []

        tls = _Certificate(access.cert, access.key) if access.cert and access.key else None
        kind = type("Server", (_Server,), {"tls": tls, "address_family": _family(host)})
        self._server: _Server = make_server(host, port, app, kind, handler_class=_QuietHandler)
        self.port: int = self._server.server_port
        self._thread = threading.Thread(target=self._server.serve_forever, name="endpoints", daemon=True)
        self._thread.start()
        health.watch(self._thread.name, self._thread.is_alive)

    def close(self) -> None:
        """Stop serving."""
        self._server.shutdown()
        self._server.server_close()


class _Certificate:
    """A certificate and its key, reloaded after they are renewed."""

    def __init__(self, cert: Path, key: Path) -> None:
        self._paths = cert, key
        self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        try:
            self._times = self._modified()
            self._context.load_cert_chain(cert, key)
        except (OSError, ValueError) as error:  # an SSLError is an OSError
            raise invalid_setting("metrics_cert", f"{cert} with {key}: {error}") from None

    def wrap(self, connection: socket.socket) -> socket.socket:
        """Wrap an accepted connection in TLS; the handshake happens at the first read."""
        try:
            times = self._modified()
            if times != self._times:
                self._context.load_cert_chain(*self._paths)
                self._times = times
        except (OSError, ValueError) as error:
            # A renewal is in progress; the next connection tries again.
            log.warning("cannot read the renewed certificate yet", error=str(error))
        return self._context.wrap_socket(connection, server_side=True, do_handshake_on_connect=False)

    def _modified(self) -> tuple[int, ...]:
        return tuple(path.stat().st_mtime_ns for path in self._paths)


class _Server(ThreadingWSGIServer):
    """A server with one thread per connection; errors of clients are not logged."""

    tls: _Certificate | None = None

    def get_request(self) -> tuple[Any, Any]:
        """Accept a connection."""
        connection, address = super().get_request()
        connection.settimeout(_SILENCE_S)
        return (connection if self.tls is None else self.tls.wrap(connection)), address

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Ignore clients that disconnect or do not speak TLS."""


class _QuietHandler(WSGIRequestHandler):
    timeout = _SILENCE_S

    def log_message(self, *_: object) -> None:
        """Do not log requests."""


def _family(host: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in host else socket.AF_INET
