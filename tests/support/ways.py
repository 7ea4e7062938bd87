"""A way to a server through which bytes pass freely, in small pieces, or not at all."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from enum import StrEnum

_AT_ONCE = 1 << 16
_PIECE = 256
_PAUSE_S = 0.1


class Passage(StrEnum):
    """What a way does with bytes."""

    FREE = "free"
    TRICKLING = "trickling"
    """Answers come in small pieces, with pauses: each piece in time, the whole of them not."""
    BLOCKED = "blocked"
    """Bytes are taken and not passed on, as by a network that loses all packets."""


class Way:
    """Listens on a port of its own, and connects whoever comes with ``target``, a port of this machine.

    Another target holds for those who come then, as behind a name that leads elsewhere.
    """

    def __init__(self, target: int) -> None:
        self.passage = Passage.FREE
        self.target = target
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=64)
        self.port: int = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        """Accept nobody any more."""
        self._listener.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                near, _ = self._listener.accept()
                try:
                    far = socket.create_connection(("127.0.0.1", self.target))
                except OSError:
                    near.close()
                    continue
                for source, target, is_answer in ((near, far, False), (far, near, True)):
                    threading.Thread(target=self._pass_on, args=(source, target, is_answer), daemon=True).start()

    def _pass_on(self, source: socket.socket, target: socket.socket, is_answer: bool) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(_AT_ONCE):
                while data:
                    while self.passage is Passage.BLOCKED:
                        time.sleep(0.01)
                    is_slow = is_answer and self.passage is Passage.TRICKLING
                    piece, data = (data[:_PIECE], data[_PIECE:]) if is_slow else (data, b"")
                    target.sendall(piece)
                    if is_slow:
                        time.sleep(_PAUSE_S)
        for each in (source, target):
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
