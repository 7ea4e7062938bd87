"""The last records of topics, read periodically and outside any group, for display.

Each poll reads a few offsets before the end of the partitions that have grown, however many records came in between.
"""

from __future__ import annotations

import contextlib
import time
from typing import TYPE_CHECKING

from confluent_kafka import IsolationLevel, KafkaError, KafkaException, TopicPartition
from confluent_kafka.admin import AdminClient, OffsetSpec

from streamer.kafka.client import config
from streamer.kafka.client.acls import Operation, Resource
from streamer.kafka.client.connection_errors import ConnectionErrors
from streamer.kafka.client.refusals import Refusals, refused
from streamer.kafka.readers.record_reader import ConsumeError, End, RecordReader

if TYPE_CHECKING:
    from collections.abc import Sequence

    from streamer.kafka.records import Record
    from streamer.settings import Connection
    from streamer.topology import Tool

_BACK = 20
"""At most so many offsets before the end of a partition are read, transaction markers included."""
_REQUEST_TIMEOUT_S = 1.0
_POLL_S = 0.05


class Tail:
    """Reads the ends of topics as read_committed consumers do; used from one thread."""

    def __init__(self, settings: Connection, topics: Sequence[str], tool: Tool) -> None:
        """``topics`` are full names, ``tool`` is the command that reads them."""
        self._topics = topics
        self._servers = settings.bootstrap_servers
        self._refusals = Refusals(settings, tool.role)
        self._connection_errors = ConnectionErrors()
        # Errors are displayed, not logged at each attempt.
        quiet = {"log_level": 0, "error_cb": self._connection_errors}
        self._admin: AdminClient = config.make_client(AdminClient, {**config.common(settings), **quiet})
        self._reader = RecordReader(
            {
                **config.reader(settings, settings.topic(tool.group)),
                **quiet,
                "auto.offset.reset": "latest",
                "fetch.wait.max.ms": 50,
                "queued.min.messages": 1,
            }
        )
        self._ends: dict[tuple[str, int], int] = {}
        self.problem: str | None = None
        """Why the last poll read nothing, or not everything; None where it did."""

    def poll(self) -> list[Record]:
        """Return the last records of partitions that have grown since the last poll; takes at most about a second."""
        self.problem = None
        try:
            ends = self._end_offsets(self._partitions())
        except KafkaException as error:
            self._explain(error.args[0])
            return []
        grown = {place: end for place, end in ends.items() if end > self._ends.get(place, 0)}
        begins = {place: max(self._ends.get(place, 0), end - _BACK) for place, end in grown.items()}
        self._ends = ends
        return self._read(begins, grown) if grown else []

    def close(self) -> None:
        """Close the connections."""
        self._reader.close()

    def _partitions(self) -> list[TopicPartition]:
        found = []
        metadata = self._reader.metadata().topics
        for name in self._topics:
            topic = metadata.get(name)
            if topic is None or topic.error is not None:
                # The list of all topics omits those without the privilege to describe them.
                self.problem = f"{name} does not exist, or {self._refusals.missing(Resource.TOPIC, name)}"
            else:
                found += [TopicPartition(name, partition) for partition in topic.partitions]
        return found

    def _end_offsets(self, partitions: Sequence[TopicPartition]) -> dict[tuple[str, int], int]:
        if not partitions:
            return {}
        responses = self._admin.list_offsets(
            {each: OffsetSpec.latest() for each in partitions},  # type: ignore[no-untyped-call]
            isolation_level=IsolationLevel.READ_COMMITTED,
            request_timeout=_REQUEST_TIMEOUT_S,
        )
        ends = {}
        for each, response in responses.items():
            with contextlib.suppress(TimeoutError):
                ends[each.topic, each.partition] = response.result(_REQUEST_TIMEOUT_S + 1).offset
        return ends

    def _read(self, begins: dict[tuple[str, int], int], ends: dict[tuple[str, int], int]) -> list[Record]:
        self._reader.assign([TopicPartition(*place, begin) for place, begin in begins.items()])
        left = dict(ends)
        reached = dict(begins)
        records = []
        deadline = time.monotonic() + _REQUEST_TIMEOUT_S
        while left and time.monotonic() < deadline:
            try:
                record = self._reader.next(_POLL_S)
            except ConsumeError as error:
                self._explain(error.error, error.topic)
                left = {place: end for place, end in left.items() if place[0] != error.topic}
                continue
            if record is None:
                continue
            place = record.topic, record.partition
            if isinstance(record, End):
                left.pop(place, None)
                continue
            records.append(record)
            reached[place] = record.offset + 1
            if record.offset + 1 >= left.get(place, 0):
                left.pop(place, None)
        self._reader.unassign()
        for place in left:
            self._ends[place] = reached[place]  # the next poll reads the rest, for which there was no time
        return sorted(records, key=lambda record: record.timestamp)

    def _explain(self, error: KafkaError, topic: str | None = None) -> None:
        if refused(error):
            names = [topic] if topic else []
            self.problem = self._refusals.describe(error, *names, operation=Operation.READ)
        else:
            self._reader.serve()  # the reason why no connection comes about is reported here
            self.problem = f"Kafka at {self._servers}: {self._connection_errors.describe(error.str())}"
