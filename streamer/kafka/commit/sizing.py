"""How many records a transaction takes, where a topic refuses outputs for their size."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from streamer.kafka.records import Output

_MAX_BATCH_RECORDS = 1_000
_REMEMBERED_S = 60.0


class BatchSizing:
    """The number of records in the next transaction, and the outputs that need not be tried.

    A broker refuses a client's whole batch and does not say which record is to blame: it may be one that is larger than
    the topic's ``max.message.bytes``, or all of them together. So the transactions are halved until they pass or one
    record is left, which takes about ten of them among a thousand records. What was learned is remembered for a minute:
    that records of such a size are too large, and that so many are too many. After it both are tried again, since the
    limit may have been raised.
    """

    def __init__(self) -> None:
        self.records = _MAX_BATCH_RECORDS
        """How many records the next transaction takes at most."""
        self._most = _MAX_BATCH_RECORDS
        self._most_until = 0.0
        self._refused: dict[str, tuple[int, float]] = {}

    def passed(self) -> None:
        """Note that a transaction was committed: the next one may be larger again."""
        if time.monotonic() >= self._most_until:
            self._most = _MAX_BATCH_RECORDS
        self.records = min(self._most, 2 * self.records)

    def refused(self, records: int) -> None:
        """Note that outputs of a transaction of several records were refused."""
        self.records = self._most = max(1, records // 2)
        self._most_until = time.monotonic() + _REMEMBERED_S

    def found(self, output: Output) -> None:
        """Note that an output was refused by itself, so that its neighbours are no longer suspect."""
        self.records = self._most = _MAX_BATCH_RECORDS
        size, until = self._refused.get(output.topic, (output.size, 0.0))
        if time.monotonic() >= until:
            size = output.size
        self._refused[output.topic] = min(size, output.size), time.monotonic() + _REMEMBERED_S

    def is_too_large(self, output: Output) -> bool:
        """Tell whether one that is not larger was refused by the same topic within the last minute."""
        size, until = self._refused.get(output.topic, (0, 0.0))
        return time.monotonic() < until and output.size >= size
