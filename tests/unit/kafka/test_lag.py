"""The lag in records and in seconds: of what is in flight, paused, expired, aborted, and of what nobody sees."""

from __future__ import annotations

import datetime as dt
import math
from typing import TYPE_CHECKING

import pytest
from confluent_kafka import KafkaError

from streamer.kafka import InFlightRecord
from streamer.kafka.inflight.offsets import Progress
from streamer.kafka.inflight.partitions import AssignedPartition, Assignment
from streamer.kafka.records import Record
from streamer.kafka.watch.lag import LagWatch
from streamer.metrics import Metrics
from streamer.settings import load
from streamer.topology import RERANK
from tests.support.fake_admin import FakeAdmin
from tests.support.fake_client import TIMED_OUT, error
from tests.support.fake_kafka import GROUP, INPUT

if TYPE_CHECKING:
    from tests.support.fake_kafka import FakeKafka


class Case:
    """The lag of one partition, of which this instance knows what the group has committed: nothing."""

    def __init__(self, fake: FakeKafka, **kafka: str) -> None:
        self.fake = fake
        self.metrics = Metrics()
        self.assignment = Assignment(max_records=1_000, max_bytes=1 << 30)
        self.watch = LagWatch(
            load({"instance_id": "one", "kafka": kafka}),
            self.assignment,
            service=RERANK,
            metrics=self.metrics,
        )
        self.assignment.add(INPUT, 0, "log-0")
        self.partition.start_from(None)

    @property
    def partition(self) -> AssignedPartition:
        partition = self.assignment.get(0)
        assert partition is not None
        return partition

    def publish(self, count: int) -> list[int]:
        return self.fake.cluster.publish(INPUT, *(b"%d" % number for number in range(count)))

    def receive(self, *offsets: int) -> None:
        entries = {entry.offset: entry for entry in self.fake.cluster.log(INPUT).entries}
        for offset in offsets:
            at = dt.datetime.fromtimestamp(entries[offset].at, dt.UTC)
            self.partition.add(InFlightRecord(Record(INPUT, 0, offset, b"k", b"v", (), at), lambda: None))

    def tick(self, seconds: float = 0.0) -> None:
        """Turn for so long, as the loop does."""
        end = self.fake.clock.now + seconds
        while self.fake.clock.now < end:
            self.watch.tick()
            self.fake.clock.sleep(0.1)
        for _ in range(3):
            self.watch.tick()

    def peeks(self) -> int:
        return sum(client.name.endswith("-peek") for client in self.fake.process.clients)

    def value(self, name: str) -> float | None:
        labels = {"topic": INPUT, "partition": "0"}
        return self.metrics.registry.get_sample_value(f"streamer_consumer_{name}", labels)

    @property
    def records(self) -> float | None:
        return self.value("lag_records")

    @property
    def seconds(self) -> float | None:
        return self.value("lag_seconds")


@pytest.fixture
def case(fake: FakeKafka) -> Case:
    return Case(fake)


# -- records ---------------------------------------------------------------------------------------------------


def test_the_lag_is_the_end_less_what_is_committed(case: Case) -> None:
    case.publish(10)
    case.partition.mark_committed(Progress(4))
    case.tick()
    assert case.records == 6


def test_a_group_that_has_committed_nothing_lags_from_the_beginning_of_the_log(case: Case) -> None:
    case.publish(10)
    case.fake.cluster.log(INPUT).delete_before(3)
    case.tick()
    assert case.records == 7


def test_a_new_group_that_begins_at_the_end_lags_by_nothing(fake: FakeKafka) -> None:
    case = Case(fake, **{"auto.offset.reset": "latest"})
    case.publish(10)
    case.tick()
    assert case.records == 0


def test_records_of_open_and_aborted_transactions_count_as_the_brokers_tools_count_them(case: Case) -> None:
    producer = case.fake.producer()
    producer.begin_transaction()
    producer.produce(INPUT, b"x")
    producer.poll(0)
    case.partition.mark_committed(Progress(0))
    case.tick()
    assert case.records == 1
    producer.abort_transaction(1)
    case.tick(1)
    assert case.records == 2  # and its marker


def test_an_end_that_was_cut_off_is_no_negative_lag(case: Case) -> None:
    case.publish(5)
    case.partition.mark_committed(Progress(5))
    case.fake.cluster.log(INPUT).truncate(2)
    case.tick()
    assert case.records == 0


def test_what_is_done_out_of_order_is_counted_beside_the_lag(case: Case) -> None:
    case.publish(5)
    case.partition.mark_committed(Progress(0, frozenset({2, 3})))
    case.tick()
    assert (case.records, case.value("completed_ahead_records")) == (5, 2)


def test_nothing_is_reported_before_it_is_known_what_is_committed(case: Case) -> None:
    case.assignment.add(INPUT, 0, "log-0")
    case.publish(5)
    case.tick()
    assert case.records is None


# -- asking ----------------------------------------------------------------------------------------------------


def test_both_ends_and_the_beginning_are_requested_once_a_second(case: Case) -> None:
    case.publish(1)
    case.tick(4.9)
    assert 4 * 3 <= case.fake.count("list_offsets") <= 6 * 3


# -- what was deleted, and what waits ----------------------------------------------------------------------------


def test_offsets_that_retention_deleted_before_they_were_read_are_counted_once(case: Case) -> None:
    case.publish(20)
    case.partition.start_from(Progress(3))
    case.fake.cluster.log(INPUT).delete_before(10)
    case.receive(10, 11)
    case.tick(3)
    assert case.metrics.registry.get_sample_value("streamer_retention_lost_offsets_total", {"topic": INPUT}) == 7


def test_offsets_that_compaction_removed_and_markers_are_not_lost(case: Case) -> None:
    case.publish(20)
    case.partition.start_from(Progress(0))
    case.fake.cluster.log(INPUT).compact([1, 2, 3])
    case.receive(0, 4)
    case.partition.reached_end(20)
    case.tick(3)
    assert not case.metrics.registry.get_sample_value("streamer_retention_lost_offsets_total", {"topic": INPUT})


def test_records_after_the_start_of_an_open_transaction_are_counted_and_their_wait_grows(case: Case) -> None:
    case.publish(2)
    producer = case.fake.producer()
    producer.begin_transaction()
    producer.produce(INPUT, b"x", b"open", 0)
    producer.poll(0)
    case.publish(5)
    case.partition.start_from(Progress(2))
    case.tick(1)
    labels = {"topic": INPUT, "partition": "0"}
    assert case.metrics.registry.get_sample_value("streamer_unstable_records", labels) == 6
    case.tick(30)
    waited = case.metrics.registry.get_sample_value("streamer_unstable_seconds", labels)
    assert waited is not None
    assert 29 < waited < 33
    producer.commit_transaction(1)
    case.tick(2)
    assert case.metrics.registry.get_sample_value("streamer_unstable_records", labels) == 0
    assert case.metrics.registry.get_sample_value("streamer_unstable_seconds", labels) == 0


def test_without_partitions_nothing_is_requested_and_no_client_made(case: Case) -> None:
    case.assignment.remove(0)
    case.tick(5)
    assert case.fake.process.clients == []


def test_while_a_request_is_pending_the_last_figures_stand_and_no_other_is_sent(case: Case) -> None:
    case.publish(3)
    case.partition.mark_committed(Progress(0))
    case.tick()
    case.fake.held = []
    case.publish(2)
    case.tick(10)
    assert case.records == 3
    assert len(case.fake.held) == 3
    for answer in case.fake.held:
        answer()
    case.tick()
    assert case.records == 5


@pytest.mark.parametrize("fault", [TIMED_OUT, error(KafkaError.LEADER_NOT_AVAILABLE)], ids=str)
def test_an_answer_that_is_an_error_leaves_the_last_figures(case: Case, fault: KafkaError) -> None:
    case.publish(3)
    case.partition.mark_committed(Progress(1))
    case.tick()
    case.fake.fail("list_offsets", fault)
    case.publish(1)
    case.tick(1)
    assert case.records == 2
    case.tick(1)
    assert case.records == 3


def test_an_epoch_of_a_leader_that_is_too_old_is_not_asked_with_again(case: Case) -> None:
    case.publish(3)
    case.tick()
    before = [client for client in case.fake.process.clients if isinstance(client, FakeAdmin)]
    case.fake.fail("list_offsets", error(KafkaError.FENCED_LEADER_EPOCH))
    case.publish(1)
    case.tick(2)
    assert case.records == 4
    after = [client for client in case.fake.process.clients if isinstance(client, FakeAdmin)]
    assert len(after) == len(before) + 1


def test_an_answer_for_a_partition_that_has_gone_is_dropped(case: Case) -> None:
    case.publish(3)
    case.fake.held = []
    case.tick()
    case.assignment.remove(0)
    case.watch.forget(0)
    for answer in case.fake.held:
        answer()
    case.tick()
    assert case.records is None


def test_a_revoked_partition_is_no_longer_reported(case: Case) -> None:
    case.publish(3)
    case.tick()
    assert case.records == 3
    case.assignment.remove(0)
    case.watch.forget(0)
    assert [case.value(name) for name in ("lag_records", "lag_seconds", "completed_ahead_records")] == [None] * 3


# -- seconds ---------------------------------------------------------------------------------------------------


def test_a_group_that_has_caught_up_has_a_lag_of_0_seconds(case: Case) -> None:
    case.publish(3)
    case.partition.mark_committed(Progress(3))
    case.tick(5)
    assert case.seconds == 0


def test_the_age_is_that_of_the_first_record_in_flight_and_grows_while_the_loop_stands_still(case: Case) -> None:
    case.publish(2)
    case.receive(0, 1)
    case.tick()
    case.fake.clock.sleep(30)
    assert case.seconds == pytest.approx(30, abs=0.1)
    assert case.peeks() == 0


def test_a_record_that_is_not_fetched_is_read_with_a_separate_consumer(case: Case) -> None:
    case.partition.mark_committed(Progress(0))
    case.publish(1)
    case.fake.clock.sleep(50)
    case.publish(1)
    case.tick(2)
    assert case.seconds == pytest.approx(52, abs=0.3)
    assert case.peeks() == 1
    assert case.fake.cluster.group(GROUP).members == {}  # it joins no group


def test_the_next_record_is_read_once_while_the_position_stays(case: Case) -> None:
    case.partition.mark_committed(Progress(0))
    case.publish(1)
    case.tick(20)
    assert case.peeks() == 1
    assert case.seconds == pytest.approx(20, abs=0.3)


def test_a_record_that_the_consumer_receives_soon_is_not_read_by_the_lag_watch(case: Case) -> None:
    case.publish(1)
    case.tick()
    case.fake.clock.sleep(0.1)
    case.receive(0)
    case.tick(3)
    assert case.peeks() == 0


def test_the_lag_in_seconds_is_0_if_no_readable_record_is_left(case: Case) -> None:
    producer = case.fake.producer()
    producer.begin_transaction()
    producer.produce(INPUT, b"x")
    producer.poll(0)
    producer.abort_transaction(1)
    case.partition.mark_committed(Progress(0))
    case.tick(3)
    assert (case.records, case.seconds) == (2, 0)


def test_a_record_after_an_aborted_transaction_is_read_by_the_lag_watch(case: Case) -> None:
    producer = case.fake.producer()
    producer.begin_transaction()
    producer.produce(INPUT, b"x")
    producer.poll(0)
    producer.abort_transaction(1)
    case.partition.mark_committed(Progress(0))
    case.tick(3)
    case.publish(1)
    case.tick(10)
    assert case.seconds == pytest.approx(10, abs=0.3)


def test_the_lag_watch_skips_a_record_that_an_earlier_owner_completed(case: Case) -> None:
    case.publish(1)
    case.fake.clock.sleep(100)
    case.publish(1)
    case.partition.mark_committed(Progress(0, frozenset({0})))
    case.tick(5)
    assert case.seconds == pytest.approx(5, abs=0.3)


def test_until_it_has_been_looked_the_age_is_at_most_the_time_since_the_end_was_reached(case: Case) -> None:
    case.publish(1)
    case.partition.mark_committed(Progress(1))
    case.tick()
    case.fake.clock.sleep(7)
    case.publish(1)
    case.watch.tick()
    case.watch.tick()
    assert case.peeks() == 0
    assert case.seconds == pytest.approx(7, abs=0.2)


def test_of_a_record_of_which_nothing_is_known_the_age_is_no_number(case: Case) -> None:
    case.partition.mark_committed(Progress(0))
    case.publish(1)
    case.watch.tick()
    case.watch.tick()
    seconds = case.seconds
    assert seconds is not None
    assert math.isnan(seconds)


def test_a_read_of_the_first_record_that_times_out_is_retried(case: Case) -> None:
    case.partition.mark_committed(Progress(0))
    case.publish(1)
    case.tick(0.5)
    case.fake.cluster.down = True
    case.tick(4)
    case.watch._peek.first.clear()
    case.partition.mark_committed(Progress(1))
    case.partition.reached_end(1)
    case.publish(1)
    case.tick(8)
    case.fake.cluster.down = False
    case.tick(8)
    assert case.seconds == pytest.approx(16, abs=0.5)
    assert case.peeks() == 1


def test_the_peeking_consumer_is_closed_with_the_lag_watch(case: Case) -> None:
    case.partition.mark_committed(Progress(0))
    case.publish(1)
    case.tick(2)
    case.watch.close()
    (peek,) = [client for client in case.fake.process.clients if client.name.endswith("-peek")]
    with pytest.raises(RuntimeError, match="closed"):
        peek.consume(1, 0)  # type: ignore[attr-defined]
