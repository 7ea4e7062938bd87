"""Three brokers, of which never two are away: `min.insync.replicas` is two."""

from __future__ import annotations

import os
import time
from contextlib import suppress
from typing import TYPE_CHECKING

from confluent_kafka import KafkaException
from confluent_kafka.admin import AdminClient

from streamer.local_kafka.broker import LocalKafka
from tests.chaos.plan import BROKERS
from tests.support.waiting import wait_until

if TYPE_CHECKING:
    from pathlib import Path

SESSION_S = 6
"""Of both group protocols: how long the group waits for a member that says nothing."""

_PROPERTIES = {
    "group.consumer.session.timeout.ms": str(SESSION_S * 1000),
    "group.consumer.min.session.timeout.ms": str(SESSION_S * 1000),
    "group.consumer.heartbeat.interval.ms": "1500",
    "group.consumer.min.heartbeat.interval.ms": "1000",
}
_IN_SYNC_TIMEOUT_S = 90.0


class Brokers:
    """A cluster of three, whose brokers can be made to fail one at a time."""

    def __init__(self, folder: Path) -> None:
        """`folder` takes data and logs."""
        self.kafka = LocalKafka(brokers=BROKERS, data_dir=folder, properties=_PROPERTIES)
        self._admin = AdminClient({"bootstrap.servers": self.kafka.bootstrap_servers, "log_level": 0})

    def await_in_sync(self) -> None:
        """Wait until every partition, Kafka's own included, has all its replicas. Raises TimeoutError."""
        wait_until(self._in_sync, "all replicas to be in sync", seconds=_IN_SYNC_TIMEOUT_S, pause=0.5)

    def kill(self, node_id: int, *, away_s: float) -> bool:
        """Kill a broker, start it again after a while; return whether it was gone and another one serves."""
        before = self.kafka.pid(node_id)
        self.kafka.kill(node_id)
        gone = not _exists(before)
        time.sleep(away_s)
        self.kafka.restart(node_id)
        return gone and self.kafka.pid(node_id) != before

    def restart(self, node_id: int) -> bool:
        """Restart a broker in order; return whether it was gone and another one serves."""
        before = self.kafka.pid(node_id)
        self.kafka.restart(node_id)
        return not _exists(before) and self.kafka.pid(node_id) != before

    def _in_sync(self) -> bool:
        with suppress(KafkaException):
            metadata = self._admin.list_topics(timeout=5)
            return len(metadata.brokers) == BROKERS and all(
                set(partition.isrs) == set(partition.replicas)
                for topic in metadata.topics.values()
                for partition in topic.partitions.values()
            )
        return False


def _exists(pid: int) -> bool:
    with suppress(ProcessLookupError):
        os.kill(pid, 0)
        return True
    return False
