"""What a service gives to the consume loop, a pipeline and the request to stop, and the fault that ends the loop."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Sequence

    from streamer.kafka.records import InFlightRecord


class FatalError(Exception):
    """The service cannot go on; the process ends with exit code 1 and its supervisor starts it again."""


class Stop(threading.Event):
    """The request to stop, and when it was made: ``at`` on the monotonic clock, 0.0 before."""

    at = 0.0

    def set(self) -> None:
        """Request the stop; only the first request sets the time."""
        self.at = self.at or time.monotonic()
        super().set()


class Pipeline(Protocol):
    """Turns records into outputs, in threads of its own."""

    def submit(self, records: Sequence[InFlightRecord]) -> None:
        """Take records in flight, each partition's in offset order, and call ``complete`` of each one later.

        Must not block.
        """
        ...
