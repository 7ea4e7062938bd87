"""What a fault has to do with: the brokers, the services, the topics, and the ledger of what it entitles to."""

from __future__ import annotations

import random
import time
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

from confluent_kafka import KafkaException, TopicCollection, TopicPartition
from confluent_kafka.admin import (
    AdminClient,
    ConfigResource,
    ConfigSource,
    NewTopic,
    OffsetSpec,
    ResourceType,
)

from tests.chaos.groups import await_committed
from tests.chaos.kinds import EMBED, RERANK
from tests.chaos.services import await_at_work
from tests.support.configs import alter_config
from tests.support.driver import EMBEDDED, LATEST, RERANKED, RESULTS, UPLOADED
from tests.support.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from pathlib import Path

    from tests.chaos.brokers import Brokers
    from tests.chaos.clock import Clock
    from tests.chaos.inputs import Input
    from tests.chaos.ledger import Ledger
    from tests.chaos.plan import Step
    from tests.chaos.publisher import Publisher
    from tests.chaos.services import Instance
    from tests.chaos.sources import Sources
    from tests.chaos.stores import ClusterStore
    from tests.support.driver import Bus

R = TypeVar("R")

GROUPS = {EMBED: "streamer-embed", RERANK: "streamer-rerank"}
INPUTS = {EMBED: UPLOADED, RERANK: RESULTS}
OUTPUTS = {EMBED: EMBEDDED, RERANK: RERANKED}

_EARLIEST: OffsetSpec = OffsetSpec.earliest()  # type: ignore[no-untyped-call]

_REQUEST_S = 10.0
_RETRY_S = 90.0
QUIET_S = 60.0
AT_WORK_S = 80.0


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of a fault.

    ``point_fired``: None where the victim was to die once only. ``harm``: what happened meanwhile that must not.
    """

    fired: bool
    note: str = ""
    point_fired: bool | None = None
    harm: Sequence[str] = ()


@dataclass
class Scene:
    """Everything that faults act upon.

    ``store``: the file that holds the vectors, or the cluster that does. ``disk``: the embedders' temporary folder,
    where it is a file system of its own.
    """

    services: Mapping[str, Instance]
    brokers: Brokers
    bus: Bus
    clock: Clock
    publisher: Publisher
    ledger: Ledger
    protocols: Mapping[str, str]
    sources: Sources
    store: Path | ClusterStore
    disk: Path | None = None
    extra: list[Input] = field(default_factory=list)
    """Inputs that faults have published besides."""

    def __post_init__(self) -> None:
        # librdkafka 2.16 does not ask for the leaders again where a broker refuses a request by the leader's epoch.
        self.admin = AdminClient(
            {"bootstrap.servers": self.bus.bootstrap_servers, "log_level": 0, "metadata.max.age.ms": 2_000}
        )

    # -- who and what ----------------------------------------------------------------------------------------

    def role(self, role: str) -> list[Instance]:
        """Return the instances of a role."""
        return [instance for instance in self.services.values() if instance.command == role]

    def full(self, name: str) -> str:
        """Return the full name of a topic or group."""
        return self.bus.prefix + name

    @staticmethod
    def draw(step: Step) -> random.Random:
        """Return the step's own choices: the same in each run of its plan."""
        return random.Random(repr(step))  # noqa: S311 - reproducible, not secret

    def retried(self, call: Callable[[], R]) -> R:
        """Repeat what brokers may refuse while others are broken. Raises KafkaException, TimeoutError in the end."""
        deadline = time.monotonic() + _RETRY_S
        while True:
            try:
                return call()
            except (KafkaException, TimeoutError):
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.5)

    @contextmanager
    def refused_by_the_store(self, words: str) -> Iterator[None]:
        """Let a process end that starts meanwhile, with these words of the store, until all of them work again."""
        for instance in self.services.values():
            instance.store_refuses = words
        try:
            yield
            with suppress(TimeoutError):  # others may be broken meanwhile
                await_at_work(list(self.services.values()), seconds=AT_WORK_S)
        finally:
            for instance in self.services.values():
                instance.store_refuses = ""

    @contextmanager
    def stopped(self, role: str) -> Iterator[None]:
        """Have no instance of a role run: a group takes offsets from outside only while it has no members."""
        with ExitStack() as stack:
            for instance in self.role(role):
                stack.enter_context(instance.halted())
            yield

    def read_again(self, role: str) -> None:
        """Let a group read all that its input holds once more, as an operator does when the store has lost records."""
        await_at_work(self.role(role), seconds=AT_WORK_S)
        topic = INPUTS[role]
        with self.stopped(role):
            starts = self.starts(topic)
            for number, end in self.ends(topic).items():
                self.ledger.allow_again(topic, number, starts[number], end)
            self.set_offsets(role, starts)

    # -- topics ----------------------------------------------------------------------------------------------

    def partitions(self, topic: str) -> dict[int, Any]:
        """Return what the brokers say of a topic's partitions; none of a topic that is not there."""
        metadata = self.retried(lambda: self.admin.list_topics(timeout=_REQUEST_S))
        found = metadata.topics.get(self.full(topic))
        return dict(found.partitions) if found is not None else {}

    def topic_id(self, topic: str) -> str:
        """Return the id of a topic. Raises KafkaException."""
        [future] = self.admin.describe_topics(TopicCollection([self.full(topic)]), request_timeout=_REQUEST_S).values()
        return str(future.result().topic_id)

    def ends(self, topic: str) -> dict[int, int]:
        """Return the end of each partition."""
        return self._offsets(topic, LATEST)

    def starts(self, topic: str) -> dict[int, int]:
        """Return the first offset of each partition."""
        return self._offsets(topic, _EARLIEST)

    def _offsets(self, topic: str, spec: OffsetSpec) -> dict[int, int]:
        places = [TopicPartition(self.full(topic), number) for number in self.partitions(topic)]

        def ask() -> dict[int, int]:
            futures = self.admin.list_offsets(dict.fromkeys(places, spec), request_timeout=_REQUEST_S)
            return {place.partition: future.result().offset for place, future in futures.items()}

        return self.retried(ask)

    @contextmanager
    def configured(self, topic: str, name: str, value: str) -> Iterator[None]:
        """Give a topic another value of a property for a while."""
        resource = ConfigResource(ResourceType.TOPIC, self.full(topic))

        def alter(text: str | None) -> None:
            self.retried(lambda: alter_config(self.admin, self.full(topic), name, text, seconds=_REQUEST_S))

        before = self.retried(lambda: self.admin.describe_configs([resource])[resource].result(_REQUEST_S))[name]
        is_own = ConfigSource(before.source) is ConfigSource.DYNAMIC_TOPIC_CONFIG
        alter(value)
        try:
            yield
        finally:
            alter(before.value if is_own else None)

    def recreate(self, topic: str, *, away_s: float, between: Callable[[], None]) -> bool:
        """Delete a topic and create it as it was; return whether it has another id.

        ``between`` is called when it is gone, before it has been away for so long.
        """
        resource = ConfigResource(ResourceType.TOPIC, self.full(topic))
        configs = self.retried(lambda: self.admin.describe_configs([resource])[resource].result(_REQUEST_S))
        own = {
            name: entry.value
            for name, entry in configs.items()
            if ConfigSource(entry.source) is ConfigSource.DYNAMIC_TOPIC_CONFIG
        }
        partitions = self.partitions(topic)
        before = self.retried(lambda: self.topic_id(topic))
        self.retried(lambda: self.admin.delete_topics([self.full(topic)])[self.full(topic)].result(_REQUEST_S))
        wait_until(lambda: not self.partitions(topic), seconds=_RETRY_S, what=f"{topic} to be gone")
        between()
        time.sleep(away_s)
        again = NewTopic(self.full(topic), len(partitions), len(partitions[0].replicas), config=own)
        self.retried(lambda: self.admin.create_topics([again])[self.full(topic)].result(_REQUEST_S))
        wait_until(
            lambda: all(each.leader >= 0 for each in self.partitions(topic).values() or [_NOBODY]),
            seconds=_RETRY_S,
            what=f"leaders of {topic}",
        )
        return self.retried(lambda: self.topic_id(topic)) != before

    # -- groups ----------------------------------------------------------------------------------------------

    def committed(self, role: str) -> dict[int, int]:
        """Return the group's offset of each partition of its input, 0 where it has none."""
        asker = self.bus.asker(GROUPS[role])
        places = [TopicPartition(self.full(INPUTS[role]), number) for number in self.partitions(INPUTS[role])]
        try:
            found = self.retried(lambda: _valid(asker.committed(places, timeout=_REQUEST_S)))
        finally:
            asker.close()
        return {each.partition: max(0, each.offset) for each in found}

    def set_offsets(self, role: str, offsets: Mapping[int, int]) -> None:
        """Set offsets of a group without members, as kafka-consumer-groups does. Raises KafkaException."""
        asker = self.bus.asker(GROUPS[role])
        places = [TopicPartition(self.full(INPUTS[role]), number, offset) for number, offset in offsets.items()]
        try:
            # A member that was killed is one until its session is over.
            self.retried(lambda: _valid(asker.commit(offsets=places, asynchronous=False)))
        finally:
            asker.close()

    def await_quiet(self, role: str) -> None:
        """Wait until the group has committed all that there is, while nothing is published. Raises TimeoutError."""
        await_committed(self.bus, GROUPS[role], INPUTS[role], seconds=QUIET_S)


class _Nobody:
    leader = -1


_NOBODY = _Nobody()


def _valid(places: list[TopicPartition]) -> list[TopicPartition]:
    for each in places:
        if each.error is not None:
            raise KafkaException(each.error)
    return places
