"""Waiting out what this machine lacks: room on the disk, descriptors, processes, memory.

No upload is to blame for it, so none is given up: its attempt is put off until there is enough again, and the service
says meanwhile that it is not ready, and why.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Final

import tenacity

from streamer.video.errors import Lack, MachineError

if TYPE_CHECKING:
    from collections.abc import Callable

    from streamer.health import Health
    from streamer.metrics import Metrics

CONDITION: Final = "machine"
_LONGEST_PAUSE_S: Final = 5.0


class Shortages:
    """Repeats attempts for as long as this machine lacks what they need; from several threads at once.

    The condition ``machine`` holds when nobody waits any more, not when somebody else, who needed less, has succeeded.
    """

    def __init__(self, metrics: Metrics, health: Health) -> None:
        self._metrics = metrics
        self._health = health
        self._lock = threading.Lock()
        self._waiting: set[int] = set()
        for lack in Lack:
            metrics.machine_faults.labels(lack)  # shown before there is one, so that the first is seen as an increase

    def wait_out(self, attempt: Callable[[], None]) -> None:
        """Make the attempt, again after each :class:`MachineError`; what else it raises passes through."""
        retrying = tenacity.Retrying(
            retry=tenacity.retry_if_exception_type(MachineError),
            wait=tenacity.wait_exponential_jitter(multiplier=0.1, max=_LONGEST_PAUSE_S),
            before_sleep=self._note,
        )
        try:
            retrying(attempt)
        finally:
            self._end()

    def _note(self, state: tenacity.RetryCallState) -> None:
        error = state.outcome.exception() if state.outcome else None
        if not isinstance(error, MachineError):
            return
        self._metrics.machine_faults.labels(error.lack).inc()
        self._health.progress()
        with self._lock:
            self._waiting.add(threading.get_ident())
            self._health.not_ready(CONDITION, str(error))

    def _end(self) -> None:
        with self._lock:
            if threading.get_ident() not in self._waiting:
                return
            self._waiting.remove(threading.get_ident())
            if not self._waiting:
                self._health.ready(CONDITION)
