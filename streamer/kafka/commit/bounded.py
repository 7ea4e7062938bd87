"""Calls with a time limit, for a library whose own timeouts do not always hold."""

from __future__ import annotations

import queue
import threading
import weakref
from typing import TYPE_CHECKING, Any, TypeVar

from streamer.machine import start

if TYPE_CHECKING:
    from collections.abc import Callable

T = TypeVar("T")


class HungError(Exception):
    """The call did not return in time; it may still be running in its abandoned thread."""


class BoundedCalls:
    """Runs calls one at a time in a thread; a call that hangs is abandoned together with the thread.

    The thread is started for the first call, and for the next one after a call that hung.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._calls: queue.SimpleQueue[tuple[Callable[..., Any], tuple[Any, ...]] | None] | None = None

    def __call__(self, function: Callable[..., T], *arguments: Any, limit: float) -> T:
        """Return what ``function`` returns, or raise what it raises; :class:`HungError` after ``limit`` seconds.

        Raises :class:`~streamer.machine.MachineError` if this machine has no thread for the call, which is not made.
        """
        calls = self._calls or self._start()
        calls.put((function, arguments))
        try:
            result, error = self._outcomes.get(timeout=limit)
        except queue.Empty:
            self._end()
            self._calls = None
            raise HungError(f"no return after {limit:g} s") from None
        if error is not None:
            raise error
        value: T = result
        return value

    def _start(self) -> queue.SimpleQueue[tuple[Callable[..., Any], tuple[Any, ...]] | None]:
        # New queues too: a late result of the abandoned thread must not be taken for that of the next call.
        calls: queue.SimpleQueue[tuple[Callable[..., Any], tuple[Any, ...]] | None] = queue.SimpleQueue()
        self._outcomes: queue.SimpleQueue[tuple[Any, BaseException | None]] = queue.SimpleQueue()
        start(threading.Thread(target=_serve, args=(calls, self._outcomes), name=self._name, daemon=True))
        # The thread ends with this object, or when it is abandoned, as soon as its call has returned.
        self._end = weakref.finalize(self, calls.put, None)
        self._calls = calls
        return calls


def _serve(calls: queue.SimpleQueue[Any], outcomes: queue.SimpleQueue[Any]) -> None:
    while (call := calls.get()) is not None:
        function, arguments = call
        try:
            outcomes.put((function(*arguments), None))
        except BaseException as error:  # noqa: BLE001 - raised again where the call was made
            outcomes.put((None, error))
        del call, function, arguments  # or this thread would keep a client alive until its next call
