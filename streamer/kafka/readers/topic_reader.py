"""Reading a topic from its beginning to its current end, outside any group."""

from __future__ import annotations

import contextlib
import time
from typing import TYPE_CHECKING, Any, NamedTuple

from confluent_kafka import IsolationLevel, KafkaError, KafkaException, TopicCollection, TopicPartition
from confluent_kafka.admin import AclOperation, AdminClient, ConfigResource, OffsetSpec, ResourceType

from streamer.kafka.client import config
from streamer.kafka.client.acls import Operation, Resource
from streamer.kafka.client.connection_errors import ConnectionErrors
from streamer.kafka.client.refusals import Refusals, refused
from streamer.kafka.outputs import UNKNOWN_RETENTION_MS, kept_ms
from streamer.kafka.readers.record_reader import ConsumeError, End, RecordReader

if TYPE_CHECKING:
    import datetime as dt
    from collections.abc import Iterator, Sequence

    from streamer.kafka.records import Record
    from streamer.settings import Connection
    from streamer.topology import Tool

_UNREACHABLE = (KafkaError._TRANSPORT, KafkaError._TIMED_OUT, KafkaError._ALL_BROKERS_DOWN)
TIMEOUT_S = 10.0
"""Timeout of one request to the cluster."""
PATIENCE_S = 90.0
"""Longest wait for the next record; the coordinator ends a crashed service's transaction within 70 s."""
_POLL_S = 0.2


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
    """The error raised where the topic cannot be read."""

    def __init__(self, settings: Connection, name: str, tool: Tool) -> None:
        """``name`` is the topic's full name, ``tool`` the command that reads it."""
        self.name = name
        self._servers = settings.bootstrap_servers
        self._refusals = Refusals(settings, tool.role)
        self._connection_errors = ConnectionErrors()
        callbacks = {"error_cb": self._connection_errors}
        self._admin: AdminClient = config.make_client(AdminClient, {**config.common(settings), **callbacks})
        self._reader = RecordReader(
            {
                **config.reader(settings, settings.topic(tool.group)),
                **callbacks,
                "fetch.wait.max.ms": 50,  # a request for one partition's end holds up the next partition's first
            }
        )

    def close(self) -> None:
        """Close the connections."""
        self._reader.close()

    def partitions_of(self, topic: str) -> list[int]:
        """Return the partitions of a topic, given by its full name."""
        metadata = self._metadata(topic)
        if metadata.error is not None:
            if metadata.error.code() in (KafkaError.UNKNOWN_TOPIC_OR_PART, KafkaError._UNKNOWN_TOPIC):
                raise self.error(f"{topic} does not exist; streamer topics apply creates it")
            raise self.failed(KafkaException(metadata.error), Operation.DESCRIBE, topic)
        return sorted(metadata.partitions)

    def _metadata(self, topic: str) -> Any:
        deadline = time.monotonic() + TIMEOUT_S
        while True:
            try:
                return self._reader.metadata(topic).topics[topic]
            except KafkaException as error:
                self._reader.serve()  # the reason why no connection comes about is reported here
                waits = error.args[0].code() in _UNREACHABLE and not self._connection_errors.is_final
                if not waits or time.monotonic() > deadline:
                    raise self.failed(error) from None

    def retention_ms(self, topic: str) -> float:
        """Return for how long a topic's records are kept; one day where this client may not describe that."""
        resource = ConfigResource(ResourceType.TOPIC, topic)
        try:
            (response,) = self._admin.describe_configs([resource], request_timeout=TIMEOUT_S).values()
            return kept_ms(response.result(TIMEOUT_S + 1))
        except (KafkaException, TimeoutError):
            return UNKNOWN_RETENTION_MS

    def spans(self, isolation: IsolationLevel = IsolationLevel.READ_COMMITTED) -> list[Span]:
        """Return what there is to read: up to the last stable offset, with READ_UNCOMMITTED to the high watermark.

        Reading up to the latter waits for the end of every transaction that is open now.
        """
        partitions = self.partitions_of(self.name)
        begins = self._offsets(partitions, OffsetSpec.earliest(), isolation)  # type: ignore[no-untyped-call]
        ends = self._offsets(partitions, OffsetSpec.latest(), isolation)  # type: ignore[no-untyped-call]
        return [Span(*each) for each in zip(partitions, begins, ends, strict=True)]

    def spans_between(self, since: dt.datetime | None, until: dt.datetime | None) -> list[Span]:
        """Return what there is to read from one time on and before another, by the records' own times.

        Where these do not rise with the offsets, a span ends at the first record that is not before ``until``.
        """
        spans = self.spans()
        begins, ends = (self._first_at(each) if each is not None else {} for each in (since, until))
        return [
            Span(each.partition, begins.get(each.partition, each.begin), ends.get(each.partition, each.end))
            for each in spans
        ]

    def _first_at(self, moment: dt.datetime) -> dict[int, int]:
        """Return the offset of each partition's first record at or after a time; its end where there is none."""
        partitions = self.partitions_of(self.name)
        spec = OffsetSpec.for_timestamp(round(moment.timestamp() * 1000))
        found = self._offsets(partitions, spec, IsolationLevel.READ_COMMITTED)
        latest = OffsetSpec.latest()  # type: ignore[no-untyped-call]
        ends = self._offsets(partitions, latest, IsolationLevel.READ_COMMITTED)
        return {
            partition: end if offset < 0 else offset
            for partition, offset, end in zip(partitions, found, ends, strict=True)
        }

    def _offsets(self, partitions: Sequence[int], spec: OffsetSpec, isolation: IsolationLevel) -> list[int]:
        requests = {TopicPartition(self.name, partition): spec for partition in partitions}
        try:
            responses = self._admin.list_offsets(requests, isolation_level=isolation, request_timeout=TIMEOUT_S)
            found = {each.partition: future.result(TIMEOUT_S + 1).offset for each, future in responses.items()}
        except KafkaException as error:
            raise self.failed(error) from None
        except TimeoutError:
            raise self.error(f"Kafka at {self._servers}: no response within {TIMEOUT_S:g} s") from None
        return [found[partition] for partition in partitions]

    def records(self, span: Span) -> Iterator[Record]:
        """Go through the records of a span; those that retention has deleted are skipped."""
        if span.begin >= span.end:
            return
        self._reader.assign([TopicPartition(self.name, span.partition, span.begin)])
        reached = span.begin
        heard = time.monotonic()
        while reached < span.end:
            try:
                came = self._reader.next(_POLL_S)
            except ConsumeError as error:
                raise self.failed(KafkaException(error.error)) from None
            if isinstance(came, End):
                # Short of the end while a transaction is open; reported again when it has been decided.
                reached = max(reached, came.offset)
            elif came is not None:
                if came.offset >= span.end:
                    return
                yield came
                reached = came.offset + 1
                heard = time.monotonic()
            if reached < span.end and time.monotonic() - heard > PATIENCE_S:
                raise self.error(
                    f"{self.name}[{span.partition}]: no record after offset {reached} of {span.end} "
                    f"within {PATIENCE_S:g} s: a broker is unreachable, or a transaction stays open"
                )

    def failed(self, error: KafkaException, operation: Operation = Operation.READ, *names: str) -> Exception:
        """Return the error to raise; ``operation`` is what was tried on the resources ``names``, by default to read."""
        cause: KafkaError = error.args[0]
        if refused(cause):
            return self.error(self._refusals.describe(cause, *(names or [self.name]), operation=operation))
        if cause.code() in _UNREACHABLE:
            return self.unreachable(cause.str())
        return self.error(f"Kafka at {self._servers}: {cause.str()}")

    def unreachable(self, problem: str) -> Exception:
        """Return the error for a cluster that does not answer, with the reason where the connection has one."""
        return self.error(f"Kafka at {self._servers}: {self._connection_errors.describe(problem)}")

    def lacking(self, resource: Resource, operation: Operation, *names: str) -> Exception:
        """Return the error for a privilege that is missing on the resources of these full names."""
        return self.error(self._refusals.missing(resource, *names, operation=operation))

    def unwritable(self, *names: str) -> list[str]:
        """Return which of these topics may not be written to."""
        topics = TopicCollection(list(names))
        responses = self._admin.describe_topics(topics, include_authorized_operations=True, request_timeout=TIMEOUT_S)
        found = []
        for name, response in responses.items():
            with contextlib.suppress(KafkaException, TimeoutError):
                if AclOperation.WRITE in (response.result(TIMEOUT_S + 1).authorized_operations or ()):
                    continue
            found.append(name)
        return found
