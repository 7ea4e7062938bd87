"""Reading records outside any consumer group: the one consumer behind every reader that is not a service."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from confluent_kafka import Consumer, KafkaError

from streamer.kafka.client import config
from streamer.kafka.client.acls import Resource
from streamer.kafka.client.refusals import refused
from streamer.kafka.records import record_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from confluent_kafka import Message, TopicPartition
    from confluent_kafka.admin import ClusterMetadata

    from streamer.kafka.records import Record

_METADATA_TIMEOUT_S = 1.0


class ConsumeError(Exception):
    """The consumer reports an error that will not pass by itself; ``topic`` is empty where it concerns none."""

    def __init__(self, error: KafkaError, topic: str) -> None:
        super().__init__(error.str())
        self.error = error
        self.topic = topic


class End(NamedTuple):
    """A partition has no committed record before ``offset`` that was not read; later ones may come."""

    topic: str
    partition: int
    offset: int


class RecordReader:
    """Reads records outside any group, as read_committed consumers do, from places that the caller gives.

    Everything that reads topics beside the services uses this class, and differs only in where it ends: at the offset
    where a partition ended at the beginning (``topic_reader``), after a while without a record (``publish``), at a
    reply (``request``), at the last records of a partition (``tail``), or at the first one
    (:mod:`streamer.kafka.watch.lag`). Used from one thread.
    """

    def __init__(self, properties: Mapping[str, Any]) -> None:
        """``properties`` are those of :func:`streamer.kafka.client.config.reader`, or such."""
        self._consumer: Consumer = config.make_client(Consumer, {**properties, "enable.partition.eof": True})

    def assign(self, places: Iterable[TopicPartition]) -> None:
        """Read these partitions from their offsets on, and no others."""
        self._consumer.assign(list(places))

    def unassign(self) -> None:
        """Read nothing for now."""
        self._consumer.unassign()

    def next(self, timeout: float) -> Record | End | None:
        """Return the next record, or that a partition has no more for now; None where nothing came in time.

        Raises :class:`ConsumeError`.
        """
        message = self._consumer.poll(timeout)
        return self._read(message) if message is not None else None

    def ready(self, limit: int) -> list[Record | End]:
        """Return at most ``limit`` of what has come, without waiting. Raises :class:`ConsumeError`."""
        return [each for each in map(self._read, self._consumer.consume(limit, 0)) if each is not None]

    def metadata(self, topic: str | None = None) -> ClusterMetadata:
        """Ask the cluster for one topic or for all. Raises KafkaException where it does not answer."""
        found: ClusterMetadata
        if topic is None:
            found = self._consumer.list_topics(timeout=_METADATA_TIMEOUT_S)
        else:
            found = self._consumer.list_topics(topic, timeout=_METADATA_TIMEOUT_S)
        return found

    def serve(self) -> None:
        """Serve the callbacks: where no connection comes about, that is said there."""
        self._consumer.poll(0)

    def close(self) -> None:
        """Close the consumer."""
        self._consumer.close()

    def _read(self, message: Message) -> Record | End | None:
        error = message.error()
        if error is None:
            return record_of(message)
        topic = message.topic() or ""
        if error.code() == KafkaError._PARTITION_EOF:
            return End(topic, message.partition() or 0, message.offset() or 0)
        # The client looks for the group's coordinator, though nothing here needs the group.
        if error.retriable() or refused(error) is Resource.GROUP:
            return None
        raise ConsumeError(error, topic)
