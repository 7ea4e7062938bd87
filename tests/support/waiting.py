"""Waiting for what another thread or process brings about, and a port for it to listen on."""

from __future__ import annotations

import contextlib
import secrets
import socket
import time
from collections import deque
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
    """Return a port of this host that nothing listens on, nor on the one that lies ``above`` it.

    It stays free until it is used: connections get no such port from the kernel, and another process of the tests gets
    another one, since a port is reserved by a name that only one process can have.
    """
    for port in secrets.SystemRandom().sample(_PORTS, len(_PORTS)):
        with contextlib.suppress(OSError), contextlib.ExitStack() as held:
            reserved = held.enter_context(socket.socket(socket.AF_UNIX))
            reserved.bind(f"\0streamer-tests-port-{port}")
            for each in {port, port + above}:
                socket.create_server(("127.0.0.1", each)).close()
            _reserved.append(held.pop_all())
            while len(_reserved) > _MOST_RESERVED:
                _reserved.popleft().close()
            return port
    raise RuntimeError("no port is free")


_PORTS = range(10_000, 20_000)
"""Below those that the kernel gives to connections, and those of local brokers."""
_MOST_RESERVED = 100
"""On earlier ones servers listen by now, or have ended."""
_reserved: deque[contextlib.ExitStack] = deque()
