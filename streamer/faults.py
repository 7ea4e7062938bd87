"""Named points at which a process can be made to die, so that tests can show what a crash there leaves behind.

Nothing is armed by default. ``STREAMER_FAULT_POINT=NAME`` makes the process kill itself, as by SIGKILL, when it
reaches that point; ``NAME:N`` when it reaches it for the N-th time. It is no setting: nobody wants it in production,
and a process that has it set says so when it starts.
"""

from __future__ import annotations

import os
import signal
from enum import StrEnum

VARIABLE = "STREAMER_FAULT_POINT"


class FaultPoint(StrEnum):
    """The points, each right after what it names."""

    STORED = "embedder.stored"
    INITIALISED = "transaction.initialised"
    BEGUN = "transaction.begun"
    PRODUCED = "transaction.produced"
    OFFSETS_SENT = "transaction.offsets_sent"
    COMMITTED = "transaction.committed"


class FaultPlan:
    """Where this process is to die: at the ``passage``-th time that ``point`` is reached, or nowhere."""

    def __init__(self, text: str) -> None:
        """Read ``NAME`` or ``NAME:N``; empty is nowhere. Raises ValueError."""
        name, _, passage = text.partition(":")
        self.point = FaultPoint(name) if name else None
        self.left = int(passage or 1)
        if self.left < 1:
            raise ValueError(f"{text}: passages are counted from 1")

    def reach(self, point: FaultPoint) -> None:
        """Die here where the plan says so."""
        if point is not self.point:
            return
        self.left -= 1
        if self.left == 0:
            os.kill(os.getpid(), signal.SIGKILL)


plan = FaultPlan("")
"""What :func:`arm` has put in place."""


def arm() -> FaultPoint | None:
    """Take the plan from the environment; return where the process will die. Raises ValueError."""
    global plan  # noqa: PLW0603 - one plan a process, read at every point
    plan = FaultPlan(os.environ.get(VARIABLE, ""))
    return plan.point


def reach(point: FaultPoint) -> None:
    """Mark a point that the process has reached."""
    plan.reach(point)
