"""Three brokers that can be made to fail; `min.insync.replicas` is two."""

from __future__ import annotations

import os
import shutil
import time
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

from confluent_kafka import KafkaException
from confluent_kafka.admin import AdminClient

from streamer.local_kafka.broker import LocalKafka
from tests.chaos import segments
from tests.chaos.plan import BROKERS
from tests.support.processes import frozen
from tests.support.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

SESSION_S = 6
"""Of both group protocols: how long the group waits for a member that says nothing."""

USER = "streamer"
"""Whom the services come as; whoever comes by the plain listener may do everything."""
_LISTENER = "CLIENTS"
_PASSWORD = "chaos"  # noqa: S105 - of a broker of ours, which listens on the loopback interface only

_PROPERTIES = {
    "group.consumer.session.timeout.ms": str(SESSION_S * 1000),
    "group.consumer.min.session.timeout.ms": str(SESSION_S * 1000),
    "group.consumer.heartbeat.interval.ms": "1500",
    "group.consumer.min.heartbeat.interval.ms": "1000",
    "sasl.enabled.mechanisms": "PLAIN",
    f"listener.name.{_LISTENER.lower()}.plain.sasl.jaas.config": (
        f'org.apache.kafka.common.security.plain.PlainLoginModule required user_{USER}="{_PASSWORD}";'
    ),
    "authorizer.class.name": "org.apache.kafka.metadata.authorizer.StandardAuthorizer",
    "allow.everyone.if.no.acl.found": "true",
    "super.users": "User:ANONYMOUS",
    # Controllers of Kafka 4.4 that replay a long metadata log may keep a deleted topic in mind ("existed in isrMembers,
    # but not in the topics map"), and then register no broker any more. From a snapshot they do not.
    "metadata.log.max.snapshot.interval.ms": "30000",
}
_IN_SYNC_TIMEOUT_S = 240.0
_OUT_OF_SYNC_S = 90.0
_MOST_TOLD = 5
"""Replicas that are named where many are not in sync."""


class Brokers:
    """A cluster of three."""

    def __init__(self, folder: Path) -> None:
        """`folder` takes data and logs."""
        self.kafka = LocalKafka(
            brokers=BROKERS, data_dir=folder, listeners={_LISTENER: "SASL_PLAINTEXT"}, properties=_PROPERTIES
        )
        self._folder = folder
        self._admin = AdminClient({"bootstrap.servers": self.kafka.bootstrap_servers, "log_level": 0})

    def client(self) -> dict[str, str]:
        """Return the properties with which the services' user connects."""
        return {
            "bootstrap.servers": self.kafka.address(_LISTENER),
            "security.protocol": "SASL_PLAINTEXT",
            "sasl.mechanism": "PLAIN",
            "sasl.username": USER,
            "sasl.password": _PASSWORD,
        }

    def await_in_sync(self) -> None:
        """Wait until every partition, Kafka's own included, has all its replicas.

        Raises TimeoutError, which says what is missing.
        """
        wait_until(
            lambda: not self._missing(),
            lambda: f"all replicas to be in sync: {self._missing()}",
            seconds=_IN_SYNC_TIMEOUT_S,
            pause=0.5,
        )

    def kill(self, node_ids: Iterable[int], *, away_s: float) -> bool:
        """Kill brokers, start them again after a while; return whether they were gone and others serve."""
        with self.killed(node_ids) as gone:
            time.sleep(away_s)
        return gone

    @contextmanager
    def killed(self, node_ids: Iterable[int]) -> Iterator[bool]:
        """Have brokers dead meanwhile; yield whether they are."""
        node_ids = list(node_ids)
        before = [self.kafka.pid(node_id) for node_id in node_ids]
        for node_id in node_ids:
            self.kafka.kill(node_id)
        try:
            yield not any(map(_exists, before))
        finally:
            self.kafka.restart(*node_ids)

    def restart(self, node_id: int) -> bool:
        """Restart a broker in order; return whether it was gone and another one serves."""
        before = self.kafka.pid(node_id)
        self.kafka.restart(node_id)
        return not _exists(before) and self.kafka.pid(node_id) != before

    @contextmanager
    def frozen(self, node_ids: Iterable[int]) -> Iterator[None]:
        """Have brokers stand still meanwhile: connections stay open, and nothing is answered."""
        with frozen(self.kafka.pid(node_id) for node_id in node_ids):
            yield

    def await_out_of_sync(self, node_id: int) -> None:
        """Wait until a broker is no in-sync replica of anything. Raises TimeoutError."""
        deadline = time.monotonic() + _OUT_OF_SYNC_S
        while any(node_id in isrs for _, isrs in self._replicas()) or not self._replicas():
            if time.monotonic() > deadline:
                raise TimeoutError(f"broker {node_id} is still in sync after {_OUT_OF_SYNC_S:.0f} s")
            time.sleep(0.3)

    def remove_logs(self, node_id: int, topic: str) -> int:
        """Delete a dead broker's replicas of a topic; return how many there were."""
        folders = [each for each in self._data(node_id).glob(f"{topic}-*") if each.name[len(topic) + 1 :].isdigit()]
        for each in folders:
            shutil.rmtree(each)
        return len(folders)

    def cut_logs(self, topic: str, partition: int, batches: int) -> int:
        """Let a partition's last batches be lost by all brokers, which are dead; return where its log ends then."""
        folders = [self._data(node_id) / f"{topic}-{partition}" for node_id in range(BROKERS)]
        offset = segments.last_batches(folders[0], batches)
        for each in folders:
            segments.cut(each, offset)
        return offset

    def _data(self, node_id: int) -> Path:
        return self._folder / f"broker-{node_id}" / "data"

    def _missing(self) -> str:
        """Describe which brokers are away, or else which replicas are not in sync; empty where none is."""
        try:
            metadata = self._admin.list_topics(timeout=5)
        except KafkaException as error:
            return str(error)
        if away := set(range(BROKERS)) - metadata.brokers.keys():
            return f"brokers {sorted(away)} are away"
        behind = [
            f"{topic.topic}[{number}] {partition.isrs} of {partition.replicas}"
            for topic in metadata.topics.values()
            for number, partition in topic.partitions.items()
            if set(partition.isrs) != set(partition.replicas)
        ]
        return ", ".join(behind[:_MOST_TOLD])

    def _replicas(self) -> list[tuple[list[int], list[int]]]:
        """Return replicas and in-sync replicas of each partition; none while no broker answers."""
        with suppress(KafkaException):
            return [
                (partition.replicas, partition.isrs)
                for topic in self._admin.list_topics(timeout=5).topics.values()
                for partition in topic.partitions.values()
            ]
        return []


def _exists(pid: int) -> bool:
    with suppress(ProcessLookupError):
        os.kill(pid, 0)
        return True
    return False
