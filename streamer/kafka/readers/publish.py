"""Plain clients for what stands beside the services: publish events, read what is committed."""

from __future__ import annotations

import time
import uuid
from typing import TYPE_CHECKING

from confluent_kafka import Consumer, KafkaError, KafkaException, Producer

from streamer.kafka.client import config
from streamer.kafka.client.acls import Operation
from streamer.kafka.client.connection_errors import ConnectionErrors
from streamer.kafka.client.produce import enqueue
from streamer.kafka.client.refusals import Refusals
from streamer.kafka.readers.topic_reader import ReadError
from streamer.kafka.records import record_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from confluent_kafka import Message

    from streamer.kafka.records import Output, Record
    from streamer.settings import Connection

_FLUSH_TIMEOUT_S = 30.0


class PublishError(Exception):
    """Records were not acknowledged; the message says how many and why."""


def publish(settings: Connection, outputs: Iterable[Output]) -> None:
    """Produce records and wait until all are acknowledged. Raises :class:`PublishError`."""
    errors: list[str] = []
    refusals = Refusals(settings, None)
    complaints = ConnectionErrors()

    def delivered(error: KafkaError | None, message: Message) -> None:
        if error is not None:
            errors.append(refusals.told(error, message.topic() or "", operation=Operation.WRITE))

    producer: Producer = config.make_client(
        Producer, {**config.common(settings), "enable.idempotence": True, "error_cb": complaints}
    )
    topic = ""
    try:
        for number, output in enumerate(outputs):
            if number == 1:
                # The first record waits for the connection; those that carry a time must not.
                producer.flush(_FLUSH_TIMEOUT_S)
            topic = output.topic
            enqueue(producer, output, delivered)
            producer.poll(0)
        left = producer.flush(_FLUSH_TIMEOUT_S)
    except KafkaException as error:
        raise PublishError(refusals.told(error.args[0], topic, operation=Operation.WRITE)) from None
    if left or errors:
        why = errors[0] if errors else complaints.told("no answer")
        raise PublishError(f"{left + len(errors)} records not acknowledged: {why}")


class Reader:
    """Reads topics from their beginning as read_committed consumers do, outside any of our groups."""

    def __init__(self, settings: Connection, topics: list[str]) -> None:
        """``topics`` are full names."""
        self._group = settings.topic(f"reader-{uuid.uuid4()}")
        self._consumer: Consumer = config.make_client(Consumer, config.reader(settings, self._group))
        self._consumer.subscribe(topics)
        self._refusals = Refusals(settings, None)

    def records(self, *, patience: float) -> Iterator[Record]:
        """Go through the records as they come; end when none has come for ``patience`` seconds.

        Raises :class:`~streamer.kafka.readers.topic_reader.ReadError`.
        """
        last = time.monotonic()
        while time.monotonic() - last < patience:
            message = self._consumer.poll(0.1)
            if message is None:
                continue
            error = message.error()
            if error is None:
                last = time.monotonic()
                yield record_of(message)
            elif error.code() != KafkaError._PARTITION_EOF and not error.retriable():
                raise ReadError(self._refusals.told(error, message.topic() or self._group, operation=Operation.READ))

    def close(self) -> None:
        """Leave."""
        self._consumer.close()
