"""What lies in a topic whether its transaction was committed or not."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from confluent_kafka import OFFSET_BEGINNING, Consumer, KafkaError, TopicPartition

if TYPE_CHECKING:
    from tests.support.driver import Bus

_TIMEOUT_S = 60.0


def count_all(bus: Bus, topic: str) -> int:
    """Count the records of a topic as read_uncommitted consumers see them, those of aborted transactions too."""
    ends = bus.ends(topic)
    consumer = Consumer(
        {
            "bootstrap.servers": bus.bootstrap_servers,
            "group.id": f"{bus.prefix}count",
            "isolation.level": "read_uncommitted",
            "enable.auto.commit": False,
            "enable.partition.eof": True,
        }
    )
    count = 0
    deadline = time.monotonic() + _TIMEOUT_S
    try:
        consumer.assign([TopicPartition(*place, OFFSET_BEGINNING) for place in ends])
        while ends:
            assert time.monotonic() < deadline, f"{topic} was not read up to {ends}"
            message = consumer.poll(0.2)
            if message is None:
                continue
            error = message.error()
            if error is None:
                count += 1
            elif error.code() == KafkaError._PARTITION_EOF:
                ends.pop((str(message.topic()), int(message.partition() or 0)), None)
    finally:
        consumer.close()
    return count
