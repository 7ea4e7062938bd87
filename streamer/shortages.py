"""Waits while this machine is short of a resource: disk space, descriptors, processes or memory.

A shortage is not the upload's fault, so no upload is dead-lettered for it: its attempt is postponed until there is
enough again, and meanwhile the service is not ready and reports the reason.
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

    def wait_out(self, attempt: Callable[[], None]) -> None:
        """Make the attempt, and retry it after each :class:`MachineError`; other exceptions pass through."""
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
