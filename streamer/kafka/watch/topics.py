"""Whether the topics that a service needs are there, may be used, and which topic bears the input's name.

What may be done with a topic is part of its description, so a missing privilege is told before anything fails for it.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from confluent_kafka import KafkaError, KafkaException, TopicCollection
from confluent_kafka.admin import AclOperation, AdminClient

from streamer.kafka.client import config
from streamer.kafka.client.acls import Resource
from streamer.kafka.client.refusals import Refusals, refused

if TYPE_CHECKING:
    from collections.abc import Sequence
    from concurrent.futures import Future

    from streamer.health import Health
    from streamer.settings import Connection

_LOOK_EVERY_S = 1.0
_LOOK_TIMEOUT_S = 5.0
_UNKNOWN_TOPIC = (
    KafkaError.UNKNOWN_TOPIC_OR_PART,
    KafkaError._UNKNOWN_TOPIC,
    KafkaError.UNKNOWN_TOPIC_ID,
    KafkaError.INCONSISTENT_TOPIC_ID,
)


class TopicWatch:
    """Looks for topics until all are there; used from the loop's thread, and never waits."""

    def __init__(self, settings: Connection, names: Sequence[str], health: Health, refusals: Refusals) -> None:
        """``names`` are full names: the input topic's, which is read, and those of topics that are written."""
        self._settings = settings
        self._names = list(names)
        self._health = health
        self._refusals = refusals
        self._admin: AdminClient | None = None
        self._answers: dict[str, Future[Any]] = {}
        self._next_look = 0.0
        self.found = False
        """Whether all topics were there, and ours to use, at the last look."""
        self.topic_id: str | None = None
        """The input topic's, None until it was found; a topic that is deleted and made anew has another one."""
        health.wait_for("topic", "not looked for yet")

    def on_error(self, error: KafkaError) -> bool:
        """Take an error that the consumer reports; return whether it was one of the input topic."""
        if error.code() in _UNKNOWN_TOPIC:
            self.found = False
            return True
        if error.code() == KafkaError.TOPIC_AUTHORIZATION_FAILED:
            self.found = False
            self._health.wait_for("topic", self._refusals.missing(Resource.TOPIC, self._names[0]))
            return True
        return False

    def look_again(self) -> None:
        """Take nothing for granted any more: a topic may have gone, or come again as another one."""
        self.found = False
        self._answers = {}
        self._next_look = 0.0

    def look(self) -> None:
        """Ask for the topics now and then until all are there, and take the answers that have come."""
        if self.found:
            return
        if self._answers:
            if all(answer.done() for answer in self._answers.values()):
                self._take(self._answers)
                self._answers = {}
        elif time.monotonic() >= self._next_look:
            self._next_look = time.monotonic() + _LOOK_EVERY_S
            if self._admin is None:
                self._admin = config.make_client(AdminClient, config.common(self._settings))
            self._answers = self._admin.describe_topics(
                TopicCollection(self._names), include_authorized_operations=True, request_timeout=_LOOK_TIMEOUT_S
            )

    def _take(self, answers: dict[str, Future[Any]]) -> None:
        for name in self._names:
            try:
                described = answers[name].result()
            except KafkaException as error:
                self._health.wait_for("topic", self._problem(name, error.args[0]))
                return
            allowed = described.authorized_operations
            # Some brokers do not tell.
            if allowed and (AclOperation.READ if name == self._names[0] else AclOperation.WRITE) not in allowed:
                self._health.wait_for("topic", self._refusals.missing(Resource.TOPIC, name))
                return
            if name == self._names[0]:
                self.topic_id = str(described.topic_id)
        self.found = True
        self._admin = None  # the next look is far, mostly: no connection is kept for it
        self._health.holds("topic")

    def _problem(self, name: str, error: KafkaError) -> str:
        if refused(error):
            return self._refusals.told(error, name)
        missing = error.code() in _UNKNOWN_TOPIC
        return f"{name} {'does not exist; streamer topics apply makes it' if missing else error.str()}"
