"""A command on a pseudo-terminal, and what it has shown there."""

from __future__ import annotations

import contextlib
import fcntl
import os
import pty
import re
import struct
import subprocess
import termios
import threading
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

_CONTROL = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


class Terminal:
    """Keeps all that comes out of a pseudo-terminal, from a thread of its own."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._shown: list[bytes] = []
        self._thread = threading.Thread(target=self._drain, daemon=True)
        self._thread.start()

    def _drain(self) -> None:
        with contextlib.suppress(OSError):  # the end, where the last process has closed it
            while data := os.read(self._descriptor, 65_536):
                self._shown.append(data)

    def text(self) -> str:
        """Return everything shown so far, frame after frame, without what moves the cursor and colours."""
        return _CONTROL.sub("", b"".join(self._shown).decode(errors="replace"))

    def join(self) -> None:
        self._thread.join(30)


@contextlib.contextmanager
def on_a_terminal(
    command: Sequence[str | Path], environment: Mapping[str, str], *, width: int = 150, height: int = 50
) -> Iterator[tuple[subprocess.Popen[bytes], Terminal]]:
    """Run a command on a terminal of that size; it is killed at the end where it still runs."""
    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", height, width, 0, 0))
    variables = {**environment, "TERM": "xterm-256color"}
    process = subprocess.Popen(command, env=variables, stdin=slave, stdout=slave, stderr=slave)
    os.close(slave)
    terminal = Terminal(master)
    try:
        yield process, terminal
    finally:
        process.kill()
        process.wait()
        terminal.join()
        os.close(master)
