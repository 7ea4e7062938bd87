"""Blocking calls with a timeout of our own, for a library whose timeouts do not always hold."""

from __future__ import annotations

import queue
import threading
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable

T = TypeVar("T")


class HungError(Exception):
    """The call did not return in time; it may still be running in its abandoned thread."""


class BoundedCalls:
    """Runs calls one at a time in a thread; a call that hangs is abandoned together with the thread."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._start()

    def __call__(self, function: Callable[..., T], *arguments: Any, limit: float) -> T:
        """Return what ``function`` returns, or raise what it raises; :class:`HungError` after ``limit`` seconds."""
        self._calls.put((function, arguments))
        try:
            result, error = self._outcomes.get(timeout=limit)
        except queue.Empty:
            self._start()
            raise HungError(f"no return after {limit:g} s") from None
        if error is not None:
            raise error
        value: T = result
        return value

    def _start(self) -> None:
        # New queues too: a late result of the abandoned thread must not be taken for that of the next call.
        self._calls: queue.SimpleQueue[tuple[Callable[..., Any], tuple[Any, ...]]] = queue.SimpleQueue()
        self._outcomes: queue.SimpleQueue[tuple[Any, BaseException | None]] = queue.SimpleQueue()
        arguments = (self._calls, self._outcomes)
        threading.Thread(target=_serve, args=arguments, name=self._name, daemon=True).start()


def _serve(calls: queue.SimpleQueue[Any], outcomes: queue.SimpleQueue[Any]) -> None:
    while True:
        function, arguments = calls.get()
        try:
            outcomes.put((function(*arguments), None))
        except BaseException as error:  # noqa: BLE001 - raised again where the call was made
            outcomes.put((None, error))
