"""The consumer as a member of its group, under the newest protocol that the brokers offer.

Under KIP-848's protocol ("consumer", Kafka 4.0 and later) the broker makes the assignment, and a rebalance touches
only the partitions that move. Brokers that do not offer it answer with a fatal error; the member then joins by
the classic protocol, with cooperative assignment. A group may hold members of both while it changes over.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import structlog
from confluent_kafka import Consumer, KafkaError, KafkaException, TopicPartition

from streamer.kafka.client import config
from streamer.kafka.client.acls import Resource
from streamer.kafka.client.refusals import Refusals, refused, role_of
from streamer.kafka.commit.transactions import CALL_TIMEOUT_S

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from streamer.kafka.inflight.partitions import AssignedPartition
    from streamer.settings import ServiceSettings

    Rebalanced = Callable[[Consumer, list[TopicPartition]], None]

log = structlog.get_logger()


class GroupMembership:
    """Holds the consumer, and replaces it where its protocol is refused."""

    def __init__(
        self, settings: ServiceSettings, group: str, topic: str, callbacks: dict[str, Callable[..., None]]
    ) -> None:
        """``topic`` is a full name."""
        self._settings = settings
        self._group = group
        self._topic = topic
        self._callbacks = callbacks
        self._listeners: dict[str, Rebalanced] = {}
        self._protocols = config.group_protocols(settings)
        self._refusals = Refusals(settings, role_of(group))
        self.consumer = self._make()

    @property
    def protocol(self) -> str:
        """The group protocol in use: consumer or classic."""
        return self._protocols[0]

    def join(self, *, on_assign: Rebalanced, on_revoke: Rebalanced, on_lost: Rebalanced) -> None:
        """Subscribe; the listeners are called from the thread that polls."""
        self._listeners = {"on_assign": on_assign, "on_revoke": on_revoke, "on_lost": on_lost}
        self.consumer.subscribe([self._topic], **self._listeners)

    def fall_back(self, error: KafkaError) -> bool:
        """Join anew by the next not_offered protocol after a fatal ``error``; False where there is none left to try.

        Only for a member that owns nothing: what it has in flight would be orphaned.
        """
        if len(self._protocols) == 1 or refused(error):
            return False
        not_offered = self._protocols.pop(0)
        log.info("group protocol not offered", refused=not_offered, using=self.protocol, error=error.str())
        self.rejoin()
        return True

    def rejoin(self) -> None:
        """Leave the group, which revokes what is owned, and join it with a new client; not inside a callback."""
        self.consumer.close()
        self.consumer = self._make()
        self.join(**self._listeners)

    def committed(self, partitions: Iterable[AssignedPartition]) -> list[TopicPartition]:
        """Ask the group for its commits; not inside a callback. Raises KafkaException where one is not to be had."""
        asked = [TopicPartition(each.topic, each.partition) for each in partitions]
        if not asked:
            return []
        found = self.consumer.committed(asked, timeout=CALL_TIMEOUT_S)
        for each in found:
            if each.error is not None:
                raise KafkaException(each.error)
        return found

    def told(self, error: KafkaError) -> str:
        """Put an error of the consumer into words."""
        name = self._topic if refused(error) is Resource.TOPIC else self._settings.topic(self._group)
        return self._refusals.told(error, name)

    def close(self) -> None:
        """Leave the group."""
        self.consumer.close()

    def _make(self) -> Consumer:
        consumer: Consumer = config.make_client(
            Consumer, config.consumer(self._settings, self._group, self.protocol, self._callbacks)
        )
        return consumer
