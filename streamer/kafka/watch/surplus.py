"""Tells whether an instance has no partitions because its group is stable and has none left for it.

Such an instance is ready: it takes over as soon as another one leaves. Were it not, a rollout that adds instances
before it removes others would wait for ever. The client does not say when it has joined: with the newer protocol it
calls no listener where it is assigned nothing, and its statistics look as before it joined. So this needs two answers:
the client's generation, which says that the coordinator counts it as a member, and the group's state, by the list of
groups.

The group is not described. An AdminClient that asks a group's coordinator (to describe groups, or to list, set or
delete their offsets) aborts the process if its connection fails at that moment (librdkafka 2.16, its issue 4605). The
list of groups is asked of all brokers alike, and takes another path.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import structlog
from confluent_kafka import ConsumerGroupState, KafkaException
from confluent_kafka.admin import AdminClient

from streamer.kafka.client import config

if TYPE_CHECKING:
    from collections.abc import Callable
    from concurrent.futures import Future

    from streamer.health import Health
    from streamer.settings import ServiceSettings
    from streamer.topology import Service

log = structlog.get_logger()

_ASK_EVERY_S = 2.0
_TIMEOUT_S = 5.0


class SurplusWatch:
    """Reports an instance without partitions as ready once its group is stable; never waits."""

    def __init__(
        self, settings: ServiceSettings, service: Service, health: Health, generation: Callable[[], int]
    ) -> None:
        """Take what to ask; ``generation`` returns that of this member of the group, 0 or less where it is none."""
        self._settings = settings
        self._group = settings.group(service.group)
        self._health = health
        self._generation = generation
        self._admin: AdminClient | None = None
        self._asked: Future[Any] | None = None
        self._asked_in = 0
        """The generation in which the group's state was requested."""
        self._next = time.monotonic() + _ASK_EVERY_S

    def tick(self, *, assigned: int) -> None:
        """Look at the group now and then while this instance has no partitions and is not ready for that reason."""
        if assigned or self._health.is_ready("assignment"):
            self.close()
            self._next = time.monotonic() + _ASK_EVERY_S
        elif self._asked is not None:
            if self._asked.done():
                self._take(self._asked)
                self._asked = None
        elif time.monotonic() >= self._next:
            self._next = time.monotonic() + _ASK_EVERY_S
            self._asked_in = self._generation()
            if self._asked_in > 0:
                self._admin = self._admin or config.make_client(AdminClient, config.common(self._settings))
                self._asked = self._admin.list_consumer_groups(
                    states={ConsumerGroupState.STABLE}, request_timeout=_TIMEOUT_S
                )

    def _take(self, asked: Future[Any]) -> None:
        try:
            stable = {each.group_id for each in asked.result().valid}
        except KafkaException:
            return  # the consumer meets the same fault, and reports it
        # A state that was requested before this member joined, or joined again, says nothing of what it will get.
        if self._group in stable and self._generation() == self._asked_in:
            log.info("surplus instance, no partition is left for it", group=self._group)
            self._health.ready("assignment")
            self._health.ready("broker")

    def close(self) -> None:
        """Close the connection."""
        self._admin = self._asked = None
