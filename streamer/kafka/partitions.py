"""Which records are in flight, and how far each partition may be committed.

Records complete in any order; a partition is committed up to its first record that is not done. An
:class:`AssignedPartition` lives from assignment to revocation, so whatever work finishes for one that was
taken away reports to an object that nobody reads any more: stale work is harmless without any check.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import datetime as dt
    from collections.abc import Callable, Iterator, Sequence

    from streamer.kafka.records import Output, Record


class Work:
    """One record in flight. A pipeline calls :meth:`done` exactly once, from any thread."""

    __slots__ = ("_wake", "outputs", "record", "since")

    def __init__(self, record: Record, wake: Callable[[], None]) -> None:
        self.record = record
        self.outputs: Sequence[Output] | None = None
        self.since: dt.datetime | None = None
        self._wake = wake

    def done(self, outputs: Sequence[Output] = (), *, since: dt.datetime | None = None) -> None:
        """Hand over what the record causes; ``since`` is the time from which its latency counts."""
        self.since = since
        self.outputs = outputs
        self._wake()


class AssignedPartition:
    """The records in flight of one assigned partition, in offset order. Used by the loop's thread only."""

    def __init__(self, topic: str, partition: int) -> None:
        self.topic = topic
        self.partition = partition
        self.bytes = 0
        self.paused = False
        self.next_offset: int | None = None
        """The offset to commit next, None before the first commit."""
        self.end_seen: int | None = None
        """The end of the partition when it was last reached; it counts transaction markers, which no record shows."""
        self._works: deque[Work] = deque()

    def __len__(self) -> int:
        return len(self._works)

    def add(self, work: Work) -> None:
        """Take a record in flight."""
        self._works.append(work)
        self.bytes += work.record.size

    def ready(self) -> Iterator[Work]:
        """Go through the works at the front that are done: those whose offsets may be committed."""
        for work in self._works:
            if work.outputs is None:
                return
            yield work

    def committed(self, next_offset: int) -> None:
        """Forget the works before ``next_offset``: their transaction is committed."""
        while self._works and self._works[0].record.offset < next_offset:
            self.bytes -= self._works.popleft().record.size
        self.next_offset = next_offset

    def lag(self, end: int) -> int | None:
        """Count the records up to ``end`` that are not committed; None while nothing is known."""
        if self._works:
            return max(0, end - self._works[0].record.offset)
        known = [offset for offset in (self.next_offset, self.end_seen) if offset is not None]
        return max(0, end - max(known)) if known else None
