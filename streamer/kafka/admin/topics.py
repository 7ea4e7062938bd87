"""Reconcile a cluster's topics with ``topics.toml``.

:func:`check` compares and :func:`apply` repairs: it creates missing topics, alters configs that differ and adds
partitions. What Kafka cannot do in place (fewer partitions, other replicas) is refused with a line that says so. It
never deletes a topic, nor a config that the file does not name. Both are idempotent and may run at the same time on
several machines: a topic that another process has just created is compared like any other.
"""

from __future__ import annotations

import contextlib
import time
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeout
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Any, TypeVar

from confluent_kafka import KafkaError, KafkaException, TopicCollection
from confluent_kafka.admin import (
    AdminClient,
    AlterConfigOpType,
    ConfigEntry,
    ConfigResource,
    NewPartitions,
    NewTopic,
    ResourceType,
)

from streamer.kafka.admin.topic_files import BROKER_DEFAULT, TopicSpec
from streamer.kafka.client import config
from streamer.kafka.client.acls import Operation
from streamer.kafka.client.connection_errors import ConnectionErrors
from streamer.kafka.client.refusals import Refusals
from streamer.topology import DEMO, SERVICES, TOPICS_APPLY, TOPICS_CHECK

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from streamer.settings import Connection

TIMEOUT_S = 30.0
"""Timeout of one request to the cluster, and of waiting until a change is visible. Ten seconds were not enough for
brokers that had just started on a busy machine."""
_SETTLE_POLL_S = 0.1
_UNREACHABLE = frozenset({KafkaError._TIMED_OUT, KafkaError._TRANSPORT, KafkaError._AUTHENTICATION})

T = TypeVar("T")


class TopicsError(Exception):
    """The cluster is unreachable or denies access; the message is one line."""


class Aspect(StrEnum):
    """The property in which a topic differs."""

    EXISTENCE = "existence"
    PARTITIONS = "partitions"
    REPLICATION = "replication"
    CONFIG = "config"


@dataclass(frozen=True)
class Difference:
    """One difference between a topic and the file. ``topic`` is the full name."""

    topic: str
    aspect: Aspect
    wanted: str
    actual: str
    key: str = ""
    """The config's key, for :attr:`Aspect.CONFIG`."""

    def __str__(self) -> str:
        """Return the line to print."""
        if self.aspect is Aspect.EXISTENCE:
            return f"{self.topic}: missing"
        return f"{self.topic}: {self.key or self.aspect} is {self.actual}, not {self.wanted}"

    @property
    def why_not(self) -> str | None:
        """Why :func:`apply` cannot repair it; None where it can."""
        if self.aspect is Aspect.REPLICATION:
            return "use kafka-reassign-partitions to change replicas"
        if self.aspect is Aspect.PARTITIONS and int(self.actual) > int(self.wanted):
            return "Kafka cannot remove partitions"
        return None


class Outcome(StrEnum):
    """The outcome for one topic, or for one of its differences."""

    UNCHANGED = "unchanged"
    CREATED = "created"
    ALTERED = "altered"
    REFUSED = "refused"


@dataclass(frozen=True)
class Change:
    """One thing that :func:`apply` did, found unchanged, or could not do. ``topic`` is the full name."""

    topic: str
    outcome: Outcome
    detail: str

    def __str__(self) -> str:
        """Return the line to print."""
        return f"{self.topic}: {self.outcome}: {self.detail}"


@dataclass(frozen=True)
class TopicState:
    """One topic on the cluster; ``replicas`` is the lowest number of any partition."""

    partitions: int
    replicas: int
    config: Mapping[str, str]


def compare(topic: str, spec: TopicSpec, state: TopicState | None, brokers: int) -> list[Difference]:
    """Compare one topic with its spec; ``state`` is None where the cluster does not have it.

    The number of brokers is enough replicas, and so is the number in the spec: a broker that is temporarily down makes
    no difference.
    """
    if state is None:
        return [Difference(topic, Aspect.EXISTENCE, "present", "missing")]
    found = []
    if state.partitions != spec.partitions:
        found.append(Difference(topic, Aspect.PARTITIONS, str(spec.partitions), str(state.partitions)))
    enough = spec.replicas(brokers) <= state.replicas <= spec.replication
    if spec.replication != BROKER_DEFAULT and not enough:
        found.append(Difference(topic, Aspect.REPLICATION, str(spec.replicas(brokers)), str(state.replicas)))
    found += [
        Difference(topic, Aspect.CONFIG, wanted, actual, key)
        for key, wanted in sorted(spec.config_for(state.replicas).items())
        if not _same(wanted, actual := state.config.get(key, "unknown to the cluster"))
    ]
    return found


def _same(wanted: str, actual: str) -> bool:
    """Compare config values; those that are lists (``compact,delete``) have no order."""
    return sorted(wanted.replace(" ", "").split(",")) == sorted(actual.replace(" ", "").split(","))


def check(settings: Connection, specs: Sequence[TopicSpec], *, timeout: float = TIMEOUT_S) -> list[Difference]:
    """Return the differences between the cluster's topics and ``specs``; an empty list means none.

    Raises :class:`TopicsError` where the cluster is unreachable or denies access, and SettingsError for a property that
    librdkafka refuses.
    """
    return _Cluster(settings, specs, timeout, TOPICS_CHECK).differences()


def copartitioning_warnings(settings: Connection, *, timeout: float = TIMEOUT_S) -> list[str]:
    """Return a line for each service whose input and output topics differ in their number of partitions.

    Records of one key then lie in different partitions, and Kafka Streams refuses to join the two topics. Topics that
    do not exist, or that this client may not describe, are passed over. Raises as :func:`check` does.
    """
    return _Cluster(settings, (), timeout, TOPICS_CHECK).copartitioning_warnings(
        [(settings.topic(service.input), settings.topic(service.output)) for service in SERVICES.values()]
    )


def apply(settings: Connection, specs: Sequence[TopicSpec], *, timeout: float = TIMEOUT_S) -> list[Change]:
    """Reconcile the cluster's topics with ``specs``, and return one or more lines for each topic.

    When it returns, its changes are visible to clients. Raises as :func:`check` does.
    """
    cluster = _Cluster(settings, specs, timeout, TOPICS_APPLY)
    changes = [
        cluster.create(difference.topic)
        for difference in cluster.differences()
        if difference.aspect is Aspect.EXISTENCE
    ]
    absent = {change.topic for change in changes if change.outcome is Outcome.REFUSED}
    # Compare again: another process may have created a topic meanwhile, with another configuration.
    left = cluster.settle(
        lambda left: {d.topic for d in left if d.aspect is Aspect.EXISTENCE} <= absent,
    )
    repaired = set()
    for difference in left:
        if difference.topic not in absent:
            change = cluster.repair(difference)
            changes.append(change)
            if change.outcome is Outcome.ALTERED:
                repaired.add(difference)
    if repaired:
        cluster.settle(repaired.isdisjoint)
    touched = {change.topic for change in changes}
    changes += [Change(topic, Outcome.UNCHANGED, "up to date") for topic in cluster.specs if topic not in touched]
    order = list(cluster.specs)
    return sorted(changes, key=lambda change: order.index(change.topic))


def drop(settings: Connection, specs: Sequence[TopicSpec], *, timeout: float = TIMEOUT_S) -> None:
    """Delete the topics of ``specs`` and their records: for a prefix that is no longer needed, such as a demo's."""
    _Cluster(settings, specs, timeout, DEMO).drop()


class _Cluster:
    """The topics of the specs on the cluster that the settings name."""

    def __init__(self, settings: Connection, specs: Sequence[TopicSpec], timeout: float, role: str) -> None:
        self.specs = {settings.topic(spec.name): spec for spec in specs}
        self._timeout = timeout
        self._servers = settings.bootstrap_servers
        self._connection_errors = ConnectionErrors()
        self._refusals = Refusals(settings, role)
        properties = {
            # Connection errors are reported once by error_cb, not in a log line every 100 ms.
            "log_level": 0,
            **config.common(settings),
            "error_cb": self._connection_errors,
        }
        self._admin: AdminClient = config.make_client(AdminClient, properties)
        self._brokers = len(self._result(self._admin.describe_cluster(request_timeout=timeout)).nodes)

    def _result(self, future: Future[T]) -> T:
        """Wait for the response to one request; errors of single topics are raised as KafkaException."""
        deadline = time.monotonic() + self._timeout + 1
        while not future.done() and time.monotonic() < deadline and not self._connection_errors.is_final:
            self._admin.poll(0.05)
        try:
            return future.result(timeout=0)
        except FutureTimeout:
            raise TopicsError(self._unreachable("no response")) from None
        except KafkaException as error:
            cause: KafkaError = error.args[0]
            if cause.code() in _UNREACHABLE:
                raise TopicsError(self._unreachable(cause.str())) from None
            raise

    def _unreachable(self, problem: str) -> str:
        within = "" if self._connection_errors.is_final else f" within {self._timeout:g} s"
        return f"no response from Kafka at {self._servers}{within}: {self._connection_errors.describe(problem)}"

    def differences(self) -> list[Difference]:
        """Read the topics and compare them, in the order of the specs."""
        states = self._read()
        return [
            difference
            for topic, spec in self.specs.items()
            for difference in compare(topic, spec, states.get(topic), self._brokers)
        ]

    def copartitioning_warnings(self, pairs: Sequence[tuple[str, str]]) -> list[str]:
        """Compare the partition counts of each pair of topics."""
        names = TopicCollection(list(dict.fromkeys(name for pair in pairs for name in pair)))
        counts: dict[str, int] = {}
        for topic, future in self._admin.describe_topics(names, request_timeout=self._timeout).items():
            # `check` reports what is missing, and what may not be described.
            with contextlib.suppress(KafkaException):
                counts[topic] = len(self._result(future).partitions)
        return [
            f"{left} has {counts[left]} partitions and {right} {counts[right]}: records of one key are in different "
            "partitions, and Kafka Streams cannot join the two"
            for left, right in pairs
            if left in counts and right in counts and counts[left] != counts[right]
        ]

    def settle(self, done: Callable[[list[Difference]], bool]) -> list[Difference]:
        """Wait until changes are visible on the brokers; return what still differs."""
        deadline = time.monotonic() + self._timeout
        while not done(left := self.differences()):
            if time.monotonic() > deadline:
                raise TopicsError(f"accepted, but not visible after {self._timeout:g} s: {left[0]}")
            time.sleep(_SETTLE_POLL_S)
        return left

    def _read(self) -> dict[str, TopicState]:
        descriptions: dict[str, Any] = {}
        collection = TopicCollection(list(self.specs))
        for topic, future in self._admin.describe_topics(collection, request_timeout=self._timeout).items():
            if (description := self._looked_up(topic, future, Operation.DESCRIBE)) is not None:
                descriptions[topic] = description
        if not descriptions:
            return {}
        states = {}
        resources = [ConfigResource(ResourceType.TOPIC, topic) for topic in descriptions]
        for resource, future in self._admin.describe_configs(resources, request_timeout=self._timeout).items():
            if (entries := self._looked_up(resource.name, future, Operation.DESCRIBE_CONFIGS)) is not None:
                partitions = descriptions[resource.name].partitions
                states[resource.name] = TopicState(
                    partitions=len(partitions),
                    replicas=min(len(partition.replicas) for partition in partitions),
                    config={key: entry.value or "" for key, entry in entries.items()},
                )
        return states

    def _looked_up(self, topic: str, future: Future[T], operation: Operation) -> T | None:
        try:
            return self._result(future)
        except KafkaException as error:
            cause: KafkaError = error.args[0]
            if cause.code() == KafkaError.UNKNOWN_TOPIC_OR_PART:
                return None
            why = self._refusals.describe(cause, topic, operation=operation)
            raise TopicsError(f"{topic}: cannot be described: {why}") from None

    def create(self, topic: str) -> Change:
        """Create one topic; one that another process has just created is fine too."""
        spec = self.specs[topic]
        replicas = spec.replicas(self._brokers)
        new = NewTopic(topic, spec.partitions, replicas, config=dict(spec.config_for(replicas)))
        created = self._admin.create_topics([new], operation_timeout=self._timeout, request_timeout=self._timeout)
        try:
            self._result(created[topic])
        except KafkaException as error:
            cause: KafkaError = error.args[0]
            if cause.code() != KafkaError.TOPIC_ALREADY_EXISTS:
                why = self._refusals.describe(cause, topic, operation=Operation.CREATE)
                return Change(topic, Outcome.REFUSED, f"cannot be created: {why}")
            return Change(topic, Outcome.UNCHANGED, "created by another process meanwhile")
        detail = f"{spec.partitions} partitions"
        if replicas != BROKER_DEFAULT:
            detail += f", replication {replicas}"
        if replicas < spec.replication:
            brokers = f"{self._brokers} broker{'s' if self._brokers != 1 else ''}"
            detail += f" (only {brokers} available, {spec.replication} wanted)"
        return Change(topic, Outcome.CREATED, detail)

    def repair(self, difference: Difference) -> Change:
        """Repair one difference of an existing topic, or say why not."""
        topic = difference.topic
        wish = f"{difference.key or difference.aspect} {difference.actual} -> {difference.wanted}"
        if difference.why_not:
            return Change(topic, Outcome.REFUSED, f"{wish}: {difference.why_not}")
        partitions = difference.aspect is Aspect.PARTITIONS
        try:
            if partitions:
                self._add_partitions(topic, int(difference.wanted))
            else:
                self._set_config(topic, difference.key, difference.wanted)
        except KafkaException as error:
            operation = Operation.ALTER if partitions else Operation.ALTER_CONFIGS
            why = self._refusals.describe(error.args[0], topic, operation=operation)
            return Change(topic, Outcome.REFUSED, f"{wish}: {why}")
        return Change(topic, Outcome.ALTERED, wish)

    def drop(self) -> None:
        """Delete the topics; one that does not exist is fine too."""
        deletions = self._admin.delete_topics(list(self.specs), request_timeout=self._timeout)
        for topic, future in deletions.items():
            try:
                self._result(future)
            except KafkaException as error:
                cause: KafkaError = error.args[0]
                if cause.code() != KafkaError.UNKNOWN_TOPIC_OR_PART:
                    why = self._refusals.describe(cause, topic, operation=Operation.DELETE)
                    raise TopicsError(f"{topic}: cannot be deleted: {why}") from None

    def _add_partitions(self, topic: str, total: int) -> None:
        wanted = self._admin.create_partitions(
            [NewPartitions(topic, total)], operation_timeout=self._timeout, request_timeout=self._timeout
        )
        self._result(wanted[topic])

    def _set_config(self, topic: str, key: str, value: str) -> None:
        entry = ConfigEntry(key, value, incremental_operation=AlterConfigOpType.SET)
        resource = ConfigResource(ResourceType.TOPIC, topic, incremental_configs=[entry])
        (future,) = self._admin.incremental_alter_configs([resource], request_timeout=self._timeout).values()
        self._result(future)
