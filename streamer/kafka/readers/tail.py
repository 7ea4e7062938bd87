"""The last records of topics, looked at now and then, outside any group: what a person watches.

Each look reads a few offsets before the end of those partitions that have grown, however much came in between.
"""

from __future__ import annotations

import contextlib
import time
from typing import TYPE_CHECKING, Any

from confluent_kafka import Consumer, IsolationLevel, KafkaError, KafkaException, TopicPartition
from confluent_kafka.admin import AdminClient, OffsetSpec

from streamer.kafka.client import config
from streamer.kafka.client.acls import Operation, Resource
from streamer.kafka.client.connection_errors import ConnectionErrors
from streamer.kafka.client.refusals import Refusals, refused
from streamer.kafka.records import record_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from streamer.kafka.records import Record
    from streamer.settings import Connection

GROUP = "streamer-top"
_BACK = 20
"""Offsets before a partition's end that are read at most; transactions' markers count among them."""
_ASK_S = 1.0
_POLL_S = 0.05


class Tail:
    """Reads the ends of topics as read_committed consumers do; used from one thread."""

    def __init__(self, settings: Connection, topics: Sequence[str], *, role: str) -> None:
        """``topics`` are full names, ``role`` says what the user needs privileges for."""
        self._topics = topics
        self._servers = settings.bootstrap_servers
        self._refusals = Refusals(settings, role)
        self._complaints = ConnectionErrors()
        # Faults are shown in a line of their own, not logged at each attempt.
        quiet = {"log_level": 0, "error_cb": self._complaints}
        self._admin: AdminClient = config.make_client(AdminClient, {**config.common(settings), **quiet})
        self._consumer: Consumer = config.make_client(
            Consumer,
            {
                **config.reader(settings, settings.topic(GROUP)),
                **quiet,
                "enable.partition.eof": True,
                "auto.offset.reset": "latest",
                "fetch.wait.max.ms": 50,
                "queued.min.messages": 1,
            },
        )
        self._ends: dict[tuple[str, int], int] = {}
        self.problem: str | None = None
        """Why the last look saw nothing, or not all."""

    def look(self) -> list[Record]:
        """Return the last records of partitions that have grown since the last look, at most a second's worth of it."""
        self.problem = None
        try:
            ends = self._ask(self._partitions())
        except KafkaException as error:
            self._explain(error.args[0])
            return []
        grown = {place: end for place, end in ends.items() if end > self._ends.get(place, 0)}
        begins = {place: max(self._ends.get(place, 0), end - _BACK) for place, end in grown.items()}
        self._ends = ends
        return self._read(begins, grown) if grown else []

    def close(self) -> None:
        """Leave."""
        self._consumer.close()

    def _partitions(self) -> list[TopicPartition]:
        found = []
        metadata = self._consumer.list_topics(timeout=_ASK_S).topics
        for name in self._topics:
            topic = metadata.get(name)
            if topic is None or topic.error is not None:
                # A list of all topics leaves out what may not be seen.
                self.problem = f"{name} does not exist, or {self._refusals.missing(Resource.TOPIC, name)}"
            else:
                found += [TopicPartition(name, partition) for partition in topic.partitions]
        return found

    def _ask(self, partitions: Sequence[TopicPartition]) -> dict[tuple[str, int], int]:
        if not partitions:
            return {}
        answers = self._admin.list_offsets(
            {each: OffsetSpec.latest() for each in partitions},  # type: ignore[no-untyped-call]
            isolation_level=IsolationLevel.READ_COMMITTED,
            request_timeout=_ASK_S,
        )
        ends = {}
        for each, answer in answers.items():
            with contextlib.suppress(TimeoutError):
                ends[each.topic, each.partition] = answer.result(_ASK_S + 1).offset
        return ends

    def _read(self, begins: dict[tuple[str, int], int], ends: dict[tuple[str, int], int]) -> list[Record]:
        self._consumer.assign([TopicPartition(*place, begin) for place, begin in begins.items()])
        left = dict(ends)
        came = dict(begins)
        records = []
        deadline = time.monotonic() + _ASK_S
        while left and time.monotonic() < deadline:
            message: Any = self._consumer.poll(_POLL_S)
            if message is None:
                continue
            error = message.error()
            place = message.topic(), message.partition()
            if error is None:
                records.append(record_of(message))
                came[place] = message.offset() + 1
                if message.offset() + 1 >= left.get(place, 0):
                    left.pop(place, None)
            elif error.code() == KafkaError._PARTITION_EOF:
                left.pop(place, None)
            # The client looks for the group's coordinator, though nothing here needs the group.
            elif refused(error) is not Resource.GROUP:
                self._explain(error, place[0])
                left.pop(place, None)
        self._consumer.unassign()
        for place in left:
            self._ends[place] = came[place]  # there was no time for the rest, which the next look takes
        return sorted(records, key=lambda record: record.timestamp)

    def _explain(self, error: KafkaError, topic: str | None = None) -> None:
        if refused(error):
            names = [topic] if topic else []
            self.problem = self._refusals.told(error, *names, operation=Operation.READ)
        else:
            self._consumer.poll(0)  # where no connection comes about, that is said here
            self.problem = f"Kafka at {self._servers}: {self._complaints.told(error.str())}"
