"""A question to a running service: a record published, and the record awaited that it causes."""

from __future__ import annotations

import contextlib
import time
from typing import TYPE_CHECKING

from confluent_kafka import Consumer, KafkaError, KafkaException, Producer, TopicPartition

from streamer.kafka.client import config
from streamer.kafka.client.acls import Operation, Resource
from streamer.kafka.client.produce import enqueue
from streamer.kafka.client.refusals import Refusals, refused
from streamer.kafka.readers.topic_reader import TopicReader
from streamer.kafka.records import record_of
from streamer.topology import DLQ_SUFFIX

if TYPE_CHECKING:
    from streamer.kafka.records import Output, Record
    from streamer.settings import Connection

GROUP = "streamer-ask"
ROLE = "replay"
"""Whose privileges it needs: the one command that asks."""
_POLL_S = 0.05


class RequestError(Exception):
    """A question was not answered; the message is one line."""


class Requester:
    """Asks one question at a time; an answer is the committed record that carries the question's key.

    So keys must be those of no other record. Only what comes after this was made is read.
    """

    def __init__(self, settings: Connection, *, questions: str, answers: str) -> None:
        """``questions`` and ``answers`` are topics' names without prefix.

        Raises :class:`~streamer.kafka.readers.topic_reader.ReadError` where there is no such topic.
        """
        self._dead = settings.topic(questions + DLQ_SUFFIX)
        self._settings = settings
        self._refusals = Refusals(settings, ROLE)
        places = []
        for name in (settings.topic(answers), self._dead):
            with contextlib.closing(TopicReader(settings, name, group=GROUP, role=ROLE)) as reader:
                places += [TopicPartition(name, span.partition, span.end) for span in reader.spans()]
        self._consumer: Consumer = config.make_client(Consumer, config.reader(settings, settings.topic(GROUP)))
        self._consumer.assign(places)
        self._producer: Producer = config.make_client(
            Producer, {**config.common(settings), "enable.idempotence": True, "linger.ms": 0}
        )

    def ask(self, question: Output, *, timeout: float) -> Record:
        """Publish ``question`` and return its answer.

        Raises :class:`RequestError` where that takes longer than ``timeout`` seconds.
        """
        problems: list[str] = []

        def delivered(error: KafkaError | None, _message: object) -> None:
            if error is not None:
                problems.append(self._refusals.told(error, question.topic, operation=Operation.WRITE))

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
                problems.append(self._refusals.told(error.args[0], question.topic, operation=Operation.WRITE))
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
        message = self._consumer.poll(_POLL_S)
        if message is None:
            return None
        error = message.error()
        if error is None:
            return record_of(message)
        # The client looks for the group's coordinator, though nothing here needs the group.
        if not error.retriable() and refused(error) is not Resource.GROUP:
            why = self._refusals.told(error, message.topic() or "", operation=Operation.READ)
            raise RequestError(f"Kafka at {self._settings.bootstrap_servers}: {why}")
        return None

    def close(self) -> None:
        """Leave. A question that is still under way is given up."""
        self._consumer.close()
        self._producer.purge()
