"""How far a consumer group has come."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from confluent_kafka import Consumer, KafkaException, TopicPartition

if TYPE_CHECKING:
    from driver import Bus

_REQUEST_S = 5.0
_POLL_S = 0.5


def await_committed(bus: Bus, group: str, topic: str, *, seconds: float) -> None:
    """Wait until a group has committed all that a topic holds. Raises TimeoutError, which says what is left.

    A consumer that never joins asks for the offsets: the AdminClient of librdkafka 2.16 crashes the process where the
    group's coordinator moves under its request.
    """
    consumer = Consumer(
        {"bootstrap.servers": bus.bootstrap_servers, "group.id": bus.prefix + group, "enable.auto.commit": False}
    )
    deadline = time.monotonic() + seconds
    try:
        while left := _left(bus, consumer, topic):
            if time.monotonic() > deadline:
                raise TimeoutError(f"after {seconds:.0f} s {group} has not committed {left}")
            time.sleep(_POLL_S)
    finally:
        consumer.close()


def _left(bus: Bus, consumer: Consumer, topic: str) -> str:
    """Describe what is not committed; empty where all is."""
    try:
        ends = bus.ends(topic)
        found = consumer.committed([TopicPartition(*place) for place in ends], timeout=_REQUEST_S)
    except KafkaException as error:
        return str(error)
    return ", ".join(
        f"{each.topic}[{each.partition}] {each.error or each.offset} of {ends[each.topic, each.partition]}"
        for each in found
        if each.error is not None or each.offset != ends[each.topic, each.partition]
    )
