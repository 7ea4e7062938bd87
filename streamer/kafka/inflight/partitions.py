"""The records in flight of each assigned partition, and which offsets may be committed.

Records complete and are committed out of order (:mod:`streamer.kafka.inflight.offsets`). An :class:`AssignedPartition`
lives from assignment to revocation. A record that completes after its partition was revoked reports to an object that
nobody reads any more, so it is harmless without any check; it is marked as revoked only to save the processing.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

from streamer.kafka.inflight.offsets import WINDOW, Progress

if TYPE_CHECKING:
    import datetime as dt
    from collections.abc import Iterable, Iterator

    from streamer.kafka.records import InFlightRecord, Record


_MOST_GAPS = 1_000
_RESUME_AT = 0.5
"""A partition is resumed at half its budget, so that it is not paused and resumed all the time."""


class AssignedPartition:
    """The records in flight of one assigned partition, in offset order. Used by the loop's thread only.

    Until the group's committed offset is known, none of its records may be processed: they may be completed already.

    A position that goes back (:meth:`goes_back`) means that the log is not what it was: its end was lost, or all of it.
    What is known of the partition is void then, and :meth:`Assignment.renew` puts a new object in its place.
    """

    def __init__(self, topic: str, partition: int, log: str) -> None:
        self.topic = topic
        self.partition = partition
        self.log = log
        self.paused = False
        self.stalled = False
        """Whether the consumer cannot read on; it is paused then, whatever :attr:`paused` says."""
        self.known = False
        """Whether the group's committed offset has been fetched."""
        self.progress: Progress | None = None
        """What is committed; None where nothing is, or where it has not been fetched yet."""
        self.last_timestamp: dt.datetime | None = None
        """The timestamp of the last record received."""
        self.rewound = False
        """Whether the group's commit is void, and none of ours has replaced it yet."""
        self.gaps: list[tuple[int, int]] = []
        """Ranges of offsets that the consumer passed over since they were last taken from here."""
        self._in_flight: deque[InFlightRecord] = deque()
        self._start: int | None = None
        """The offset of the first record received, or of the end where that came first."""
        self._received = 0
        self._epoch: int | None = None
        """The leader's epoch of the last record received, or committed."""
        self._epoch_until = 0
        """All before this offset was written in that epoch or before it."""
        self._committed_epoch: int | None = None
        """The epoch that the group's commit has: no record of it is of a later one."""
        self._leader_epoch, self._leader_until = -1, 0
        """The epoch of the partition's leader, and what had been received when it was last looked up."""
        self._lacks_epoch = False
        """Whether the group's commit has no epoch: it is not ours, or ours from before the leader was known."""
        # Updated incrementally: summing thousands of records in each iteration took a tenth of the time of a backlog.
        self._sizes: dict[int, int] = {}
        self._bytes = 0
        self._completed_offsets: set[int] = set()
        self._completed: deque[InFlightRecord] = deque()

    def __len__(self) -> int:
        return len(self._in_flight)

    @property
    def bytes(self) -> int:
        """Bytes of the records in flight and of their outputs so far."""
        self._count_completed()
        return self._bytes

    @property
    def completed(self) -> int:
        """How many of the records in flight are completed."""
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
        self._bytes -= self._sizes.pop(offset)
        self._completed_offsets.discard(offset)

    @property
    def _next(self) -> int | None:
        """The lowest offset that may come next; None where nothing is known."""
        return self._received if self._start is not None else self.committed_offset

    def goes_back(self, offset: int) -> bool:
        """Whether a record, or the end, at ``offset`` contradicts what was received or committed before."""
        following = self._next
        return following is not None and offset < following

    def is_replaced(self, record: Record) -> bool:
        """Whether the group's commit has a record as completed, and another one is at its offset now."""
        if self.progress is None or record.offset not in self.progress.ahead:
            return False
        then, now = self._committed_epoch, record.leader_epoch
        return then is not None and now is not None and then < now

    def void_ahead(self, offset: int) -> None:
        """Forget which records from ``offset`` on were completed before they were received here."""
        if self.progress is not None:
            self.progress = Progress(
                self.progress.offset, frozenset(each for each in self.progress.ahead if each < offset)
            )
            self.rewound = True

    def add(self, in_flight: InFlightRecord) -> bool:
        """Add a received record; False where it is committed already, perhaps by an earlier owner of the partition."""
        offset, leader_epoch = in_flight.record.offset, in_flight.record.leader_epoch
        self._move(offset, offset + 1)
        if leader_epoch is not None:
            self._epoch, self._epoch_until = leader_epoch, self._received
        self.last_timestamp = in_flight.record.timestamp
        if self.progress is not None and self.progress.includes(offset):
            return False
        self._in_flight.append(in_flight)
        self._count(offset, in_flight.size)
        in_flight.completed = self._completed
        return True

    def reached_end(self, end: int) -> None:
        """Note that all readable records before ``end`` were received: the rest are markers and aborted records."""
        self._move(end, end)

    def _move(self, offset: int, following: int) -> None:
        expected = self._next
        if expected is not None and offset > expected and len(self.gaps) < _MOST_GAPS:
            self.gaps.append((expected, offset))
        if self._start is None:
            self._start = offset
        self._received = max(self._received, following)

    def saw_leader(self, epoch: int) -> None:
        """Note the epoch of the partition's leader, as the client knows it after what was received; -1: it does not."""
        if epoch < 0 or self._start is None:
            return
        if self._epoch is None or epoch >= self._epoch:
            self._leader_epoch, self._leader_until = epoch, self._received

    @property
    def awaits_leader(self) -> bool:
        """Whether it is open in which leader's epoch the markers after the last record were written."""
        return self._epoch is not None and self._received > max(self._epoch_until, self._leader_until)

    def epoch_for(self, offset: int) -> int | None:
        """Return an epoch in which, or before which, all before ``offset`` was written; None where that is not known.

        Committed with the offset, it shows the client that the log was truncated while nobody read it (KIP-320). Where
        markers follow the last record, a leader elected since may have written them: an epoch that is too low would
        look like a truncation. That of the leader is never too low, but it would not tell a completed record from one
        that this leader has in its place: so it is taken where no record's own will do.
        """
        if offset <= self._epoch_until:
            return self._epoch
        return self._leader_epoch if offset <= self._leader_until else None

    @property
    def oldest(self) -> Record | None:
        """The first record in flight: all records before it are committed. May be read from any thread."""
        try:
            return self._in_flight[0].record
        except IndexError:
            return None

    @property
    def position(self) -> int:
        """The offset of the next record to be received. May be read from any thread."""
        return max(self._received, self.committed_offset or 0)

    @property
    def has_position(self) -> bool:
        """Whether anything has come, or is committed: else :attr:`position` says nothing of where to read."""
        return self._received > 0 or self.progress is not None

    @property
    def committed_offset(self) -> int | None:
        """The group's committed offset; None where there is none or it is not known. May be read from any thread."""
        progress = self.progress
        return progress.offset if progress is not None else None

    @property
    def has_skipped(self) -> bool:
        """Whether nothing is in flight and the committed offset can still change.

        It advances over markers and deleted records, goes back where the group's commit is void, and is committed again
        where it has no epoch and ours would have one.
        """
        if not self.known or self._in_flight or self._start is None:
            return False
        may_name_epoch = self._lacks_epoch and self.epoch_for(self._received) is not None
        return self.rewound or may_name_epoch or self._received > (self.committed_offset or 0)

    def start_from(self, progress: Progress | None, leader_epoch: int | None = None) -> list[InFlightRecord]:
        """Set what the group has committed; return the records in flight that are still to be processed.

        ``leader_epoch`` is the one that was committed. Where the consumer began before the committed offset, that one
        is not in the log any more: :attr:`rewound` is set, and everything is to be processed.
        """
        self.known = True
        if progress is not None and self._start is not None and self._start < progress.offset:
            self.rewound = True
        elif progress is not None:
            if self._start is not None and self._start > progress.offset:
                self.gaps.append((progress.offset, self._start))
            self._committed_epoch = leader_epoch
            if leader_epoch is not None and self._epoch is None:
                self._epoch, self._epoch_until = leader_epoch, progress.offset
            self.mark_committed(progress)
            self._lacks_epoch = leader_epoch is None
        return list(self._in_flight)

    def committable(self) -> Iterator[InFlightRecord]:
        """Go through the completed records that may be committed, in offset order."""
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
        """Return what to commit once ``records`` are committed too.

        That is not past markers of which the leader's epoch is still open: it would be a commit without an epoch.
        """
        done = {each.record.offset for each in records}
        offset = next(
            (in_flight.record.offset for in_flight in self._in_flight if in_flight.record.offset not in done),
            self._epoch_until if done and self.awaits_leader else self._received,
        )
        ahead = done if self.progress is None else done | self.progress.ahead
        while offset in ahead:  # completed by an earlier owner of the partition, and not received here yet
            offset += 1
        return Progress(offset, frozenset(each for each in ahead if each > offset))

    def mark_committed(self, progress: Progress) -> None:
        """Set what is committed, and forget the records that it covers."""
        records = self._in_flight
        while records and records[0].record.offset < progress.offset:
            self._forget(records.popleft())
        if progress.ahead:
            for in_flight in records:
                if in_flight.record.offset in progress.ahead:
                    self._forget(in_flight)
            self._in_flight = deque(in_flight for in_flight in records if in_flight.record.offset not in progress.ahead)
        self.progress = progress
        self.rewound = self._lacks_epoch = False

    def abandon(self) -> int:
        """Mark the records in flight as revoked and return how many there are.

        The last ones come first: a pipeline that checks meanwhile must not skip a record and process a later one.
        """
        for in_flight in reversed(self._in_flight):
            in_flight.revoked = True
        return len(self._in_flight)

    def fullness(self, most_records: int, most_bytes: int) -> float:
        """Return how full the queue is by the fuller of both measures; 1 is full."""
        return max(len(self._in_flight) / most_records, self.bytes / most_bytes)


class Assignment:
    """The partitions of this instance and the budget of records in flight that they share.

    A partition is full when it uses its share of the budget, or when all partitions together use all of it; one that
    is held up by a slow clip cannot take the share of the others. ``max_records`` and ``max_bytes`` may be exceeded by
    the records that the client delivers at once.
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
        """Return an assigned partition; None for one that is not assigned (any more)."""
        return self._partitions.get(partition) if partition is not None else None

    def add(self, topic: str, partition: int, log: str) -> None:
        """Add a newly assigned partition; ``log`` identifies it in its records (:class:`Record`)."""
        self._partitions[partition] = AssignedPartition(topic, partition, log)

    def remove(self, partition: int) -> int:
        """Remove a partition and return how many records in flight are left to its next owner."""
        removed = self._partitions.pop(partition, None)
        return removed.abandon() if removed is not None else 0

    def renew(self, partition: AssignedPartition) -> AssignedPartition:
        """Forget all that is known of a partition, and abandon its records in flight: its log is not what it was."""
        partition.abandon()
        new = AssignedPartition(partition.topic, partition.partition, partition.log)
        new.known, new.paused, new.stalled = partition.known, partition.paused, partition.stalled
        new.rewound = partition.known
        self._partitions[partition.partition] = new
        return new

    def drop_unknown(self, partitions: Iterable[int]) -> None:
        """Drop the records of those partitions whose committed offset was never fetched; the next owner reads them."""
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
        """Bytes of the records in flight and of their outputs so far."""
        return sum(partition.bytes for partition in self)

    @property
    def completed(self) -> int:
        """How many of the records in flight are completed."""
        return sum(partition.completed for partition in self)

    @property
    def is_full(self) -> bool:
        """Whether the whole budget is used."""
        return self._fullness >= 1

    @property
    def _fullness(self) -> float:
        return max(self.records / self._max_records, self.bytes / self._max_bytes)

    def flow_changes(self) -> tuple[list[AssignedPartition], list[AssignedPartition]]:
        """Return which partitions to pause and which to resume, and mark them so."""
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
