"""How a shortage of this machine is waited out and reported.

A shortage (:mod:`streamer.machine`) is no record's fault, so no record is dead-lettered for it: what was attempted is
attempted again until there is enough, or is done without, and meanwhile the service is not ready and reports the
reason.
"""

from __future__ import annotations

import random
import threading
import time
from typing import TYPE_CHECKING, Final, TypeVar

from streamer.machine import Lack, MachineError, machine_error

if TYPE_CHECKING:
    from collections.abc import Callable

    from streamer.health import Health
    from streamer.metrics import Metrics

T = TypeVar("T")

CONDITION: Final = "machine"
"""The name of the readiness condition."""

_FIRST_PAUSE_S: Final = 0.1
_LONGEST_PAUSE_S: Final = 5.0
_TOLD_S: Final = 15.0
"""How long a shortage is reported that nothing waits for: longer than the pauses of those that wait."""


class Shortages:
    """Retries attempts while this machine is short of a resource. May be used by several threads.

    The condition ``machine`` is ready when no attempt waits any more, not when another, which needed less, succeeds.
    """

    def __init__(self, metrics: Metrics, health: Health) -> None:
        self._metrics = metrics
        self._health = health
        self._lock = threading.Lock()
        self._waiting: set[int] = set()
        for lack in Lack:
            metrics.machine_faults.labels(lack)  # exposed from the start, so that the first fault is an increase

    def wait_out(self, attempt: Callable[[], T], lack: MachineError | None = None) -> T:
        """Make the attempt until it meets no shortage; it has met ``lack`` before. Other exceptions pass through."""
        pause = _FIRST_PAUSE_S
        try:
            while True:
                if lack is not None:
                    self._wait_for(lack)
                    time.sleep(pause * random.uniform(0.5, 1))  # noqa: S311 - so that not all return at once
                    pause = min(2 * pause, _LONGEST_PAUSE_S)
                # The wait is outside the handler: the error's traceback would keep alive what the attempt had used.
                try:
                    return attempt()
                except Exception as error:
                    lack = machine_error(error)
                    if lack is None:
                        raise
        finally:
            self._end()

    def tell(self, lack: MachineError) -> None:
        """Count and report a shortage for which nothing waits: what it concerned was done without, or is done later."""
        self._metrics.machine_faults.labels(lack.lack).inc()
        self._health.not_ready(CONDITION, str(lack), seconds=_TOLD_S)

    def _wait_for(self, lack: MachineError) -> None:
        self._metrics.machine_faults.labels(lack.lack).inc()
        self._health.progress()
        with self._lock:
            self._waiting.add(threading.get_ident())
            self._health.not_ready(CONDITION, str(lack))

    def _end(self) -> None:
        if not self._waiting:  # the usual case
            return
        with self._lock:
            if threading.get_ident() not in self._waiting:
                return
            self._waiting.remove(threading.get_ident())
            if not self._waiting:
                self._health.ready(CONDITION)
