"""The group's lag: in records as the broker counts them, and in seconds, the age of the oldest unprocessed record.

Records. The end offset minus the committed offset, both as kafka-consumer-groups takes them: the end offset is the high
watermark, which includes records of open and aborted transactions. It is requested from the broker, since the client
learns it only from the partitions that it fetches, and a paused partition is not fetched.

Seconds. Usually the oldest unprocessed record is in flight, and its timestamp gives the age. Where nothing is in flight
and the end offset is higher than the position, either a record arrives within milliseconds, or the partition is paused
because others fill the budget. Then a second consumer, outside any group, reads the first record there
(:class:`_Peek`). Its age is not known otherwise: the time at which an offset was first seen is lost by a restart, and
there may be hours between two records. Where no readable record is left (transaction markers, aborted records, records
that retention deleted unread), the age is 0.

Until that record has been read, which takes a third of a second, its maximum age is reported: it was written after the
last record that was received, and after the time at which the partition's end was last reached.

Ages are computed when they are scraped, so that they grow while the consume loop does not iterate.
"""

from __future__ import annotations

import math
import time
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import structlog
from confluent_kafka import IsolationLevel, KafkaError, KafkaException, TopicPartition
from confluent_kafka.admin import AdminClient, OffsetSpec

from streamer.kafka.client import config
from streamer.kafka.readers.record_reader import ConsumeError, End, RecordReader

if TYPE_CHECKING:
    from collections.abc import Iterator
    from concurrent.futures import Future

    from streamer.kafka.inflight.partitions import AssignedPartition, Assignment
    from streamer.metrics import Metrics
    from streamer.settings import ServiceSettings
    from streamer.topology import Service

log = structlog.get_logger()

_END: OffsetSpec = OffsetSpec.latest()  # type: ignore[no-untyped-call]
_BEGINNING: OffsetSpec = OffsetSpec.earliest()  # type: ignore[no-untyped-call]
_REQUEST_EVERY_S = 1.0
_REQUEST_TIMEOUT_S = 5.0
_ARRIVAL_S = 0.2
"""How long an existing record may take to be fetched before it is peeked at."""
_PEEK_TIMEOUT_S = 5.0
_PEEK_RECORDS = 32


class LagWatch:
    """Maintains the lag gauges of the assigned partitions; used from the loop's thread, and never waits."""

    def __init__(
        self, settings: ServiceSettings, assignment: Assignment, *, service: Service, metrics: Metrics
    ) -> None:
        self._settings = settings
        self._assignment = assignment
        self._topic = settings.topic(service.input)
        self._metrics = metrics
        self._admin: AdminClient | None = None
        self._requests: dict[str, dict[TopicPartition, Future[Any]]] = {}
        self._next_request = 0.0
        self._ends: dict[int, int] = {}
        self._beginnings: dict[int, int] = {}
        self._stable: dict[int, _Stable] = {}
        self._passed: dict[int, list[tuple[int, int]]] = {}
        """Offsets that the consumer had passed over when the beginnings were requested."""
        self._caught_up: dict[int, float] = {}
        """When the end of a partition was last reached, in seconds since the epoch."""
        self._peek = _Peek(settings, assignment, service)

    def tick(self) -> None:
        """Take the responses that have arrived, and send the next requests when it is time."""
        self._take_responses()
        self._peek.serve()
        if not self._assignment or self._requests or time.monotonic() < self._next_request:
            return
        self._next_request = time.monotonic() + _REQUEST_EVERY_S
        if self._admin is None:
            self._admin = config.make_client(AdminClient, config.common(self._settings))
        for each in self._assignment:
            self._passed.setdefault(each.partition, []).extend(each.gaps)
            each.gaps = []
        self._request("ends", _END)
        self._request("stable ends", _END, IsolationLevel.READ_COMMITTED)
        self._request("beginnings", _BEGINNING)

    def unstable(self) -> Iterator[tuple[int, int, float]]:
        """Go through partitions where an open transaction holds records back: number, last stable offset, seconds."""
        for number, stable in self._stable.items():
            if self._unstable(number):
                yield number, stable.offset, self._unstable_seconds(number)

    def forget(self, partition: int) -> None:
        """Stop reporting a partition that is no longer assigned."""
        self._ends.pop(partition, None)
        self._beginnings.pop(partition, None)
        self._caught_up.pop(partition, None)
        self._stable.pop(partition, None)
        self._passed.pop(partition, None)
        self._peek.forget(partition)
        metrics = self._metrics
        for gauge in (
            metrics.lag,
            metrics.lag_seconds,
            metrics.completed_ahead,
            metrics.unstable,
            metrics.unstable_seconds,
        ):
            gauge.remove(self._topic, str(partition))

    def close(self) -> None:
        """Close the clients."""
        self._admin = None
        self._peek.close()

    def _request(
        self, what: str, spec: OffsetSpec, isolation: IsolationLevel = IsolationLevel.READ_UNCOMMITTED
    ) -> None:
        requests = {TopicPartition(each.topic, each.partition): spec for each in self._assignment}
        if requests and self._admin is not None:
            self._requests[what] = self._admin.list_offsets(
                requests, isolation_level=isolation, request_timeout=_REQUEST_TIMEOUT_S
            )

    def _take_responses(self) -> None:
        if not self._requests or not all(
            response.done() for each in self._requests.values() for response in each.values()
        ):
            return
        fenced = False
        for what, responses in self._requests.items():
            for place, response in responses.items():
                error = response.exception()
                # Where the broker does not respond, /readyz says so, and the last values remain until it does.
                if error is not None:
                    fenced |= _is_fenced(error)
                elif self._assignment.get(place.partition) is not None:
                    self._take(what, place.partition, response.result().offset)
        if fenced:
            self._admin = None
        self._requests = {}
        for partition in self._assignment:
            if partition.known and partition.partition in self._ends:
                self._report(partition)

    def _take(self, what: str, number: int, offset: int) -> None:
        if what == "ends":
            self._ends[number] = offset
        elif what == "beginnings":
            self._beginnings[number] = offset
            self._count_lost(number, offset)
        elif number not in self._stable or self._stable[number].offset != offset:
            self._stable[number] = _Stable(offset, time.time())
        elif offset >= self._ends.get(number, 0):
            self._stable[number] = _Stable(offset, time.time())  # nothing waits, however long nothing is written

    def _count_lost(self, number: int, beginning: int) -> None:
        """Count what the consumer passed over since retention had deleted it; the rest are markers and compaction."""
        passed = self._passed.pop(number, [])
        lost = sum(max(0, min(end, beginning) - start) for start, end in passed)
        if lost:
            self._metrics.retention_lost.labels(self._topic).inc(lost)
            log.error(
                "records were deleted by retention before they were read",
                topic=self._topic,
                partition=number,
                offsets=lost,
                beginning=beginning,
            )

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
        self._metrics.completed_ahead.labels(*labels).set_function(partial(self._completed_ahead, partition))
        self._metrics.unstable.labels(*labels).set_function(partial(self._unstable, number))
        self._metrics.unstable_seconds.labels(*labels).set_function(partial(self._unstable_seconds, number))

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
        sight = self._peek.first.get(partition.partition)
        if sight is not None and sight.position == position:
            return 0.0 if sight.timestamp is None else max(0.0, now - sight.timestamp)
        last = partition.last_timestamp
        earliest = max(last.timestamp() if last else 0.0, self._caught_up.get(partition.partition, 0.0))
        return max(0.0, now - earliest) if earliest else math.nan

    def _completed_ahead(self, partition: AssignedPartition) -> float:
        progress = partition.progress
        return len(progress.ahead) if progress is not None else 0

    def _unstable(self, number: int) -> float:
        stable = self._stable.get(number)
        return max(0, self._ends.get(number, 0) - stable.offset) if stable is not None else 0

    def _unstable_seconds(self, number: int) -> float:
        stable = self._stable.get(number)
        return max(0.0, time.time() - stable.since) if stable is not None and self._unstable(number) else 0.0

    def _position(self, partition: AssignedPartition) -> int:
        return max(partition.position, self._beginning(partition) if partition.committed_offset is None else 0)

    def _beginning(self, partition: AssignedPartition) -> int:
        """Return the offset at which a group without a committed offset begins."""
        known = self._ends if config.begins_at_the_end(self._settings) else self._beginnings
        return known.get(partition.partition, 0)


class _Stable(NamedTuple):
    """A last stable offset, and since when it is known to have stood there with something waiting after it."""

    offset: int
    since: float


class _FirstRecord(NamedTuple):
    """The timestamp of the first readable record at or after a position, None where there is none."""

    position: int
    timestamp: float | None


def _is_fenced(error: BaseException) -> bool:
    """Tell whether the client's epoch of a partition's leader is too old.

    An AdminClient of librdkafka 2.16 goes on with that epoch until its metadata expire; a new one asks for the leaders.
    """
    return isinstance(error, KafkaException) and error.args[0].code() == KafkaError.FENCED_LEADER_EPOCH


class _Peek:
    """Reads the first record of partitions that are not fetched, with a consumer that is made when it is needed."""

    def __init__(self, settings: ServiceSettings, assignment: Assignment, service: Service) -> None:
        self._settings = settings
        self._assignment = assignment
        self._service = service
        self._topic = settings.topic(service.input)
        self._reader: RecordReader | None = None
        self._wanted: dict[int, tuple[int, float]] = {}
        self._reading: dict[int, int] = {}
        self._until = 0.0
        self.first: dict[int, _FirstRecord] = {}

    def want(self, partition: int, position: int) -> None:
        """Request the first record at ``position``, unless it is known already."""
        sight = self.first.get(partition)
        if sight is not None and sight.position == position and sight.timestamp is not None:
            return
        wanted = self._wanted.get(partition)
        if wanted is None or wanted[0] != position:
            self._wanted[partition] = position, time.monotonic()

    def forget(self, partition: int) -> None:
        """Forget a partition."""
        for known in (self._wanted, self._reading, self.first):
            known.pop(partition, None)

    def serve(self) -> None:
        """Begin to read where it is time, and take the records that have arrived."""
        if self._reading:
            self._take()
        elif self._wanted:
            self._begin()

    def close(self) -> None:
        """Close the consumer, if there is one."""
        if self._reader is not None:
            self._reader.close()
            self._reader = None

    def _begin(self) -> None:
        for number, (position, _) in list(self._wanted.items()):
            partition = self._assignment.get(number)
            if partition is None or partition.oldest is not None or partition.position > position:
                del self._wanted[number]
        if not any(time.monotonic() - since >= _ARRIVAL_S for _, since in self._wanted.values()):
            return
        if self._reader is None:
            self._reader = RecordReader(config.peeker(self._settings, self._service))
        self._reading = {number: position for number, (position, _) in self._wanted.items()}
        self._wanted = {}
        self._until = time.monotonic() + _PEEK_TIMEOUT_S
        self._reader.assign([TopicPartition(self._topic, *each) for each in self._reading.items()])

    def _take(self) -> None:
        if self._reader is None:
            return
        try:
            found = self._reader.ready(_PEEK_RECORDS)
        except ConsumeError:
            return  # until the time is up; the service's own consumer reports what is wrong
        for record in found:
            partition = self._assignment.get(record.partition)
            if partition is None or record.partition not in self._reading:
                continue
            if isinstance(record, End):
                self._found(record.partition, None)
            elif partition.progress is None or not partition.progress.includes(record.offset):
                self._found(record.partition, record.timestamp.timestamp())
        if not self._reading or time.monotonic() > self._until:
            self._reading = {}
            self._reader.unassign()

    def _found(self, number: int, timestamp: float | None) -> None:
        self.first[number] = _FirstRecord(self._reading.pop(number), timestamp)
