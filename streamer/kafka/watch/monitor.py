"""The Kafka clients' callbacks as readiness conditions, gauges and log lines."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, get_args

import orjson
import structlog
from confluent_kafka import KafkaError

from streamer.events import Reason
from streamer.kafka.records import Retimed
from streamer.kafka.watch.lag import LagWatch
from streamer.kafka.watch.surplus import SurplusWatch
from streamer.machine import MachineError
from streamer.shortages import Shortages

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from confluent_kafka import ThrottleEvent

    from streamer.health import Health
    from streamer.kafka.inflight.partitions import Assignment
    from streamer.metrics import Metrics
    from streamer.settings import ServiceSettings
    from streamer.topology import Service

log = structlog.get_logger()

_QUIET_S = 60.0
_AGAIN_S = 1.0
"""The pause before the next periodic work where this machine had no thread for a client of it."""
_THROTTLED_S = 30.0
"""How long a delay by brokers is told of: they report one with each answer, and none while nothing is requested."""
_UNSTABLE_S = 10.0
"""How long an upstream transaction may be open before it is told of. Many are for a while; alerts wait longer."""


class Monitor:
    """Turns librdkafka's callbacks into readiness conditions and gauges; used from the loop's thread."""

    def __init__(
        self,
        settings: ServiceSettings,
        assignment: Assignment,
        *,
        service: Service,
        metrics: Metrics,
        health: Health,
        on_partitions: Callable[[Mapping[str, Any]], None],
        generation: Callable[[], int],
    ) -> None:
        """``on_partitions`` is given the statistics of the input topic's partitions, by their numbers as texts.

        ``generation`` returns that of this member of the group, 0 or less where it is none.
        """
        self._on_partitions = on_partitions
        self._servers = settings.bootstrap_servers
        self._assignment = assignment
        self._topic = settings.topic(service.input)
        self._metrics = metrics
        self._health = health
        self._lag = LagWatch(settings, assignment, service=service, metrics=metrics)
        self._surplus = SurplusWatch(settings, service, health, generation)
        self._shortages = Shortages(metrics, health)
        self._next_tick = 0.0
        self._quiet_until: dict[int, float] = {}
        # Counters are exposed at 0 from the start, so that their first increment is seen as an increase.
        metrics.consumed.labels(self._topic)
        metrics.passed_over.labels(self._topic)
        metrics.produced.labels(settings.topic(service.output))
        metrics.retention_lost.labels(self._topic)
        for why in get_args(Retimed):
            metrics.retimed.labels(settings.topic(service.output), why)
        for reason in Reason:
            metrics.dead_lettered.labels(self._topic, reason)
        for kind in ("assigned", "revoked", "lost"):
            metrics.rebalances.labels(kind)
        health.not_ready("broker", f"no response yet from {self._servers}")
        health.not_ready("assignment", "no partitions assigned yet")

    def on_error(self, error: KafkaError) -> None:
        """Handle an error that concerns a client as a whole (``error_cb``)."""
        if error.code() == KafkaError._ALL_BROKERS_DOWN:
            self._health.not_ready("broker", f"no broker of {self._servers} is reachable")
        elif error.code() in (KafkaError._AUTHENTICATION, KafkaError._SSL):
            self._health.not_ready("authentication", error.str())
        elif time.monotonic() > self._quiet_until.get(error.code(), 0.0):
            # A client that reconnects reports each attempt; one line a minute is enough.
            self._quiet_until[error.code()] = time.monotonic() + _QUIET_S
            log.warning("kafka client error", error=error.str(), code=error.name())

    def on_throttle(self, event: ThrottleEvent) -> None:
        """Handle a broker's word that it delays a client (``throttle_cb``); from any thread."""
        if event.throttle_time > 0:
            delay = f"{event.broker_name} delays our requests, this one by {event.throttle_time:g} s: see client quotas"
            self._health.note("throttled", delay, seconds=_THROTTLED_S)

    def on_statistics(self, text: str) -> None:
        """Handle the consumer's statistics (``stats_cb``), which come once a second."""
        statistics = orjson.loads(text)
        if any(broker["state"] == "UP" and broker["nodeid"] >= 0 for broker in statistics["brokers"].values()):
            self._health.ready("broker")
            self._health.ready("authentication")
        topic: dict[str, Any] = statistics["topics"].get(self._topic, {"partitions": {}})
        # -1 is librdkafka's internal partition for records without a partition.
        self._metrics.partitions.labels(self._topic).set(sum(int(number) >= 0 for number in topic["partitions"]))
        for partition in self._assignment:
            partition.saw_leader(topic["partitions"].get(str(partition.partition), {}).get("leader_epoch", -1))
        self._on_partitions(topic["partitions"])
        self.measure()
        waiting = [
            f"{self._topic}[{number}] at offset {offset} for {seconds:.0f} s"
            for number, offset, seconds in self._lag.unstable()
            if seconds > _UNSTABLE_S
        ]
        self._health.note(
            "open transaction upstream", f"nothing is readable from {'; '.join(waiting)} on" if waiting else None
        )

    def tick(self) -> None:
        """Do periodic work; never waits."""
        if time.monotonic() < self._next_tick:
            return
        try:
            self._lag.tick()
            self._surplus.tick(assigned=len(self._assignment))
        except MachineError as lack:
            self._shortages.tell(lack)
            self._next_tick = time.monotonic() + _AGAIN_S

    def close(self) -> None:
        """Close the clients."""
        self._lag.close()
        self._surplus.close()

    def forget(self, partition: int) -> None:
        """Stop reporting a partition that is no longer assigned."""
        self._lag.forget(partition)

    def measure(self) -> None:
        """Update the gauges of the assignment."""
        metrics, assignment = self._metrics, self._assignment
        metrics.assigned.set(len(assignment))
        metrics.paused.set(sum(partition.paused for partition in assignment))
        metrics.in_flight.set(assignment.records)
        metrics.in_flight_bytes.set(assignment.bytes)
