"""The consumer as a member of its group, under the newest protocol that the brokers offer.

Under KIP-848's protocol ("consumer", Kafka 4.0 and later) the broker makes the assignment, and a rebalance affects
only the partitions that move. Brokers that do not support it return a fatal error; the member then joins with the
classic protocol and cooperative assignment. During a migration a group may have members of both protocols.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import structlog
from confluent_kafka import Consumer, KafkaError, KafkaException, TopicPartition

from streamer.kafka.client import config
from streamer.kafka.client.acls import Resource
from streamer.kafka.client.refusals import Refusals, refused
from streamer.kafka.commit.transactions import CALL_TIMEOUT_S
from streamer.machine import MachineError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from streamer.kafka.inflight.partitions import AssignedPartition
    from streamer.settings import ServiceSettings
    from streamer.topology import Service

    Rebalanced = Callable[[Consumer, list[TopicPartition]], None]

log = structlog.get_logger()

_SERIALIZATIONS = (b"CGMDv2",)
"""Those of a consumer group's metadata in which the generation is known to come first."""


class GroupMembership:
    """Owns the consumer, and replaces it where the brokers do not support its protocol."""

    def __init__(self, settings: ServiceSettings, service: Service, callbacks: dict[str, Callable[..., None]]) -> None:
        self._settings = settings
        self._service = service
        self._topic = settings.topic(service.input)
        self._callbacks = callbacks
        self._listeners: dict[str, Rebalanced] = {}
        self._protocols = config.group_protocols(settings)
        self._refusals = Refusals(settings, service.role)
        self.consumer = self._make()

    @property
    def protocol(self) -> str:
        """The group protocol in use: consumer or classic."""
        return self._protocols[0]

    @property
    def generation(self) -> int:
        """The group's generation in which the coordinator counts this consumer as a member; 0 or less: it does not.

        The client only tells it within the metadata that goes with a transaction's offsets: it follows the mark of the
        serialization's version, as an integer of four bytes in this machine's order.
        """
        metadata: bytes = self.consumer.consumer_group_metadata()
        mark, _, rest = metadata.partition(b":")
        return int.from_bytes(rest[:4], sys.byteorder, signed=True) if mark in _SERIALIZATIONS else 0

    def join(self, *, on_assign: Rebalanced, on_revoke: Rebalanced, on_lost: Rebalanced) -> None:
        """Subscribe; the listeners are called from the thread that polls."""
        self._listeners = {"on_assign": on_assign, "on_revoke": on_revoke, "on_lost": on_lost}
        self.consumer.subscribe([self._topic], **self._listeners)

    def fall_back(self, error: KafkaError) -> bool:
        """Rejoin with the next protocol after a fatal ``error``; False where there is none left to try.

        Only for a member that owns no partitions: its records in flight would be orphaned. Raises as :meth:`rejoin`.
        """
        if len(self._protocols) == 1 or refused(error):
            return False
        unsupported = self._protocols.pop(0)
        try:
            self.rejoin()
        except MachineError:
            self._protocols.insert(0, unsupported)
            raise
        log.info(
            "group protocol not supported by the brokers",
            unsupported=unsupported,
            using=self.protocol,
            error=error.str(),
        )
        return True

    def rejoin(self) -> None:
        """Leave the group, which revokes its partitions, and join it with a new client; not inside a callback.

        Raises :class:`~streamer.machine.MachineError` if this machine has no thread for the new one, and keeps the old
        one then.
        """
        successor = self._make()
        self.consumer.close()
        self.consumer = successor
        self.join(**self._listeners)

    def committed(self, partitions: Iterable[AssignedPartition]) -> list[TopicPartition]:
        """Fetch the group's committed offsets; not inside a callback. Raises KafkaException where that fails."""
        places = [TopicPartition(each.topic, each.partition) for each in partitions]
        if not places:
            return []
        found = self.consumer.committed(places, timeout=CALL_TIMEOUT_S)
        for each in found:
            if each.error is not None:
                raise KafkaException(each.error)
        return found

    def describe(self, error: KafkaError) -> str:
        """Describe an error of the consumer: a missing privilege is named with its resource."""
        name = self._topic if refused(error) is Resource.TOPIC else self._settings.group(self._service.group)
        return self._refusals.describe(error, name)

    def close(self) -> None:
        """Leave the group."""
        self.consumer.close()

    def _make(self) -> Consumer:
        consumer: Consumer = config.make_client(
            Consumer, config.consumer(self._settings, self._service, self.protocol, self._callbacks)
        )
        return consumer
