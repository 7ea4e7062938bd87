"""Named points at which a process can be made to die or to freeze, so that tests can show what that leaves behind.

Nothing is armed by default. ``STREAMER_FAULT_POINT=NAME`` makes the process send itself SIGKILL when it reaches that
point; ``NAME:N`` when it reaches it for the N-th time; ``NAME:N:STOP`` sends SIGSTOP instead, which makes a zombie of
it; ``NAME:N:HANG`` and ``NAME:N:DIE`` let the thread that reached it stand there for ever, or end without a word. This
is no setting: nobody wants it in production, and a process that has it says so when it starts.
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
    """The points, each right after what it names; of what a worker does, where it begins."""

    ENCODING = "embedder.encoding"
    STORED = "embedder.stored"
    RERANKING = "reranker.reranking"
    INITIALISED = "transaction.initialised"
    BEGUN = "transaction.begun"
    PRODUCED = "transaction.produced"
    OFFSETS_SENT = "transaction.offsets_sent"
    COMMITTED = "transaction.committed"


class FaultPlan:
    """Where a process is to be hit: at a point's N-th passage, or nowhere."""

    def __init__(self, text: str) -> None:
        """Read ``NAME[:N[:WHAT]]``; empty is nowhere. Raises ValueError."""
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
        """Hit this process where the plan says so."""
        if point is not self.point:
            return
        self._left -= 1
        if self._left:
            return
        if self._what == "HANG":
            threading.Event().wait()
        if self._what == "DIE":
            raise SystemExit  # which ends a thread without a word, and nothing else
        os.kill(os.getpid(), signal.Signals[f"SIG{self._what}"])


_plan = FaultPlan("")


def arm() -> FaultPoint | None:
    """Take the plan from the environment; return the point at which this process will be hit. Raises ValueError."""
    global _plan  # noqa: PLW0603 - one plan a process, read at every point
    _plan = FaultPlan(os.environ.get(VARIABLE, ""))
    return _plan.point


def reach(point: FaultPoint) -> None:
    """Mark a point that the process has reached."""
    _plan.reach(point)
