"""Whether this process lives and is ready: what stands behind the two probes (:mod:`streamer.endpoints`).

Live: every watched thread lives, and none has been at one piece of work for longer than any takes; a failing probe asks
for a restart.
Ready: every named condition holds; a failing probe says which do not, and asks for patience.
"""

from __future__ import annotations

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
"""A consume loop that has not turned for so long is stuck at the latest; its blocking calls are bounded far below."""


class Health:
    """What the probes report; every method may be called from any thread."""

    def __init__(self, metrics: Metrics, *, worker_stall_timeout: float = 300.0) -> None:
        """``worker_stall_timeout``: seconds that a worker thread may take for one piece of work."""
        self._metrics = metrics
        self._worker_stall_timeout = worker_stall_timeout
        self._lock = threading.Lock()
        self._waiting_for: dict[str, str] = {"start": "starting"}
        self._watched: dict[str, Callable[[], bool]] = {}
        self._beat: float | None = None
        self._busy_since: dict[str, float] = {}

    def beat(self) -> None:
        """Note that the consume loop has turned."""
        self._beat = time.monotonic()

    def watch(self, name: str, alive: Callable[[], bool]) -> None:
        """Let liveness depend on ``alive``, such as a thread's ``is_alive``."""
        with self._lock:
            self._watched[name] = alive

    @contextmanager
    def busy(self) -> Iterator[None]:
        """Let liveness depend on the end of this block, or on a :meth:`progress` in it: it is a worker's work."""
        name = threading.current_thread().name
        self._busy_since[name] = time.monotonic()
        try:
            yield
        finally:
            self._busy_since.pop(name, None)

    def progress(self) -> None:
        """Note that the calling worker has got on with its work, and be it by a failed attempt."""
        name = threading.current_thread().name
        if name in self._busy_since:
            self._busy_since[name] = time.monotonic()

    @contextmanager
    def idle(self) -> Iterator[None]:
        """Take the calling worker for idle meanwhile: it waits for others, or for what has a time limit of its own."""
        name = threading.current_thread().name
        was_busy = self._busy_since.pop(name, None) is not None
        try:
            yield
        finally:
            if was_busy:
                self._busy_since[name] = time.monotonic()

    def wait_for(self, condition: str, detail: str) -> None:
        """Be unready until ``condition`` holds. A change is logged once, a repetition is not."""
        with self._lock:
            known = self._waiting_for.get(condition)
            self._waiting_for[condition] = detail
            self._metrics.ready.set(0)
            self._metrics.unready.labels(condition).set(1)
        if known != detail:
            log.warning("not ready", condition=condition, detail=detail)

    def holds(self, condition: str) -> None:
        """Note that ``condition`` holds (again)."""
        if condition not in self._waiting_for:  # as mostly: the pipelines say so with each event
            return
        with self._lock:
            gone = self._waiting_for.pop(condition, None)
            ready = not self._waiting_for
            self._metrics.ready.set(ready)
            self._metrics.unready.labels(condition).set(0)
        if gone is not None:
            log.info("ready" if ready else "condition holds", condition=condition)

    def not_live(self) -> list[str]:
        """Return what is dead or stuck."""
        with self._lock:
            watched = dict(self._watched)
        problems = [f"{name} is dead" for name, alive in watched.items() if not alive()]
        now = time.monotonic()
        if self._beat is not None and now - self._beat > min(self._worker_stall_timeout, LOOP_STALL_TIMEOUT_S):
            problems.append(f"the consume loop has not turned for {now - self._beat:.0f} s")
        problems += [
            f"{name} has been at one piece of work for {now - since:.0f} s"
            for name, since in self._busy_since.copy().items()
            if now - since > self._worker_stall_timeout
        ]
        return problems

    def not_ready(self) -> list[str]:
        """Return the conditions that are waited for."""
        with self._lock:
            return [f"{condition}: {detail}" for condition, detail in self._waiting_for.items()]
