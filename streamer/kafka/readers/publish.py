"""Clients for tools beside the services: publish events, and read committed records."""

from __future__ import annotations

import contextlib
import time
from typing import TYPE_CHECKING

from confluent_kafka import OFFSET_BEGINNING, KafkaError, KafkaException, Producer, TopicPartition

from streamer.kafka.client import config
from streamer.kafka.client.acls import Operation
from streamer.kafka.client.connection_errors import ConnectionErrors
from streamer.kafka.client.refusals import Refusals
from streamer.kafka.readers.record_reader import ConsumeError, End, RecordReader
from streamer.kafka.readers.topic_reader import ReadError, TopicReader
from streamer.kafka.records import enqueue
from streamer.topology import READER

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from confluent_kafka import Message

    from streamer.kafka.records import Output, Record
    from streamer.settings import Connection

_FLUSH_TIMEOUT_S = 30.0
_POLL_S = 0.1


class PublishError(Exception):
    """Records were not acknowledged; the message says how many and why."""


def publish(settings: Connection, outputs: Iterable[Output]) -> None:
    """Produce records and wait until all are acknowledged. Raises :class:`PublishError`."""
    errors: list[str] = []
    refusals = Refusals(settings, None)
    connection_errors = ConnectionErrors()

    def delivered(error: KafkaError | None, message: Message) -> None:
        if error is not None:
            errors.append(refusals.describe(error, message.topic() or "", operation=Operation.WRITE))

    producer: Producer = config.make_client(Producer, {**config.publisher(settings), "error_cb": connection_errors})
    topic = ""
    try:
        for number, output in enumerate(outputs):
            if number == 1:
                # Wait for the connection with the first record, so that the timestamps of the others are not delayed.
                producer.flush(_FLUSH_TIMEOUT_S)
            topic = output.topic
            enqueue(producer, output, delivered)
            producer.poll(0)
        left = producer.flush(_FLUSH_TIMEOUT_S)
    except KafkaException as error:
        raise PublishError(refusals.describe(error.args[0], topic, operation=Operation.WRITE)) from None
    if left or errors:
        why = errors[0] if errors else connection_errors.describe("no response")
        raise PublishError(f"{left + len(errors)} records not acknowledged: {why}")


class Reader:
    """Reads topics from their beginning and goes on with what comes, as read_committed consumers do."""

    def __init__(self, settings: Connection, topics: list[str]) -> None:
        """``topics`` are full names. Raises :class:`~streamer.kafka.readers.topic_reader.ReadError`."""
        self._refusals = Refusals(settings, READER.role)
        places = []
        for topic in topics:
            with contextlib.closing(TopicReader(settings, topic, READER)) as reader:
                places += [TopicPartition(topic, number, OFFSET_BEGINNING) for number in reader.partitions_of(topic)]
        self._reader = RecordReader(config.reader(settings, settings.topic(READER.group)))
        self._reader.assign(places)

    def records(self, *, patience: float) -> Iterator[Record]:
        """Go through the records as they come; end when none has come for ``patience`` seconds.

        Raises :class:`~streamer.kafka.readers.topic_reader.ReadError`.
        """
        last = time.monotonic()
        while time.monotonic() - last < patience:
            try:
                record = self._reader.next(_POLL_S)
            except ConsumeError as error:
                raise ReadError(self._refusals.describe(error.error, error.topic, operation=Operation.READ)) from None
            if record is not None and not isinstance(record, End):
                last = time.monotonic()
                yield record

    def close(self) -> None:
        """Close the connections."""
        self._reader.close()
