"""Liveness and readiness of this process, as the two probes report them (:mod:`streamer.endpoints`).

Live: every watched thread is alive, and none has been busy with one call for too long; a failing probe asks for a
restart.
Ready: no condition is reported as not ready; a failing probe lists those that are, and asks for patience.
"""

from __future__ import annotations

import math
import threading
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING

import structlog

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from streamer.metrics import Metrics

log = structlog.get_logger()

LOOP_STALL_TIMEOUT_S = 60.0
"""A consume loop that has not iterated for so long is stuck; its blocking calls have far shorter timeouts."""
_LOG_PAUSE_S = 10.0


class Health:
    """The state that the probes report; every method may be called from any thread."""

    def __init__(self, metrics: Metrics, *, worker_stall_timeout: float = 300.0) -> None:
        """``worker_stall_timeout``: seconds that a worker thread may be busy with one call."""
        self._metrics = metrics
        self._worker_stall_timeout = worker_stall_timeout
        self._lock = threading.Lock()
        self._not_ready: dict[str, str] = {"start": "starting"}
        self._until: dict[str, float] = {}
        """By condition that is not ready: when it becomes ready by itself."""
        self._quiet_until: dict[str, float] = {}
        """By condition: until when another reason is not logged."""
        self._watched: dict[str, Callable[[], bool]] = {}
        self._beat: float | None = None
        self._busy_since: dict[str, float] = {}
        self._notes: dict[str, tuple[str, float]] = {}
        """By name: what is noted, and until when."""

    def beat(self) -> None:
        """Note that the consume loop has begun another iteration."""
        self._beat = time.monotonic()
        if self._until:
            for condition in [each for each, until in self._until.copy().items() if self._beat >= until]:
                self.ready(condition)

    def watch(self, name: str, alive: Callable[[], bool]) -> None:
        """Make liveness depend on ``alive``, such as a thread's ``is_alive``."""
        with self._lock:
            self._watched[name] = alive

    @contextmanager
    def busy(self) -> Iterator[None]:
        """Make liveness depend on this block: it must end, or report :meth:`progress`, in time."""
        name = threading.current_thread().name
        self._busy_since[name] = time.monotonic()
        try:
            yield
        finally:
            self._busy_since.pop(name, None)

    def progress(self) -> None:
        """Note that the calling worker is not stuck; a failed attempt counts as progress too."""
        name = threading.current_thread().name
        if name in self._busy_since:
            self._busy_since[name] = time.monotonic()

    @contextmanager
    def idle(self) -> Iterator[None]:
        """Count the calling worker as idle in this block: it waits for others, or has a timeout of its own."""
        name = threading.current_thread().name
        was_busy = self._busy_since.pop(name, None) is not None
        try:
            yield
        finally:
            if was_busy:
                self._busy_since[name] = time.monotonic()

    def not_ready(self, condition: str, detail: str, *, seconds: float | None = None) -> None:
        """Report a condition as not ready, with the reason. A change is logged; a repetition is not.

        Reasons that alternate, as those of several servers do, are logged once in ten seconds.
        With ``seconds`` it becomes ready by itself after that time, as long as the consume loop iterates; a condition
        that was reported without such a limit stays as it was reported, since somebody will end it.
        """
        now = time.monotonic()
        with self._lock:
            known = self._not_ready.get(condition)
            if seconds is not None and known is not None and condition not in self._until:
                return
            self._not_ready[condition] = detail
            self._until.pop(condition, None)
            if seconds is not None:
                self._until[condition] = now + seconds
            self._metrics.ready.set(0)
            self._metrics.unready.labels(condition).set(1)
            tell = known is None or (known != detail and now >= self._quiet_until.get(condition, 0.0))
            if tell:
                self._quiet_until[condition] = now + _LOG_PAUSE_S
        if tell:
            log.warning("condition not ready", condition=condition, detail=detail)

    def ready(self, condition: str) -> None:
        """Report a condition as ready (again)."""
        if condition not in self._not_ready:  # the usual case: pipelines report it with each event
            return
        with self._lock:
            gone = self._not_ready.pop(condition, None)
            self._until.pop(condition, None)
            ready = not self._not_ready
            self._metrics.ready.set(ready)
            self._metrics.unready.labels(condition).set(0)
        if gone is not None:
            log.info("condition ready", condition=condition, service_ready=ready)

    def is_ready(self, condition: str) -> bool:
        """Tell whether a condition is ready."""
        return condition not in self._not_ready

    def note(self, name: str, text: str | None, *, seconds: float = math.inf) -> None:
        """Let the readiness probe tell this too, ready or not, for so long; None: no longer. It depends on nothing."""
        if text is None:
            self._notes.pop(name, None)
        else:
            self._notes[name] = text, time.monotonic() + seconds

    def notes(self) -> list[str]:
        """Return what was noted and still holds."""
        now = time.monotonic()
        return [f"{name}: {text}" for name, (text, until) in self._notes.copy().items() if now < until]

    def liveness_problems(self) -> list[str]:
        """Return the threads that are dead or stuck, one line each."""
        with self._lock:
            watched = dict(self._watched)
        problems = [f"{name} is dead" for name, alive in watched.items() if not alive()]
        now = time.monotonic()
        if self._beat is not None and now - self._beat > min(self._worker_stall_timeout, LOOP_STALL_TIMEOUT_S):
            problems.append(f"the consume loop has not iterated for {now - self._beat:.0f} s")
        problems += [
            f"{name} has been busy with one call for {now - since:.0f} s"
            for name, since in self._busy_since.copy().items()
            if now - since > self._worker_stall_timeout
        ]
        return problems

    def readiness_problems(self) -> list[str]:
        """Return the conditions that are not ready, each with its reason."""
        with self._lock:
            return [f"{condition}: {detail}" for condition, detail in self._not_ready.items()]
