"""What others do to a service's topics and offsets: operators, their tools, and MirrorMaker 2."""

from __future__ import annotations

from typing import TYPE_CHECKING

from confluent_kafka import Consumer, KafkaException, TopicPartition
from confluent_kafka.admin import AdminClient, NewTopic

from streamer.topology import RERANK
from tests.support.waiting import wait_until

if TYPE_CHECKING:
    from streamer.settings import Settings

_PLACE = RERANK.input, 0


def create_again(settings: Settings, topic: str, partitions: int = 1, replicas: int = 1) -> None:
    """Delete a topic and create it with so many partitions."""
    admin = AdminClient({"bootstrap.servers": settings.bootstrap_servers})
    name = settings.topic(topic)
    admin.delete_topics([name])[name].result(30)
    wait_until(lambda: name not in admin.list_topics(timeout=5).topics)
    admin.create_topics([NewTopic(name, partitions, replicas)])[name].result(30)
    wait_until(lambda: name in admin.list_topics(timeout=5).topics)


def committed(settings: Settings) -> TopicPartition:
    """Return the reranker's commit for partition 0; an invalid offset where a broker does not know it yet."""
    consumer = Consumer(_group(settings))
    place = _place(settings)
    try:
        return consumer.committed([place], timeout=10)[0]
    except KafkaException:
        return place
    finally:
        consumer.close()


def is_committed(settings: Settings, offset: int, metadata: str = "", epoch: int | None = None) -> bool:
    """Commit from outside, as kafka-consumer-groups and other tools do; return whether the group takes it."""
    consumer = Consumer(_group(settings))
    place = _place(settings, offset, metadata, epoch)
    try:
        consumer.commit(offsets=[place], asynchronous=False)
    except KafkaException:
        return False
    finally:
        consumer.close()
    return True


def commit(settings: Settings, offset: int, metadata: str = "", epoch: int | None = None) -> None:
    """Commit from outside; the group may still be emptying."""
    wait_until(lambda: is_committed(settings, offset, metadata, epoch))


def _place(settings: Settings, offset: int = -1001, metadata: str = "", epoch: int | None = None) -> TopicPartition:
    topic, partition = _PLACE
    leader = {} if epoch is None else {"leader_epoch": epoch}
    return TopicPartition(settings.topic(topic), partition, offset, metadata=metadata, **leader)


def _group(settings: Settings) -> dict[str, str | bool]:
    return {
        "bootstrap.servers": settings.bootstrap_servers,
        "group.id": settings.group(RERANK.group),
        "enable.auto.commit": False,
    }
