"""What the Kafka clients tell of themselves: readiness, lag, and faults that come without a call."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import orjson
import structlog
from confluent_kafka import KafkaError

from streamer.events import Reason
from streamer.kafka.watch.lag import LagWatch

if TYPE_CHECKING:
    from streamer.health import Health
    from streamer.kafka.inflight.partitions import Assignment
    from streamer.metrics import Metrics
    from streamer.settings import ServiceSettings

log = structlog.get_logger()

_QUIET_S = 60.0


class Monitor:
    """Turns librdkafka's callbacks into conditions of readiness and into gauges; used from the loop's thread."""

    def __init__(
        self,
        settings: ServiceSettings,
        assignment: Assignment,
        *,
        group: str,
        topic: str,
        output: str,
        metrics: Metrics,
        health: Health,
    ) -> None:
        """Begin; the names are without the prefix."""
        self._servers = settings.bootstrap_servers
        self._assignment = assignment
        self._topic = settings.topic(topic)
        self._metrics = metrics
        self._health = health
        self._lag = LagWatch(settings, assignment, group=group, topic=self._topic, metrics=metrics)
        self._quiet_until: dict[int, float] = {}
        # What is counted begins with 0, so that the first one is an increase.
        metrics.consumed.labels(self._topic)
        metrics.produced.labels(settings.topic(output))
        for reason in Reason:
            metrics.dead_lettered.labels(self._topic, reason)
        for kind in ("assigned", "revoked", "lost"):
            metrics.rebalances.labels(kind)
        health.wait_for("broker", f"no answer yet from {self._servers}")
        health.wait_for("assignment", "no partitions assigned yet")

    def on_error(self, error: KafkaError) -> None:
        """Take an error that concerns a client as a whole (``error_cb``)."""
        if error.code() == KafkaError._ALL_BROKERS_DOWN:
            self._health.wait_for("broker", f"no broker of {self._servers} answers")
        elif error.code() in (KafkaError._AUTHENTICATION, KafkaError._SSL):
            self._health.wait_for("authentication", error.str())
        elif time.monotonic() > self._quiet_until.get(error.code(), 0.0):
            # A client that reconnects reports each attempt; once a minute says as much.
            self._quiet_until[error.code()] = time.monotonic() + _QUIET_S
            log.warning("kafka client", error=error.str(), code=error.name())

    def on_statistics(self, text: str) -> None:
        """Take the consumer's statistics (``stats_cb``), which come once a second."""
        statistics = orjson.loads(text)
        if any(broker["state"] == "UP" and broker["nodeid"] >= 0 for broker in statistics["brokers"].values()):
            self._health.holds("broker")
            self._health.holds("authentication")
        topic: dict[str, Any] = statistics["topics"].get(self._topic, {"partitions": {}})
        # -1 is librdkafka's own, for records that have no partition yet.
        self._metrics.partitions.labels(self._topic).set(sum(int(number) >= 0 for number in topic["partitions"]))
        self.measure()

    def tick(self) -> None:
        """Take a turn; never waits."""
        self._lag.tick()

    def close(self) -> None:
        """Let the clients go."""
        self._lag.close()

    def forget(self, partition: int) -> None:
        """Stop reporting a partition that is no longer ours."""
        self._lag.forget(partition)

    def measure(self) -> None:
        """Set the gauges to what is the case now."""
        metrics, assignment = self._metrics, self._assignment
        metrics.assigned.set(len(assignment))
        metrics.paused.set(sum(partition.paused for partition in assignment))
        metrics.in_flight.set(assignment.records)
        metrics.in_flight_bytes.set(assignment.bytes)
