"""A moment by which an operation has to be over, shared by all that it waits for."""

from __future__ import annotations

import time


class Deadline:
    """``at`` is the moment, in seconds of the monotonic clock."""

    __slots__ = ("at",)

    def __init__(self, at: float) -> None:
        self.at = at

    @classmethod
    def after(cls, seconds: float) -> Deadline:
        """Return the deadline that is so many seconds away."""
        return cls(time.monotonic() + seconds)

    def left(self) -> float:
        """Return the seconds that are left, 0 if it has passed."""
        return max(0.0, self.at - time.monotonic())

    def within(self, seconds: float) -> Deadline:
        """Return the earlier one of this deadline and the one that is so many seconds away."""
        return Deadline(min(self.at, time.monotonic() + seconds))
