"""Waiting for what another thread or process brings about, and a port for it to listen on."""

from __future__ import annotations

import contextlib
import socket
import time
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

_PATIENCE = 3


class Alive(Protocol):
    """A process that others wait for."""

    def check_alive(self) -> None:
        """Raise AssertionError where it has ended."""
        ...

    def tail(self) -> str:
        """Return the last lines of its log."""
        ...


def wait_until(
    condition: Callable[[], object],
    what: str | Callable[[], str] = "",
    *,
    seconds: float = 60,
    pause: float = 0.05,
    alive: Sequence[Alive] = (),
) -> None:
    """Wait until ``condition`` returns a true value, while the processes that must bring it about are alive.

    ``seconds`` is for a quiet machine; a busy one gets three times as many. Then it raises TimeoutError, which names
    ``what`` was waited for (a callable is called at the end only) and holds the last lines of each process's log.
    Raises AssertionError as soon as a process has ended.
    """
    seconds *= _PATIENCE
    deadline = time.monotonic() + seconds
    while not condition():
        for process in alive:
            process.check_alive()
        if time.monotonic() > deadline:
            lines = [f"waited {seconds:g} s for {what() if callable(what) else what or condition}"]
            raise TimeoutError("\n".join(lines + [process.tail() for process in alive]))
        time.sleep(pause)


def free_port(*, above: int = 0) -> int:
    """Return a port of this host that nothing listens on.

    Where ``above`` is given, nothing listens on the port that lies so far above it either, nor does that exceed 65535.
    """
    while True:
        with socket.create_server(("127.0.0.1", 0)) as probe:
            port = int(probe.getsockname()[1])
        if port + above > _HIGHEST_PORT:
            port -= above
        with contextlib.suppress(OSError), contextlib.ExitStack() as all_of_them:
            for each in {port, port + above}:
                all_of_them.enter_context(socket.create_server(("127.0.0.1", each)))
            return port


_HIGHEST_PORT = 65_535
