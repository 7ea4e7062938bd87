"""Request and reply through a running service: publish a record, and wait for the record that it causes."""

from __future__ import annotations

import contextlib
import time
from typing import TYPE_CHECKING

from confluent_kafka import KafkaError, KafkaException, Producer, TopicPartition

from streamer.kafka.client import config
from streamer.kafka.client.acls import Operation
from streamer.kafka.client.refusals import Refusals
from streamer.kafka.readers.record_reader import ConsumeError, End, RecordReader
from streamer.kafka.readers.topic_reader import TopicReader
from streamer.kafka.records import enqueue
from streamer.topology import REPLAY, dead_letter_topic

if TYPE_CHECKING:
    from collections.abc import Callable

    from streamer.kafka.records import Output, Record
    from streamer.settings import Connection

_POLL_S = 0.05


class RequestError(Exception):
    """A request got no reply; the message is one line."""


class Requester:
    """Sends one request at a time; the reply is the committed record with the request's key.

    So each key must be unique. Only records written after this object was made are read.
    """

    def __init__(
        self, settings: Connection, *, requests: str, replies: str, is_meant: Callable[[Record], bool]
    ) -> None:
        """Connect; ``requests`` and ``replies`` are topics' names without prefix.

        ``is_meant`` is asked of every reply and every dead letter, since several groups may answer one request; the
        others are passed over.

        Raises :class:`~streamer.kafka.readers.topic_reader.ReadError` where there is no such topic.
        """
        self._dead = settings.topic(dead_letter_topic(requests))
        self._settings = settings
        self._is_meant = is_meant
        self._refusals = Refusals(settings, REPLAY.role)
        places = []
        for name in (settings.topic(replies), self._dead):
            with contextlib.closing(TopicReader(settings, name, REPLAY)) as reader:
                places += [TopicPartition(name, span.partition, span.end) for span in reader.spans()]
        self._reader = RecordReader(config.reader(settings, settings.topic(REPLAY.group)))
        self._reader.assign(places)
        self._producer: Producer = config.make_client(Producer, {**config.publisher(settings), "linger.ms": 0})

    def request(self, output: Output, *, timeout: float) -> Record:
        """Publish ``output`` and return the reply.

        Raises :class:`RequestError` where that takes longer than ``timeout`` seconds.
        """
        problems: list[str] = []

        def delivered(error: KafkaError | None, _message: object) -> None:
            if error is not None:
                problems.append(self._refusals.describe(error, output.topic, operation=Operation.WRITE))

        name = (output.key or b"").decode(errors="replace")
        deadline = time.monotonic() + timeout
        try:
            enqueue(self._producer, output, delivered)
        except KafkaException as error:
            raise RequestError(f"{name}: {error.args[0].str()}") from None
        while time.monotonic() < deadline:
            try:
                self._producer.poll(0)
            except KafkaException as error:  # a fatal one
                problems.append(self._refusals.describe(error.args[0], output.topic, operation=Operation.WRITE))
            if problems:
                raise RequestError(f"{name} could not be published to {output.topic}: {problems[0]}")
            record = self._next()
            if record is None or not self._is_meant(record) or record.key != output.key:
                continue
            if record.topic == self._dead:
                why = dict(record.headers).get("dlq.error") or b""
                raise RequestError(f"{name} was dead-lettered: {why.decode(errors='replace')}")
            return record
        raise RequestError(
            f"{name} got no reply within {timeout:g} s: is a service running on {output.topic} at "
            f"{self._settings.bootstrap_servers}, and is it ready (/readyz)?"
        )

    def _next(self) -> Record | None:
        try:
            record = self._reader.next(_POLL_S)
        except ConsumeError as error:
            why = self._refusals.describe(error.error, error.topic, operation=Operation.READ)
            raise RequestError(f"Kafka at {self._settings.bootstrap_servers}: {why}") from None
        return None if isinstance(record, End) else record

    def close(self) -> None:
        """Close the connections. A request that has no reply yet is abandoned."""
        self._reader.close()
        self._producer.purge()
