"""The two services as child processes, observed through their probes and metrics."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from typing import TYPE_CHECKING, Self

from streamer.process import start_ending_with_parent
from streamer.scrape import Scrape

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

_START_TIMEOUT_S = 300.0
_STOP_TIMEOUT_S = 15.0


class ServiceError(Exception):
    """A service did not start, or ended; the message contains the end of its log."""


class ServiceProcess:
    """One running ``streamer embed`` or ``streamer rerank``, configured only by environment variables."""

    def __init__(self, command: str, variables: Mapping[str, str], *, log: Path, port: int) -> None:
        self.command = command
        self.url = f"http://127.0.0.1:{port}"
        self._log = log
        with log.open("wb") as output:
            # In a session of its own: Ctrl-C must reach only the demo, which then stops its services in order.
            self._process = start_ending_with_parent(
                [sys.executable, "-m", "streamer", command],
                env={
                    **os.environ,
                    **variables,
                    "STREAMER_METRICS_PORT": str(port),
                    "STREAMER_METRICS_HOST": "127.0.0.1",
                },
                stdout=output,
                stderr=output,
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def await_ready(self) -> None:
        """Return when /readyz says ready. Raises :class:`ServiceError`."""
        deadline = time.monotonic() + _START_TIMEOUT_S
        while time.monotonic() < deadline:
            self.check()
            try:
                self._get("/readyz")
            except OSError:
                time.sleep(0.1)
            else:
                return
        raise ServiceError(f"streamer {self.command} was not ready in {_START_TIMEOUT_S:.0f} s:\n{self.log_tail()}")

    def check(self) -> None:
        """Raise :class:`ServiceError` if the process has ended."""
        if self._process.poll() is not None:
            raise ServiceError(
                f"streamer {self.command} ended with exit code {self._process.returncode}:\n{self.log_tail()}"
            )

    def metrics(self) -> Scrape:
        """Scrape /metrics."""
        return Scrape.parse(self._get("/metrics"), at=time.monotonic())

    def stop(self) -> None:
        """End the process by SIGTERM, or by SIGKILL if it does not stop."""
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)
            try:
                self._process.wait(_STOP_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
        if self._process.stdin:
            self._process.stdin.close()

    def _get(self, path: str) -> str:
        with urllib.request.urlopen(self.url + path, timeout=5) as response:  # noqa: S310 - our own loopback URL
            return str(response.read().decode())

    def log_tail(self) -> str:
        """Return the last lines of its log."""
        return "\n".join(self._log.read_text(encoding="utf-8", errors="replace").splitlines()[-20:])
