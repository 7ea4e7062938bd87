"""Whether an instance without partitions is a surplus one: its group is stable, and there is none left for it.

Such an instance is ready: it takes over as soon as another one leaves. Were it not, a rollout that adds instances
before it removes others would wait for ever. The client does not say when it has joined: with the newer protocol it
calls no listener where it is assigned nothing, and its statistics look as before it joined. So the group is described.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import structlog
from confluent_kafka import ConsumerGroupState, KafkaException
from confluent_kafka.admin import AdminClient

from streamer.kafka.client import config

if TYPE_CHECKING:
    from concurrent.futures import Future

    from streamer.health import Health
    from streamer.settings import ServiceSettings
    from streamer.topology import Service

log = structlog.get_logger()

_ASK_EVERY_S = 2.0
_TIMEOUT_S = 5.0


class SurplusWatch:
    """Reports an instance without partitions as ready once its group is stable; never waits."""

    def __init__(self, settings: ServiceSettings, service: Service, health: Health) -> None:
        self._settings = settings
        self._group = settings.group(service.group)
        self._client_id = config.client_id(settings, service)
        self._health = health
        self._admin: AdminClient | None = None
        self._asked: Future[Any] | None = None
        self._next = time.monotonic() + _ASK_EVERY_S

    def tick(self, *, assigned: int) -> None:
        """Describe the group now and then while this instance has no partitions and is not ready for that reason."""
        if assigned or self._health.is_ready("assignment"):
            self.close()
            self._next = time.monotonic() + _ASK_EVERY_S
        elif self._asked is not None:
            if self._asked.done():
                self._take(self._asked)
                self._asked = None
        elif time.monotonic() >= self._next:
            self._next = time.monotonic() + _ASK_EVERY_S
            self._admin = self._admin or config.make_client(AdminClient, config.common(self._settings))
            groups = self._admin.describe_consumer_groups([self._group], request_timeout=_TIMEOUT_S)
            self._asked = groups[self._group]

    def _take(self, asked: Future[Any]) -> None:
        try:
            group = asked.result()
        except KafkaException:
            return  # the consumer meets the same fault, and reports it
        ours = [member for member in group.members if member.client_id == self._client_id]
        if group.state != ConsumerGroupState.STABLE or not ours or any(_partitions(member) for member in ours):
            return
        others = sum(_partitions(member) for member in group.members)
        if others:
            log.info("surplus instance, no partition is left for it", group=self._group, members=len(group.members))
            self._health.ready("assignment")
            self._health.ready("broker")

    def close(self) -> None:
        """Close the connection."""
        self._admin = self._asked = None


def _partitions(member: Any) -> int:
    """Count the partitions that a member has, or that it will be given."""
    target = member.target_assignment
    return len(member.assignment.topic_partitions) + (len(target.topic_partitions) if target else 0)
