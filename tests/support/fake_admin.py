"""confluent_kafka's AdminClient over :mod:`tests.support.fake_cluster`."""

from __future__ import annotations

from concurrent.futures import Future
from functools import partial
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from confluent_kafka import IsolationLevel, KafkaError, KafkaException, TopicPartition
from confluent_kafka.admin import AclOperation, OffsetSpec

from tests.support.fake_client import Client
from tests.support.fake_cluster import RefusedError

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

    from confluent_kafka import ConsumerGroupState, TopicCollection
    from confluent_kafka.admin import ConfigResource

_LATEST: int = OffsetSpec.latest()._value  # type: ignore[no-untyped-call]


class FakeAdmin(Client):
    """An admin client; its answers are there at once, but for what a test holds back (``FakeKafka.held``)."""

    def _future(self, call: str, action: Callable[[], Any]) -> Future[Any]:
        future: Future[Any] = Future()

        def answer() -> None:
            try:
                future.set_result(self._request(call, action, 0))
            except KafkaException as raised:
                future.set_exception(raised)

        if self.kafka.held is None:
            answer()
        else:
            self.kafka.held.append(answer)
        return future

    def describe_topics(self, topics: TopicCollection, **_options: object) -> dict[str, Future[Any]]:
        def describe(name: str) -> SimpleNamespace:
            topic = self.cluster.topics.get(name)
            if topic is None:
                raise RefusedError(KafkaError.UNKNOWN_TOPIC_OR_PART)
            writes = [] if ("topic", name) in self.cluster.denied else [AclOperation.WRITE]
            reads = [] if ("topic-read", name) in self.cluster.denied else [AclOperation.READ]
            partitions = [
                SimpleNamespace(
                    id=number,
                    leader="broker" if log.in_sync else None,
                    replicas=["broker"] * log.replicas,
                    isr=["broker"] * log.in_sync,
                )
                for number, log in enumerate(topic.logs)
            ]
            return SimpleNamespace(
                topic_id=topic.topic_id, authorized_operations=[*writes, *reads], partitions=partitions
            )

        names: list[str] = topics.topic_names
        return {name: self._future("describe_topics", partial(describe, name)) for name in names}

    def describe_configs(
        self, resources: list[ConfigResource], **_options: object
    ) -> dict[ConfigResource, Future[Any]]:
        def entries(name: str) -> dict[str, SimpleNamespace]:
            if ("topic-config", name) in self.cluster.denied:
                raise RefusedError(KafkaError.TOPIC_AUTHORIZATION_FAILED)
            if name not in self.cluster.topics:
                raise RefusedError(KafkaError.UNKNOWN_TOPIC_OR_PART)
            return {key: SimpleNamespace(value=value) for key, value in self.cluster.topics[name].config.items()}

        return {each: self._future("describe_configs", partial(entries, each.name)) for each in resources}

    def list_consumer_groups(self, *, states: Collection[ConsumerGroupState], **_options: object) -> Future[Any]:
        def listed() -> SimpleNamespace:
            found = {name: state for name, state in self.kafka.group_states.items() if state in states}
            return SimpleNamespace(valid=[SimpleNamespace(group_id=name) for name in found])

        return self._future("list_consumer_groups", listed)

    def list_offsets(
        self, wanted: dict[TopicPartition, OffsetSpec], *, isolation_level: IsolationLevel, **_options: object
    ) -> dict[TopicPartition, Future[Any]]:
        def offset(place: TopicPartition, spec: OffsetSpec) -> SimpleNamespace:
            log = self.cluster.log(place.topic, place.partition)
            if spec._value != _LATEST:
                return SimpleNamespace(offset=log.start)
            is_committed = isolation_level is IsolationLevel.READ_COMMITTED
            return SimpleNamespace(offset=log.stable_end if is_committed else log.end)

        return {place: self._future("list_offsets", partial(offset, place, spec)) for place, spec in wanted.items()}
