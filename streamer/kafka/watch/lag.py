"""How far the group is behind: the broker's own count of records, and the age of the oldest that is not processed.

Records. The log's end less the committed offset, both as kafka-consumer-groups takes them: the end is the high
watermark, records of open and aborted transactions included. It is asked for, since what a client knows of it by
itself comes with the records that it fetches, and a paused partition is not fetched.

Seconds. Most of what is not processed is in flight, and its first record says how old it is. Where nothing is in flight
and the log goes on, a record is on its way, for milliseconds, or it is not fetched at all: its partition is paused,
since others fill the budget. Then a second consumer, which joins no group, looks at the first record there
(:class:`_Peek`). Nothing else tells its age: the time at which an offset was seen first is forgotten by a restart, and
between the last record and the next may lie hours. Where nothing readable is left (markers of transactions, aborted
records, what retention has deleted unread), the age is 0.

Until it has been looked, which takes a third of a second, the age is given that the record has at most: it came after
the last one that was received, and after the moment at which the log's end was last seen to be reached.

Ages are computed when they are read, so that they grow while the consume loop stands still.
"""

from __future__ import annotations

import math
import time
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

from confluent_kafka import Consumer, IsolationLevel, KafkaError, TopicPartition
from confluent_kafka.admin import AdminClient, OffsetSpec

from streamer.kafka.client import config
from streamer.kafka.records import record_of

if TYPE_CHECKING:
    from collections.abc import Iterable
    from concurrent.futures import Future

    from streamer.kafka.inflight.partitions import AssignedPartition, Assignment
    from streamer.metrics import Metrics
    from streamer.settings import ServiceSettings

_END: OffsetSpec = OffsetSpec.latest()  # type: ignore[no-untyped-call]
_BEGINNING: OffsetSpec = OffsetSpec.earliest()  # type: ignore[no-untyped-call]
_ASK_EVERY_S = 1.0
_ASK_TIMEOUT_S = 5.0
_ON_ITS_WAY_S = 0.2
"""How long a record that is there may take to arrive before it is looked at."""
_LOOK_TIMEOUT_S = 5.0
_LOOK_RECORDS = 32


class LagWatch:
    """Keeps the lag gauges of the assigned partitions; used from the loop's thread, and never waits."""

    def __init__(
        self, settings: ServiceSettings, assignment: Assignment, *, group: str, topic: str, metrics: Metrics
    ) -> None:
        """``topic`` is a full name, ``group`` is not."""
        self._settings = settings
        self._assignment = assignment
        self._topic = topic
        self._metrics = metrics
        self._admin: AdminClient | None = None
        self._asked: dict[str, dict[TopicPartition, Future[Any]]] = {}
        self._next_ask = 0.0
        self._ends: dict[int, int] = {}
        self._beginnings: dict[int, int] = {}
        self._caught_up: dict[int, float] = {}
        """When a partition's end was last seen to be reached."""
        self._peek = _Peek(settings, assignment, group, topic)

    def tick(self) -> None:
        """Take what has been answered, and ask anew when it is time."""
        self._take_answers()
        self._peek.serve()
        if not self._assignment or self._asked or time.monotonic() < self._next_ask:
            return
        self._next_ask = time.monotonic() + _ASK_EVERY_S
        if self._admin is None:
            self._admin = config.make_client(AdminClient, config.common(self._settings))
        self._ask("ends", self._assignment, _END)
        uncommitted = [each for each in self._assignment if each.committed_offset is None]
        self._ask("beginnings", uncommitted, _BEGINNING)

    def forget(self, partition: int) -> None:
        """Stop reporting a partition that is no longer ours."""
        for known in (self._ends, self._beginnings, self._caught_up):
            known.pop(partition, None)
        self._peek.forget(partition)
        for gauge in (self._metrics.lag, self._metrics.lag_seconds, self._metrics.done_ahead):
            gauge.remove(self._topic, str(partition))

    def close(self) -> None:
        """Let the clients go."""
        self._admin = None
        self._peek.close()

    def _ask(self, what: str, partitions: Iterable[AssignedPartition], spec: OffsetSpec) -> None:
        asked = {TopicPartition(each.topic, each.partition): spec for each in partitions}
        if asked and self._admin is not None:
            self._asked[what] = self._admin.list_offsets(
                asked, isolation_level=IsolationLevel.READ_UNCOMMITTED, request_timeout=_ASK_TIMEOUT_S
            )

    def _take_answers(self) -> None:
        if not self._asked or not all(answer.done() for each in self._asked.values() for answer in each.values()):
            return
        for what, answers in self._asked.items():
            known = self._ends if what == "ends" else self._beginnings
            for place, answer in answers.items():
                # Where the broker does not answer, /readyz says so, and the last figures stand until it does.
                if self._assignment.get(place.partition) is not None and answer.exception() is None:
                    known[place.partition] = answer.result().offset
        self._asked = {}
        for partition in self._assignment:
            if partition.known and partition.partition in self._ends:
                self._report(partition)

    def _report(self, partition: AssignedPartition) -> None:
        number = partition.partition
        position = self._position(partition)
        if self._ends[number] <= position:
            self._caught_up[number] = time.time()
        elif partition.oldest is None:
            self._peek.want(number, position)
        labels = self._topic, str(number)
        self._metrics.lag.labels(*labels).set_function(partial(self._records, partition))
        self._metrics.lag_seconds.labels(*labels).set_function(partial(self._seconds, partition))
        self._metrics.done_ahead.labels(*labels).set_function(partial(self._done_ahead, partition))

    # -- read from any thread --------------------------------------------------------------------------------

    def _records(self, partition: AssignedPartition) -> float:
        committed = partition.committed_offset
        first = self._beginning(partition) if committed is None else committed
        return max(0, self._ends.get(partition.partition, 0) - first)

    def _seconds(self, partition: AssignedPartition) -> float:
        now = time.time()
        oldest = partition.oldest
        if oldest is not None:
            return max(0.0, now - oldest.timestamp.timestamp())
        position = self._position(partition)
        if self._ends.get(partition.partition, 0) <= position:
            return 0.0
        sight = self._peek.sights.get(partition.partition)
        if sight is not None and sight.position == position:
            return 0.0 if sight.timestamp is None else max(0.0, now - sight.timestamp)
        last = partition.last_timestamp
        earliest = max(last.timestamp() if last else 0.0, self._caught_up.get(partition.partition, 0.0))
        return max(0.0, now - earliest) if earliest else math.nan

    def _done_ahead(self, partition: AssignedPartition) -> float:
        progress = partition.progress
        return len(progress.ahead) if progress is not None else 0

    def _position(self, partition: AssignedPartition) -> int:
        return max(partition.position, self._beginning(partition) if partition.committed_offset is None else 0)

    def _beginning(self, partition: AssignedPartition) -> int:
        """Return where a group without a committed offset begins."""
        known = self._ends if config.begins_at_the_end(self._settings) else self._beginnings
        return known.get(partition.partition, 0)


class _Sight(NamedTuple):
    """The timestamp of the first readable record at or behind a position, None where there is none."""

    position: int
    timestamp: float | None


class _Peek:
    """Looks at what is not fetched, with a consumer of its own that joins no group and is made when it is needed."""

    def __init__(self, settings: ServiceSettings, assignment: Assignment, group: str, topic: str) -> None:
        self._settings = settings
        self._assignment = assignment
        self._group = group
        self._topic = topic
        self._consumer: Consumer | None = None
        self._wanted: dict[int, tuple[int, float]] = {}
        self._looking: dict[int, int] = {}
        self._until = 0.0
        self.sights: dict[int, _Sight] = {}

    def want(self, partition: int, position: int) -> None:
        """Have it looked at what is at ``position``, unless a record is known to be there."""
        sight = self.sights.get(partition)
        if sight is not None and sight.position == position and sight.timestamp is not None:
            return
        wanted = self._wanted.get(partition)
        if wanted is None or wanted[0] != position:
            self._wanted[partition] = position, time.monotonic()

    def forget(self, partition: int) -> None:
        """Drop what is known of a partition."""
        for known in (self._wanted, self._looking, self.sights):
            known.pop(partition, None)

    def serve(self) -> None:
        """Begin to look where it is time, and take what is seen."""
        if self._looking:
            self._take()
        elif self._wanted:
            self._begin()

    def close(self) -> None:
        """End the consumer, if there is one."""
        if self._consumer is not None:
            self._consumer.close()
            self._consumer = None

    def _begin(self) -> None:
        for number, (position, _) in list(self._wanted.items()):
            partition = self._assignment.get(number)
            if partition is None or partition.oldest is not None or partition.position > position:
                del self._wanted[number]
        if not any(time.monotonic() - since >= _ON_ITS_WAY_S for _, since in self._wanted.values()):
            return
        if self._consumer is None:
            self._consumer = config.make_client(Consumer, config.peeker(self._settings, self._group))
        self._looking = {number: position for number, (position, _) in self._wanted.items()}
        self._wanted = {}
        self._until = time.monotonic() + _LOOK_TIMEOUT_S
        self._consumer.assign([TopicPartition(self._topic, *each) for each in self._looking.items()])

    def _take(self) -> None:
        if self._consumer is None:
            return
        for message in self._consumer.consume(_LOOK_RECORDS, 0):
            number, error = message.partition(), message.error()
            partition = self._assignment.get(number)
            if partition is None or number not in self._looking:
                continue
            if error is None:
                record = record_of(message)
                if partition.progress is None or not partition.progress.includes(record.offset):
                    self._saw(number, record.timestamp.timestamp())
            elif error.code() == KafkaError._PARTITION_EOF:
                self._saw(number, None)
        if not self._looking or time.monotonic() > self._until:
            self._looking = {}
            self._consumer.unassign()

    def _saw(self, number: int, timestamp: float | None) -> None:
        self.sights[number] = _Sight(self._looking.pop(number), timestamp)
