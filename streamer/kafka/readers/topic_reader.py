"""A topic read from where it begins to where it ends now, outside any group."""

from __future__ import annotations

import contextlib
import time
from typing import TYPE_CHECKING, Any, NamedTuple

from confluent_kafka import Consumer, IsolationLevel, KafkaError, KafkaException, TopicCollection, TopicPartition
from confluent_kafka.admin import AclOperation, AdminClient, OffsetSpec

from streamer.kafka.client import config
from streamer.kafka.client.acls import Operation, Resource
from streamer.kafka.client.connection_errors import ConnectionErrors
from streamer.kafka.client.refusals import Refusals, refused
from streamer.kafka.records import record_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from streamer.kafka.records import Record
    from streamer.settings import Connection

_NO_ANSWER = (KafkaError._TRANSPORT, KafkaError._TIMED_OUT, KafkaError._ALL_BROKERS_DOWN)
TIMEOUT_S = 10.0
"""Longest wait for one answer from the cluster."""
PATIENCE_S = 90.0
"""Longest wait for the next record; a crashed service's open transaction ends by itself within 70 s."""
_POLL_S = 0.2
_ASK_S = 1.0


class ReadError(Exception):
    """A topic cannot be read; the message is one line."""


class Span(NamedTuple):
    """The offsets of one partition from ``begin`` up to, and without, ``end``."""

    partition: int
    begin: int
    end: int


class TopicReader:
    """Reads one topic as read_committed consumers do, one partition after the other."""

    error: type[Exception] = ReadError
    """What is raised where the topic cannot be read."""

    def __init__(self, settings: Connection, name: str, *, group: str, role: str | None = None) -> None:
        """``name`` is the topic's full name; ``group`` is never joined, but the client wants one.

        ``role`` says what the user needs privileges for.
        """
        self.name = name
        self._servers = settings.bootstrap_servers
        self._refusals = Refusals(settings, role)
        self._complaints = ConnectionErrors()
        callbacks = {"error_cb": self._complaints}
        self._admin: AdminClient = config.make_client(AdminClient, {**config.common(settings), **callbacks})
        self._consumer: Consumer = config.make_client(
            Consumer,
            {
                **config.reader(settings, settings.topic(group)),
                **callbacks,
                "fetch.wait.max.ms": 50,  # a request for one partition's end holds up the next partition's first
                "enable.partition.eof": True,
            },
        )

    def close(self) -> None:
        """Close the consumer."""
        self._consumer.close()

    def partitions_of(self, topic: str) -> list[int]:
        """Return the partitions of a topic, given by its full name."""
        metadata = self._metadata(topic)
        if metadata.error is not None:
            if metadata.error.code() in (KafkaError.UNKNOWN_TOPIC_OR_PART, KafkaError._UNKNOWN_TOPIC):
                raise self.error(f"{topic} does not exist; streamer topics apply makes it")
            raise self.failed(KafkaException(metadata.error), Operation.DESCRIBE, topic)
        return sorted(metadata.partitions)

    def _metadata(self, topic: str) -> Any:
        deadline = time.monotonic() + TIMEOUT_S
        while True:
            try:
                return self._consumer.list_topics(topic, timeout=_ASK_S).topics[topic]
            except KafkaException as error:
                self._consumer.poll(0)  # where no connection comes about, that is said here
                waits = error.args[0].code() in _NO_ANSWER and not self._complaints.is_final
                if not waits or time.monotonic() > deadline:
                    raise self.failed(error) from None

    def spans(self, isolation: IsolationLevel = IsolationLevel.READ_COMMITTED) -> list[Span]:
        """Return what there is to read: all that is decided, or with READ_UNCOMMITTED what is yet undecided too.

        Reading the latter waits until each transaction that was open now has been decided.
        """
        partitions = self.partitions_of(self.name)
        begins = self._offsets(partitions, OffsetSpec.earliest(), isolation)  # type: ignore[no-untyped-call]
        ends = self._offsets(partitions, OffsetSpec.latest(), isolation)  # type: ignore[no-untyped-call]
        return [Span(*each) for each in zip(partitions, begins, ends, strict=True)]

    def _offsets(self, partitions: Sequence[int], spec: OffsetSpec, isolation: IsolationLevel) -> list[int]:
        requests = {TopicPartition(self.name, partition): spec for partition in partitions}
        try:
            answers = self._admin.list_offsets(requests, isolation_level=isolation, request_timeout=TIMEOUT_S)
            found = {each.partition: future.result(TIMEOUT_S + 1).offset for each, future in answers.items()}
        except KafkaException as error:
            raise self.failed(error) from None
        except TimeoutError:
            raise self.error(f"Kafka at {self._servers}: no answer within {TIMEOUT_S:g} s") from None
        return [found[partition] for partition in partitions]

    def records(self, span: Span) -> Iterator[Record]:
        """Go through the records of a span; those that retention has taken are gone and no error."""
        if span.begin >= span.end:
            return
        self._consumer.assign([TopicPartition(self.name, span.partition, span.begin)])
        reached = span.begin
        heard = time.monotonic()
        while reached < span.end:
            message = self._consumer.poll(_POLL_S)
            error = message.error() if message is not None else None
            if message is not None and error is None:
                record = record_of(message)
                if record.offset >= span.end:
                    return
                yield record
                reached = record.offset + 1
                heard = time.monotonic()
            elif message is not None and error is not None and error.code() == KafkaError._PARTITION_EOF:
                # Short of the end while a transaction is open; told again when it has been decided.
                reached = max(reached, message.offset() or 0)
            # The client looks for the group's coordinator, though nothing here needs the group.
            elif error is not None and not error.retriable() and refused(error) is not Resource.GROUP:
                raise self.failed(KafkaException(error))
            if reached < span.end and time.monotonic() - heard > PATIENCE_S:
                raise self.error(
                    f"{self.name}[{span.partition}]: nothing came behind offset {reached} of {span.end} "
                    f"in {PATIENCE_S:g} s: a broker is away, or a transaction stays open"
                )

    def failed(self, error: KafkaException, operation: Operation = Operation.READ, *names: str) -> Exception:
        """Put what the client says into our words; ``operation`` is what was tried, on the resources ``names``."""
        cause: KafkaError = error.args[0]
        if refused(cause):
            return self.error(self._refusals.told(cause, *(names or [self.name]), operation=operation))
        why = self._complaints.told(cause.str()) if cause.code() in _NO_ANSWER else cause.str()
        return self.error(f"Kafka at {self._servers}: {why}")

    def unwritable(self, *names: str) -> list[str]:
        """Return which of these topics may not be written to."""
        topics = TopicCollection(list(names))
        answers = self._admin.describe_topics(topics, include_authorized_operations=True, request_timeout=TIMEOUT_S)
        found = []
        for name, answer in answers.items():
            with contextlib.suppress(KafkaException, TimeoutError):
                if AclOperation.WRITE in (answer.result(TIMEOUT_S + 1).authorized_operations or ()):
                    continue
            found.append(name)
        return found
