"""One instance's /metrics, fetched over HTTP or HTTPS, with basic authentication where its URL has a user."""

from __future__ import annotations

import base64
import http.client
import ssl
import time
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit

from streamer.scrape import ExpositionError, Scrape

if TYPE_CHECKING:
    from pathlib import Path

TIMEOUT_S = 2.0
_MAX_BYTES = 8 << 20


class TargetError(Exception):
    """A target cannot be scraped; the message is short and contains no password."""


class Target:
    """The metrics endpoint of one instance."""

    def __init__(self, url: str, *, ca: Path | None = None) -> None:
        """``ca``: a PEM file of the certificate authorities for https targets, None for the system's.

        Raises ValueError where ``url`` is not an http or https URL, and OSError for an unusable file.
        """
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError("a target is http://HOST:PORT or https://[USER:PASSWORD@]HOST:PORT")
        self._host = parts.hostname
        self._port = parts.port
        self._path = parts.path if parts.path not in ("", "/") else "/metrics"
        self._context = ssl.create_default_context(cafile=ca) if parts.scheme == "https" else None
        self._headers = {"Accept": "text/plain"}
        if parts.username is not None:
            user = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
            self._headers["Authorization"] = f"Basic {base64.b64encode(user.encode()).decode()}"
        self.name = f"{parts.hostname}:{parts.port}" if parts.port else parts.hostname
        """The name that is displayed."""

    def scrape(self) -> Scrape:
        """Fetch and parse its metrics. Raises :class:`TargetError`."""
        # Redirects are not followed, since they would send the password to another host.
        if self._context is None:
            connection = http.client.HTTPConnection(self._host, self._port, timeout=TIMEOUT_S)
        else:
            connection = http.client.HTTPSConnection(self._host, self._port, timeout=TIMEOUT_S, context=self._context)
        try:
            connection.request("GET", self._path, headers=self._headers)
            response = connection.getresponse()
            body = response.read(_MAX_BYTES + 1)
        except ssl.SSLCertVerificationError as error:
            raise TargetError(f"certificate: {error.verify_message}") from None
        except OSError as error:
            raise TargetError(error.strerror or str(error) or type(error).__name__) from None
        except http.client.HTTPException as error:
            raise TargetError(f"not HTTP: {type(error).__name__}") from None
        finally:
            connection.close()
        if response.status != http.client.OK:
            raise TargetError(f"{response.status} {response.reason}")
        if len(body) > _MAX_BYTES:
            raise TargetError(f"more than {_MAX_BYTES >> 20} MiB of metrics")
        try:
            return Scrape.parse(body.decode(errors="replace"), at=time.monotonic())
        except ExpositionError as error:
            raise TargetError(str(error)) from None
