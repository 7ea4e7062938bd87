"""Fault points: named places at which tests can kill or freeze the process, to check the state that remains.

None is armed by default. ``STREAMER_FAULT_POINT=NAME`` makes the process send itself SIGKILL when it reaches that
point; ``NAME:N`` when it reaches it for the N-th time; ``NAME:N:STOP`` sends SIGSTOP instead, which freezes the
process; ``NAME:N:HANG`` blocks the thread that reached it for ever, and ``NAME:N:DIE`` ends that thread silently. This
is for tests and not a setting; a process with an armed fault point logs a warning at startup.
"""

from __future__ import annotations

import os
import re
import signal
import threading
from enum import StrEnum

VARIABLE = "STREAMER_FAULT_POINT"

_PLAN = re.compile(r"([a-z._]+)(?::([1-9][0-9]*)(?::(KILL|STOP|HANG|DIE))?)?")


class FaultPoint(StrEnum):
    """The fault points, each right after the step that it names; for steps of worker threads, at their beginning."""

    ENCODING = "embedder.encoding"
    STORED = "embedder.stored"
    RERANKING = "reranker.reranking"
    INITIALISED = "transaction.initialised"
    BEGUN = "transaction.begun"
    PRODUCED = "transaction.produced"
    OFFSETS_SENT = "transaction.offsets_sent"
    COMMITTED = "transaction.committed"


class FaultPlan:
    """The fault to inject: at the N-th time a point is reached, or none."""

    def __init__(self, text: str) -> None:
        """Parse ``NAME[:N[:WHAT]]``; an empty text means none. Raises ValueError."""
        self.point: FaultPoint | None = None
        if not text:
            return
        parts = _PLAN.fullmatch(text)
        if parts is None or parts[1] not in {*FaultPoint}:
            raise ValueError(
                f"{text!r} is not NAME, NAME:N or NAME:N:KILL|STOP|HANG|DIE; the names are {', '.join(FaultPoint)}"
            )
        self.point = FaultPoint(parts[1])
        self._left = int(parts[2] or 1)
        self._what = parts[3] or "KILL"

    def reach(self, point: FaultPoint) -> None:
        """Inject the fault if this is the planned point."""
        if point is not self.point:
            return
        self._left -= 1
        if self._left:
            return
        if self._what == "HANG":
            threading.Event().wait()
        if self._what == "DIE":
            raise SystemExit  # ends only this thread, silently
        os.kill(os.getpid(), signal.Signals[f"SIG{self._what}"])


_plan = FaultPlan("")


def arm() -> FaultPoint | None:
    """Read the plan from the environment; return the armed fault point. Raises ValueError."""
    global _plan  # noqa: PLW0603 - one plan per process, read at every point
    _plan = FaultPlan(os.environ.get(VARIABLE, ""))
    return _plan.point


def reach(point: FaultPoint) -> None:
    """Mark a point that the process has reached."""
    _plan.reach(point)
