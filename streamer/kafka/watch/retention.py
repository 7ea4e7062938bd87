"""Looks up for how long the output topics keep their records, for :func:`streamer.kafka.outputs.retime`."""

from __future__ import annotations

import math
import time
from typing import TYPE_CHECKING, Any

import structlog
from confluent_kafka import KafkaException
from confluent_kafka.admin import ConfigResource, ResourceType

from streamer.kafka.client.refusals import refused
from streamer.kafka.outputs import UNKNOWN_RETENTION_MS, kept_ms

if TYPE_CHECKING:
    from collections.abc import Sequence
    from concurrent.futures import Future

    from confluent_kafka.admin import AdminClient

    from streamer.kafka.records import InFlightRecord

log = structlog.get_logger()

_LOOK_UP_EVERY_S = 60.0
_REQUEST_TIMEOUT_S = 5.0
_QUIET_S = 60.0


class RetentionWatch:
    """Knows for how long the output topics keep their records; used from the loop's thread, and never waits."""

    def __init__(self, topics: Sequence[str]) -> None:
        """``topics`` are full names."""
        self.kept = dict.fromkeys(topics, UNKNOWN_RETENTION_MS)
        """For how many milliseconds each topic keeps a record after the record's own time."""
        self._refused: set[str] = set()
        self._responses: dict[ConfigResource, Future[Any]] = {}
        self.is_known = False
        """Whether the look-up was answered, if only by a refusal."""
        self._look_up_at = self._quiet_until = -math.inf

    def check(self, admin: AdminClient) -> None:
        """Request the topics' configuration periodically, and take the responses that have arrived."""
        if self._responses:
            if all(response.done() for response in self._responses.values()):
                for resource, response in self._responses.items():
                    self._take(resource.name, response)
                self._responses = {}
                self.is_known = True
        elif time.monotonic() >= self._look_up_at:
            self._look_up_at = time.monotonic() + _LOOK_UP_EVERY_S
            resources = [ConfigResource(ResourceType.TOPIC, topic) for topic in self.kept]
            self._responses = admin.describe_configs(resources, request_timeout=_REQUEST_TIMEOUT_S)

    def tell(self, in_flight: InFlightRecord) -> None:
        """Log that outputs of a record got the current time, once a minute."""
        if time.monotonic() >= self._quiet_until:
            self._quiet_until = time.monotonic() + _QUIET_S
            log.warning(
                "outputs are older than half of their topic's retention, so they get the current time",
                input=in_flight.record.place,
                retention_s={topic: kept / 1_000 for topic, kept in self.kept.items()},
            )

    def _take(self, topic: str, response: Future[Any]) -> None:
        try:
            self.kept[topic] = kept_ms(response.result())
        except KafkaException as error:
            if refused(error.args[0]) and topic not in self._refused:
                self._refused.add(topic)
                log.info(
                    "retention cannot be looked up without DescribeConfigs on the topic; one day is assumed",
                    topic=topic,
                )
