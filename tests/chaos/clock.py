"""The time of a plan, which a busy machine may take longer for."""

from __future__ import annotations

import threading
import time

_SLOW = 0.5


class Clock:
    """Seconds since the start of the faults, at half speed while a lane is behind its plan.

    A machine that starts processes slowly delays the faults. Inputs that went by the clock on the wall would then be
    over before the faults are; by this clock both stay together, and neither ever stands still.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._began = self._looked = time.monotonic()
        self._now = 0.0
        self._due: dict[str, float] = {}

    def wall(self) -> float:
        """Return the true seconds since the start."""
        return time.monotonic() - self._began

    def now(self) -> float:
        """Return the time of the plan."""
        with self._lock:
            looked = time.monotonic()
            is_late = min(self._due.values(), default=self._now) < self._now
            self._now += (looked - self._looked) * (_SLOW if is_late else 1.0)
            self._looked = looked
            return self._now

    def expect(self, lane: str, due: float) -> None:
        """Note when the next step of a lane is due; infinity after the last one."""
        with self._lock:
            self._due[lane] = due

    def sleep_until(self, at: float) -> None:
        """Return when the time of the plan is `at`."""
        while (left := at - self.now()) > 0:
            time.sleep(min(left, 0.2))
