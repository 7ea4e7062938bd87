"""A committer on a cluster in memory."""

from __future__ import annotations

import datetime as dt
from dataclasses import replace
from typing import TYPE_CHECKING

from confluent_kafka import KafkaError

from streamer.health import Health
from streamer.kafka import InFlightRecord, Output, Record
from streamer.kafka.commit.committer import Committer
from streamer.kafka.commit.group import GroupMembership
from streamer.kafka.commit.rotation import Rotation
from streamer.kafka.inflight.partitions import AssignedPartition, Assignment
from streamer.metrics import Metrics
from streamer.settings import load
from streamer.topology import RERANK
from tests.support.fake_client import error
from tests.support.fake_kafka import INPUT, OUTPUT

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.support.fake_kafka import FakeKafka

AT = dt.datetime(2026, 9, 21, tzinfo=dt.UTC)
ID = "streamer-rerank-one"
ABORTABLE = error(KafkaError.INVALID_TXN_STATE, abortable=True)
FATAL = error(KafkaError.UNKNOWN, fatal=True)


class Case:
    """A committer of one instance that owns one partition, of which the group has committed nothing."""

    def __init__(self, fake: FakeKafka, *, producers: int = 1) -> None:
        settings = load({"instance_id": "one"})
        self.fake = fake
        self.metrics = Metrics()
        self.health = Health(self.metrics)
        self.assignment = Assignment(max_records=10_000, max_bytes=1 << 30)
        self.membership = GroupMembership(settings, RERANK, {})
        self.topics_looked_up = 0
        self.committer = Committer(
            Rotation(settings, replace(RERANK, producers=producers), {}),
            self.membership,
            self.assignment,
            metrics=self.metrics,
            health=self.health,
            topic_refused=self._look_up_topics,
            retime=lambda _: None,
        )
        self.membership.join(on_assign=lambda *_: None, on_revoke=lambda *_: None, on_lost=lambda *_: None)
        for _ in range(3):
            self.membership.consumer.poll(0)
        self.assignment.add(INPUT, 0, f"{fake.cluster.topics[INPUT].topic_id}-0")
        self.partition.start_from(None)

    def _look_up_topics(self) -> None:
        self.topics_looked_up += 1

    @property
    def partition(self) -> AssignedPartition:
        """Partition 0 of the input."""
        partition = self.assignment.get(0)
        assert partition is not None
        return partition

    def start(self) -> None:
        """Start the committer, which must succeed at once."""
        assert self.committer.start()

    def receive(self, *offsets: int) -> list[InFlightRecord]:
        """Add records to the partition, as if they had been consumed."""
        records = [
            InFlightRecord(Record(INPUT, 0, offset, b"k%d" % offset, b"{}", (), AT), lambda: None) for offset in offsets
        ]
        for record in records:
            self.partition.add(record)
        return records

    def complete(self, *records: InFlightRecord, size: int = 1) -> None:
        """Complete records with an output of ``size`` bytes each."""
        for record in records:
            record.complete([Output(OUTPUT, record.record.key, b"x" * size, ())], since=AT)

    def turns(self, condition: Callable[[], bool], *, step: float = 0.005) -> None:
        """Let the committer turn until something holds."""
        for _ in range(5_000):
            if condition():
                return
            self.committer.commit_completed()
            self.fake.clock.sleep(step)
        raise AssertionError("it does not come about")

    def committed(self) -> bool:
        """Tell whether nothing is in flight any more."""
        return not self.assignment.records

    def count(self, outcome: str) -> float:
        """Return how many transactions had an outcome."""
        return self.metrics.registry.get_sample_value("streamer_transactions_total", {"outcome": outcome}) or 0.0

    def not_ready(self) -> list[str]:
        """Return the readiness problems that concern transactions."""
        return [each for each in self.health.readiness_problems() if each.startswith("transactions")]
