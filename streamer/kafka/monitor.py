"""What the Kafka clients tell of themselves: readiness, lag, and faults that come without a call."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import orjson
import structlog
from confluent_kafka import KafkaError, KafkaException

from streamer.kafka.records import DLQ_SUFFIX

if TYPE_CHECKING:
    from confluent_kafka import Consumer

    from streamer.health import Health
    from streamer.kafka.partitions import Assignment
    from streamer.metrics import Metrics
    from streamer.settings import Settings

log = structlog.get_logger()

_QUIET_S = 60.0
_LOOK_TIMEOUT_S = 2.0
_UNKNOWN_TOPIC = (KafkaError.UNKNOWN_TOPIC_OR_PART, KafkaError._UNKNOWN_TOPIC)


class Monitor:
    """Turns librdkafka's callbacks into conditions of readiness and into gauges; used from the loop's thread."""

    def __init__(
        self,
        settings: Settings,
        assignment: Assignment,
        *,
        topic: str,
        output: str,
        metrics: Metrics,
        health: Health,
    ) -> None:
        """``topic`` and ``output`` are full names."""
        self._servers = settings.bootstrap_servers
        self._assignment = assignment
        self._topic = topic
        self._needed_topics = [topic, output, topic + DLQ_SUFFIX]
        self._topics_missing = True
        self._is_time_to_look = False
        self._metrics = metrics
        self._health = health
        self._ends: dict[int, int] = {}
        self._quiet_until: dict[int, float] = {}
        health.wait_for("broker", f"no answer yet from {self._servers}")
        health.wait_for("topic", "not looked for yet")
        health.wait_for("assignment", "no partitions assigned yet")

    def on_error(self, error: KafkaError) -> None:
        """Take an error that concerns a client as a whole (``error_cb``)."""
        if error.code() == KafkaError._ALL_BROKERS_DOWN:
            self._health.wait_for("broker", f"no broker of {self._servers} answers")
        elif error.code() == KafkaError._AUTHENTICATION:
            self._health.wait_for("authentication", error.str())
        elif time.monotonic() > self._quiet_until.get(error.code(), 0.0):
            # A client that reconnects reports each attempt; once a minute says as much.
            self._quiet_until[error.code()] = time.monotonic() + _QUIET_S
            log.warning("kafka client", error=error.str(), code=error.name())

    def on_topic_error(self, error: KafkaError) -> bool:
        """Take an error that concerns the input topic; return whether it was one."""
        if error.code() in _UNKNOWN_TOPIC:
            self._topics_missing = True
            return True
        if error.code() == KafkaError.TOPIC_AUTHORIZATION_FAILED:
            self._topics_missing = True
            self._health.wait_for("topic", error.str())
            return True
        return False

    def on_statistics(self, text: str) -> None:
        """Take the consumer's statistics (``stats_cb``), which come once a second."""
        statistics = orjson.loads(text)
        if any(broker["state"] == "UP" and broker["nodeid"] >= 0 for broker in statistics["brokers"].values()):
            self._health.holds("broker")
            self._health.holds("authentication")
        topic: dict[str, Any] = statistics["topics"].get(self._topic, {"partitions": {}})
        for number, partition in topic["partitions"].items():
            if partition["ls_offset"] >= 0:
                self._ends[int(number)] = partition["ls_offset"]
        self.measure()
        # A client must not be asked inside its own callback: confluent_kafka aborts the process.
        self._is_time_to_look = True

    def forget(self, partition: int) -> None:
        """Stop reporting a partition that is no longer ours."""
        self._ends.pop(partition, None)
        self._metrics.lag.remove(self._topic, str(partition))

    def measure(self) -> None:
        """Set the gauges to what is the case now."""
        metrics, assignment = self._metrics, self._assignment
        metrics.assigned.set(len(assignment))
        metrics.paused.set(sum(partition.paused for partition in assignment))
        metrics.in_flight.set(assignment.records)
        metrics.in_flight_bytes.set(assignment.bytes)
        for number, end in self._ends.items():
            partition = assignment.get(number)
            lag = partition.lag(end) if partition is not None else None
            if lag is not None:
                metrics.lag.labels(self._topic, str(number)).set(lag)

    def look_for_topics(self, consumer: Consumer) -> None:
        """Be ready only when the topics that we read and write are there; looks once a second until they are."""
        if not (self._topics_missing and self._is_time_to_look):
            return
        self._is_time_to_look = False
        for name in self._needed_topics:
            try:
                problem = consumer.list_topics(name, timeout=_LOOK_TIMEOUT_S).topics[name].error
            except KafkaException as error:
                problem = error.args[0]
            if problem is not None:
                missing = problem.code() in _UNKNOWN_TOPIC
                why = "does not exist; streamer topics apply makes it" if missing else problem.str()
                self._health.wait_for("topic", f"{name} {why}")
                return
        self._topics_missing = False
        self._health.holds("topic")
