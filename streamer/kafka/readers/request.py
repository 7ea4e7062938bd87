"""A question to a running service: a record published, and the record awaited that it causes."""

from __future__ import annotations

import contextlib
import time
from typing import TYPE_CHECKING

from confluent_kafka import KafkaError, KafkaException, Producer, TopicPartition

from streamer.kafka.client import config
from streamer.kafka.client.acls import Operation
from streamer.kafka.client.produce import enqueue
from streamer.kafka.client.refusals import Refusals
from streamer.kafka.readers.record_reader import ConsumeError, End, RecordReader
from streamer.kafka.readers.topic_reader import TopicReader
from streamer.topology import REPLAY, dead_letter_topic

if TYPE_CHECKING:
    from streamer.kafka.records import Output, Record
    from streamer.settings import Settings

_POLL_S = 0.05


class RequestError(Exception):
    """A question was not answered; the message is one line."""


class Requester:
    """Asks one question at a time; an answer is the committed record that carries the question's key.

    So keys must be those of no other record. Only what comes after this was made is read.
    """

    def __init__(self, settings: Settings, *, questions: str, answers: str) -> None:
        """``questions`` and ``answers`` are topics' names without prefix.

        Raises :class:`~streamer.kafka.readers.topic_reader.ReadError` where there is no such topic.
        """
        self._dead = settings.topic(dead_letter_topic(questions))
        self._settings = settings
        self._refusals = Refusals(settings, REPLAY.role)
        places = []
        for name in (settings.topic(answers), self._dead):
            with contextlib.closing(TopicReader(settings, name, REPLAY)) as reader:
                places += [TopicPartition(name, span.partition, span.end) for span in reader.spans()]
        self._reader = RecordReader(config.reader(settings, settings.topic(REPLAY.group)))
        self._reader.assign(places)
        self._producer: Producer = config.make_client(
            Producer, {**config.common(settings), "enable.idempotence": True, "linger.ms": 0}
        )

    def request(self, question: Output, *, timeout: float) -> Record:
        """Publish ``question`` and return its answer.

        Raises :class:`RequestError` where that takes longer than ``timeout`` seconds.
        """
        problems: list[str] = []

        def delivered(error: KafkaError | None, _message: object) -> None:
            if error is not None:
                problems.append(self._refusals.describe(error, question.topic, operation=Operation.WRITE))

        name = (question.key or b"").decode(errors="replace")
        deadline = time.monotonic() + timeout
        try:
            enqueue(self._producer, question, delivered)
        except KafkaException as error:
            raise RequestError(f"{name}: {error.args[0].str()}") from None
        while time.monotonic() < deadline:
            try:
                self._producer.poll(0)
            except KafkaException as error:  # a fatal one
                problems.append(self._refusals.describe(error.args[0], question.topic, operation=Operation.WRITE))
            if problems:
                raise RequestError(f"{name} could not be published to {question.topic}: {problems[0]}")
            record = self._next()
            if record is None or record.key != question.key:
                continue
            if record.topic == self._dead:
                why = dict(record.headers).get("dlq.error") or b""
                raise RequestError(f"{name} was refused: {why.decode(errors='replace')}")
            return record
        raise RequestError(
            f"{name} was not answered in {timeout:g} s: is a service running on {question.topic} at "
            f"{self._settings.bootstrap_servers}, and what does its /readyz say?"
        )

    def _next(self) -> Record | None:
        try:
            record = self._reader.next(_POLL_S)
        except ConsumeError as error:
            why = self._refusals.describe(error.error, error.topic, operation=Operation.READ)
            raise RequestError(f"Kafka at {self._settings.bootstrap_servers}: {why}") from None
        return None if isinstance(record, End) else record

    def close(self) -> None:
        """Leave. A question that is still under way is given up."""
        self._reader.close()
        self._producer.purge()
