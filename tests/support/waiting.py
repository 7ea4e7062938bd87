"""Waiting for what another thread or process brings about, and a port for it to listen on."""

from __future__ import annotations

import socket
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable


def wait_until(condition: Callable[[], object], what: str = "", *, seconds: float = 60, pause: float = 0.02) -> None:
    """Ask again and again until a condition is true. Raises AssertionError, which names ``what``, after ``seconds``."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"waited {seconds:g} s for {what or condition}"
        time.sleep(pause)


def free_port() -> int:
    """Return a port of this host that nothing listens on."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])
