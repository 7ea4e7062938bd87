"""Which records are in flight, and how far each partition may be committed.

Records complete in any order, and are committed in any order (:mod:`streamer.kafka.inflight.offsets`). An
:class:`AssignedPartition` lives from assignment to revocation, so whatever work finishes for one that was
taken away reports to an object that nobody reads any more: stale work is harmless without any check, and
what is marked so is skipped only to save the work.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

from streamer.kafka.inflight.offsets import WINDOW, Progress

if TYPE_CHECKING:
    import datetime as dt
    from collections.abc import Iterable, Iterator

    from streamer.kafka.inflight.record import InFlightRecord
    from streamer.kafka.records import Record


_RESUME_AT = 0.5
"""Half empty, so that the flow does not flicker."""


class AssignedPartition:
    """The records in flight of one assigned partition, in offset order. Used by the loop's thread only.

    Until it is known what the group has committed, no record of it may be worked on: it may be done already.
    """

    def __init__(self, topic: str, partition: int, log: str) -> None:
        self.topic = topic
        self.partition = partition
        self.log = log
        self.paused = False
        self.known = False
        """Whether what the group has committed is known."""
        self.progress: Progress | None = None
        """What is committed, None where nothing ever was, or nothing is known yet."""
        self.last_timestamp: dt.datetime | None = None
        """That of the last record that came."""
        self._in_flight: deque[InFlightRecord] = deque()
        self._received = 0
        # Counted as they come and go: adding thousands of records up at each turn took a tenth of a backlog's time.
        self._sizes: dict[int, int] = {}
        self._bytes = 0
        self._completed_offsets: set[int] = set()
        self._completed: deque[InFlightRecord] = deque()

    def __len__(self) -> int:
        return len(self._in_flight)

    @property
    def bytes(self) -> int:
        """Bytes of the records in flight and of what they have caused so far."""
        self._count_completed()
        return self._bytes

    @property
    def completed(self) -> int:
        """How many of the records in flight are done."""
        self._count_completed()
        return len(self._completed_offsets)

    def _count_completed(self) -> None:
        while self._completed:
            in_flight = self._completed.popleft()
            offset = in_flight.record.offset
            if offset in self._sizes:
                self._completed_offsets.add(offset)
                self._count(offset, in_flight.size)

    def _count(self, offset: int, size: int) -> None:
        self._bytes += size - self._sizes.get(offset, 0)
        self._sizes[offset] = size

    def _forget(self, in_flight: InFlightRecord) -> None:
        offset = in_flight.record.offset
        self._bytes -= self._sizes.pop(offset, 0)  # 0: a log that was cut off has given it twice
        self._completed_offsets.discard(offset)

    def add(self, in_flight: InFlightRecord) -> bool:
        """Take a record in flight; False where it is done and committed already, by an earlier owner perhaps."""
        self._received = in_flight.record.offset + 1
        self.last_timestamp = in_flight.record.timestamp
        if self.progress is not None and self.progress.includes(in_flight.record.offset):
            return False
        self._in_flight.append(in_flight)
        self._count(in_flight.record.offset, in_flight.size)
        in_flight.completed = self._completed
        return True

    def reached_end(self, end: int) -> None:
        """Take note that everything readable before ``end`` has come: what is left there are markers and aborted."""
        self._received = max(self._received, end)

    @property
    def oldest(self) -> Record | None:
        """The first record in flight, of which none before it is left to be done. May be read from any thread."""
        try:
            return self._in_flight[0].record
        except IndexError:
            return None

    @property
    def position(self) -> int:
        """The offset from which on nothing has come yet. May be read from any thread."""
        return max(self._received, self.committed_offset or 0)

    @property
    def committed_offset(self) -> int | None:
        """What the group has committed; None where nothing, or nothing is known. May be read from any thread."""
        progress = self.progress
        return progress.offset if progress is not None else None

    @property
    def has_skipped(self) -> bool:
        """Whether nothing is in flight and yet there is something to commit: markers or lost records, passed over."""
        return self.known and not self._in_flight and self._received > (self.committed_offset or 0)

    def start_from(self, progress: Progress | None) -> list[InFlightRecord]:
        """Take what the group has committed as known; return the works that are left to be done."""
        self.known = True
        if progress is not None:
            self.mark_committed(progress)
        return list(self._in_flight)

    def committable(self) -> Iterator[InFlightRecord]:
        """Go through the works that are done and may be committed, in offset order."""
        left = self.completed
        end: int | None = None
        for in_flight in self._in_flight:
            offset = in_flight.record.offset
            if not left or (end is not None and offset >= end):
                return
            if offset in self._completed_offsets:
                left -= 1
                yield in_flight
            elif end is None:
                end = offset + WINDOW

    def progress_after(self, records: Iterable[InFlightRecord]) -> Progress:
        """Say what is to be committed once ``works`` are done too."""
        done = {each.record.offset for each in records}
        offset = next(
            (in_flight.record.offset for in_flight in self._in_flight if in_flight.record.offset not in done),
            self._received,
        )
        ahead = done if self.progress is None else done | self.progress.ahead
        while offset in ahead:  # what an earlier owner has done, and has not come here again yet
            offset += 1
        return Progress(offset, frozenset(each for each in ahead if each > offset))

    def mark_committed(self, progress: Progress) -> None:
        """Forget the works that are done as ``progress`` says: their transaction is committed."""
        records = self._in_flight
        while records and records[0].record.offset < progress.offset:
            self._forget(records.popleft())
        if progress.ahead:
            for in_flight in records:
                if in_flight.record.offset in progress.ahead:
                    self._forget(in_flight)
            self._in_flight = deque(in_flight for in_flight in records if in_flight.record.offset not in progress.ahead)
        self.progress = progress

    def abandon(self) -> int:
        """Mark what is in flight as stale and return how many records that are.

        The last ones first: a pipeline that looks meanwhile must not pass over a record and work on a later one.
        """
        for in_flight in reversed(self._in_flight):
            in_flight.revoked = True
        return len(self._in_flight)

    def fullness(self, most_records: int, most_bytes: int) -> float:
        """Return how full the queue is, 1 being full by either measure."""
        return max(len(self._in_flight) / most_records, self.bytes / most_bytes)


class Assignment:
    """The partitions of this instance and the budget that they share.

    A partition is full when it holds its share of the budget, or when all together hold all of it: one
    whose front is a slow clip cannot take the room of the others. ``max_records`` and ``max_bytes`` may be
    overrun by what the client hands over at once, no further.
    """

    def __init__(self, *, max_records: int, max_bytes: int) -> None:
        self._max_records = max_records
        self._max_bytes = max_bytes
        self._partitions: dict[int, AssignedPartition] = {}

    def __len__(self) -> int:
        return len(self._partitions)

    def __iter__(self) -> Iterator[AssignedPartition]:
        return iter(self._partitions.values())

    def get(self, partition: int | None) -> AssignedPartition | None:
        """Return an assigned partition, None for one that is not (any more)."""
        return self._partitions.get(partition) if partition is not None else None

    def add(self, topic: str, partition: int, log: str) -> None:
        """Start afresh with a newly assigned partition; ``log`` is the name that its records bear."""
        self._partitions[partition] = AssignedPartition(topic, partition, log)

    def remove(self, partition: int) -> int:
        """Forget a partition and return how many records in flight are left to its next owner."""
        removed = self._partitions.pop(partition, None)
        return removed.abandon() if removed is not None else 0

    def drop_unknown(self, partitions: Iterable[int]) -> None:
        """Leave to the next owner what came of those partitions of which it was not known yet what is done."""
        for number in partitions:
            partition = self._partitions.get(number)
            if partition is not None and not partition.known:
                self._partitions[number] = AssignedPartition(partition.topic, number, partition.log)

    @property
    def records(self) -> int:
        """Records in flight."""
        return sum(len(partition) for partition in self)

    @property
    def bytes(self) -> int:
        """Bytes of the records in flight and of what they have caused so far."""
        return sum(partition.bytes for partition in self)

    @property
    def completed(self) -> int:
        """How many of the records in flight are done."""
        return sum(partition.completed for partition in self)

    @property
    def is_full(self) -> bool:
        """Whether the whole budget is used up."""
        return self._fullness >= 1

    @property
    def _fullness(self) -> float:
        return max(self.records / self._max_records, self.bytes / self._max_bytes)

    def flow_changes(self) -> tuple[list[AssignedPartition], list[AssignedPartition]]:
        """Return which partitions to pause and which to resume now, and take that as done."""
        share = max(1, len(self))
        overall = self._fullness
        to_pause, to_resume = [], []
        for partition in self:
            own = partition.fullness(max(1, self._max_records // share), max(1, self._max_bytes // share))
            fullness = max(own, overall)
            if not partition.paused and fullness >= 1:
                to_pause.append(partition)
            elif partition.paused and fullness <= _RESUME_AT:
                to_resume.append(partition)
        for partition in to_pause:
            partition.paused = True
        for partition in to_resume:
            partition.paused = False
        return to_pause, to_resume
