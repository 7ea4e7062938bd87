"""Outputs that their topic would delete too soon, since they have the time of an old input record.

A service that was down for a day, or embeds a whole library again, answers records that are older than its output
topic keeps anything. Brokers take such outputs, and delete them minutes later. So the topics' retention is looked up,
and an output that would not be kept for half of it gets the current time: late in an event-time join is better than
nowhere.
"""

from __future__ import annotations

import math
import time
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import structlog
from confluent_kafka import KafkaException
from confluent_kafka.admin import ConfigResource, ResourceType

from streamer.kafka.client.refusals import refused
from streamer.kafka.retention import UNKNOWN_MS, kept_ms, leaves_time

if TYPE_CHECKING:
    from collections.abc import Sequence
    from concurrent.futures import Future

    from confluent_kafka.admin import AdminClient

    from streamer.kafka.records import InFlightRecord, Output

log = structlog.get_logger()

_LOOK_UP_EVERY_S = 60.0
_REQUEST_TIMEOUT_S = 5.0
_QUIET_S = 60.0


class RetentionWatch:
    """Knows for how long the output topics keep their records; used from the loop's thread, and never waits."""

    def __init__(self, topics: Sequence[str]) -> None:
        """``topics`` are full names."""
        self._kept = dict.fromkeys(topics, UNKNOWN_MS)
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
            resources = [ConfigResource(ResourceType.TOPIC, topic) for topic in self._kept]
            self._responses = admin.describe_configs(resources, request_timeout=_REQUEST_TIMEOUT_S)

    def retime(self, in_flight: InFlightRecord) -> None:
        """Give the current time to those outputs of a completed record that would be deleted too soon."""
        now_ms = time.time() * 1_000
        outputs = in_flight.outputs or ()
        if all(self._is_kept(output, now_ms) for output in outputs):
            return
        in_flight.outputs = [
            output if self._is_kept(output, now_ms) else replace(output, timestamp=None, retimed="retention")
            for output in outputs
        ]
        if time.monotonic() >= self._quiet_until:
            self._quiet_until = time.monotonic() + _QUIET_S
            log.warning(
                "outputs are older than half of their topic's retention, so they get the current time",
                input=in_flight.record.place,
                retention_s={topic: kept / 1_000 for topic, kept in self._kept.items()},
            )

    def _is_kept(self, output: Output, now_ms: float) -> bool:
        kept = self._kept.get(output.topic)
        return output.timestamp is None or kept is None or leaves_time(output.timestamp, kept, now_ms)

    def _take(self, topic: str, response: Future[Any]) -> None:
        try:
            self._kept[topic] = kept_ms(response.result())
        except KafkaException as error:
            if refused(error.args[0]) and topic not in self._refused:
                self._refused.add(topic)
                log.info(
                    "retention cannot be looked up without DescribeConfigs on the topic; one day is assumed",
                    topic=topic,
                )
