"""Checks that a service's topics exist and that it may use them, and watches whether they are still the same.

A topic's description lists the operations that the client is allowed, so a missing privilege is reported before a
request fails because of it.
"""

from __future__ import annotations

import math
import time
from typing import TYPE_CHECKING, Any, NamedTuple

import structlog
from confluent_kafka import KafkaError, KafkaException, TopicCollection
from confluent_kafka.admin import AclOperation, AdminClient

from streamer.kafka.client import config
from streamer.kafka.client.acls import Resource
from streamer.kafka.client.refusals import Refusals, refused
from streamer.kafka.watch.configs import OutputConfigs
from streamer.machine import MachineError
from streamer.shortages import Shortages

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from concurrent.futures import Future

    from confluent_kafka import TopicPartitionInfo

    from streamer.health import Health
    from streamer.metrics import Metrics
    from streamer.settings import Connection
    from streamer.topology import Service

log = structlog.get_logger()

_CHECK_EVERY_S = 1.0
_CONFIRM_EVERY_S = 3.0
"""How often topics that were found are described again: a client of the classic protocol does not notice that a topic
was deleted and created again."""
_CONFIRMED_FOR_S = 10.0
"""How old the last description of the input topic may be when offsets are committed."""
_HELD_FOR_S = 20.0
"""How long commits wait for a description that does not come. Then they go on: one that lands in the offsets of a new
topic is void there, since it names its log."""
_CHECK_TIMEOUT_S = 5.0
_UNANSWERED_S = 15.0
"""How long no broker may describe the topics before that is a reason not to be ready: an idle service has no other
sign of brokers that take requests and do not answer."""
_MOST_NAMED = 10
_UNKNOWN_TOPIC = (
    KafkaError.UNKNOWN_TOPIC_OR_PART,
    KafkaError._UNKNOWN_TOPIC,
    KafkaError.UNKNOWN_TOPIC_ID,
    KafkaError.INCONSISTENT_TOPIC_ID,
)


class _Seen(NamedTuple):
    """What a topic was when it was last described."""

    topic_id: str
    partitions: int


class TopicWatch:
    """Checks that the topics exist and are still the same; used from the loop's thread, never waits."""

    def __init__(self, settings: Connection, service: Service, *, metrics: Metrics, health: Health) -> None:
        self._settings = settings
        self._metrics = metrics
        self._names = [settings.topic(name) for name in service.topics]
        """Full names: that of the input topic, which is read, and those of the topics that are written."""
        self._health = health
        self._shortages = Shortages(metrics, health)
        self._refusals = Refusals(settings, service.role)
        self._admin: AdminClient | None = None
        self._responses: dict[str, Future[Any]] = {}
        self._checked_at = self._confirmed_at = self._answered_at = -math.inf
        self._known_at = 0.0
        """When the topic was last seen or the watch was last told to look."""
        self.found = False
        """Whether all topics existed and could be used at the last check."""
        self.topic_id: str | None = None
        """The input topic's id, None until it was found; a topic that is deleted and created again has another one."""
        self.configs = OutputConfigs(self._names[1:])
        self._seen: dict[str, _Seen] = {}
        self._changed: set[str] = set()
        for name in self._names:
            metrics.topics_recreated.labels(name)
        health.not_ready("topic", "not checked yet")

    def on_error(self, error: KafkaError) -> bool:
        """Handle an error that the consumer reports; return whether it concerns the input topic."""
        if error.code() in _UNKNOWN_TOPIC:
            self.found = False
            return True
        if error.code() == KafkaError.TOPIC_AUTHORIZATION_FAILED:
            self.found = False
            self._health.not_ready("topic", self._refusals.missing(Resource.TOPIC, self._names[0]))
            return True
        return False

    def invalidate(self) -> None:
        """Check again: a topic may have been deleted, or deleted and created again."""
        self.found = False
        self._responses = {}
        self._checked_at = self._confirmed_at = -math.inf
        self._known_at = time.monotonic()

    def check(self) -> None:
        """Request the topics' descriptions periodically, and take the responses that have arrived."""
        if self._admin is not None and self.found:
            self.configs.check(self._admin)
        if self._responses:
            if all(response.done() for response in self._responses.values()):
                self._take(self._responses)
                self._responses = {}
        elif time.monotonic() >= self._checked_at + (_CONFIRM_EVERY_S if self.found else _CHECK_EVERY_S):
            self._checked_at = time.monotonic()
            if self._admin is None:
                try:
                    self._admin = config.make_client(AdminClient, config.common(self._settings))
                except MachineError as lack:
                    self._shortages.tell(lack)
                    return
            self._responses = self._admin.describe_topics(
                TopicCollection(self._names), include_authorized_operations=True, request_timeout=_CHECK_TIMEOUT_S
            )
        if self.topic_id is not None and time.monotonic() - self._answered_at > _UNANSWERED_S:
            self._health.not_ready("topic", f"no broker has described {self._names[0]} for {_UNANSWERED_S:.0f} s")

    @property
    def is_complete(self) -> bool:
        """Whether all is known that is needed before anything is read; outputs that are missing are not waited for."""
        return self.topic_id is not None and (self.configs.is_known or not self.found)

    @property
    def may_commit(self) -> bool:
        """Whether the input topic was lately seen to have the id :attr:`topic_id`, or cannot be seen for long."""
        now = time.monotonic()
        return now - self._confirmed_at <= _CONFIRMED_FOR_S or now - self._known_at > _HELD_FOR_S

    def take_changed(self) -> set[str]:
        """Return which outputs were created again, or have another number of partitions, since this was last called."""
        changed, self._changed = self._changed, set()
        return changed

    def _take(self, responses: dict[str, Future[Any]]) -> None:
        unusable: list[str] = []
        for name in self._names:
            try:
                described = responses[name].result()
            except KafkaException as error:
                if self.found and not _is_definite(error.args[0]):
                    return  # the brokers are busy or away, which says nothing of the topics
                self._answered_at = time.monotonic()
                self.found = False
                self._health.not_ready("topic", self._problem(name, error.args[0]))
                return
            self._answered_at = time.monotonic()
            allowed = described.authorized_operations
            # Some brokers do not report the allowed operations.
            if allowed and (AclOperation.READ if name == self._names[0] else AclOperation.WRITE) not in allowed:
                self.found = False
                self._health.not_ready("topic", self._refusals.missing(Resource.TOPIC, name))
                return
            self._compare(name, _Seen(str(described.topic_id), len(described.partitions)))
            unusable += self._unusable(name, described.partitions)
            if name == self._names[0]:
                self.topic_id = str(described.topic_id)
                self._confirmed_at = self._known_at = self._checked_at
        self.found = True
        self._note_partitions()
        if unusable:
            more = len(unusable) - _MOST_NAMED
            self._health.not_ready("topic", "; ".join(unusable[:_MOST_NAMED] + ([f"{more} more"] if more > 0 else [])))
        else:
            self._health.ready("topic")

    def _unusable(self, name: str, partitions: Sequence[TopicPartitionInfo]) -> Iterator[str]:
        """Go through what cannot be read or written now, of partitions that exist."""
        for each in partitions:
            # Brokers themselves ask for no more replicas in sync than there are.
            least = min(self.configs.least_in_sync.get(name, 0), len(each.replicas))
            if each.leader is None:
                yield f"{name}[{each.id}] has no leader"
            elif len(each.isr) < least:
                in_sync = f"{len(each.isr)} replicas are in sync, min.insync.replicas={least}"
                yield f"{name}[{each.id}] takes no writes: {in_sync}"

    def _compare(self, name: str, now: _Seen) -> None:
        before, self._seen[name] = self._seen.get(name, now), now
        if now == before:
            return
        is_output = name != self._names[0]
        if is_output:
            self._changed.add(name)
        partitions = {"partitions": now.partitions, "partitions_before": before.partitions}
        if now.topic_id != before.topic_id:
            self._metrics.topics_recreated.labels(name).inc()
            log.error("topic was deleted and created again; what it held is gone", topic=name, **partitions)
        elif is_output:
            log.warning("output topic has another number of partitions; keys move among them", topic=name, **partitions)

    def _note_partitions(self) -> None:
        """Say so where outputs do not lie where their inputs do: a join by key finds only some of them."""
        source, output, _ = self._names
        counts = self._seen[source].partitions, self._seen[output].partitions
        differ = f"{source} has {counts[0]}, {output} {counts[1]}: a join by key misses records"
        self._health.note("partitions", differ if counts[0] != counts[1] else None)

    def _problem(self, name: str, error: KafkaError) -> str:
        if refused(error):
            return self._refusals.describe(error, name)
        missing = error.code() in _UNKNOWN_TOPIC
        return f"{name} {'does not exist; streamer topics apply creates it' if missing else error.str()}"


def _is_definite(error: KafkaError) -> bool:
    return error.code() in _UNKNOWN_TOPIC or refused(error) is not None
