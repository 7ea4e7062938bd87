"""A process that dies between any two steps of a transaction, and what its successor makes of that."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from streamer.faults import FaultPoint
from tests.support.fake_client import CrashError
from tests.support.fake_cluster import Outcome
from tests.support.fake_kafka import INPUT, Instance, until

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.support.fake_kafka import FakeKafka

IN_A_TRANSACTION = [FaultPoint.BEGUN, FaultPoint.OFFSETS_SENT, FaultPoint.PRODUCED, FaultPoint.COMMITTED]


def test_without_any_fault_each_record_has_one_output(fake: FakeKafka) -> None:
    fake.cluster.publish(INPUT, b"a", b"b", b"c")
    one = Instance(fake)
    one.run_until_caught_up()
    assert fake.outputs() == [b"a", b"b", b"c"]
    assert one.value("streamer_events_produced_total", topic="query.reranked") == 3
    fake.assert_exactly_once()


@pytest.mark.parametrize("producers", [1, 2])
@pytest.mark.parametrize("point", IN_A_TRANSACTION)
def test_a_process_killed_after_a_step_of_its_transaction_produces_each_output_once_after_a_restart(
    fake: FakeKafka, point: FaultPoint, producers: int
) -> None:
    fake.cluster.publish(INPUT, b"a", b"b")
    fake.crash_at(point)
    first = Instance(fake, producers=producers)
    first.crash_during(first.is_caught_up)
    assert fake.outputs() == ([b"a", b"b"] if point is FaultPoint.COMMITTED else [])
    second = first.again()
    second.run_until_caught_up()
    fake.assert_exactly_once()
    assert second.work.offsets == ([] if point is FaultPoint.COMMITTED else [0, 1])


@pytest.mark.parametrize("point", IN_A_TRANSACTION)
def test_a_process_killed_in_its_second_transaction_produces_each_output_once_after_a_restart(
    fake: FakeKafka, point: FaultPoint
) -> None:
    first = Instance(fake, producers=2)

    def story() -> Iterator[None]:
        fake.cluster.publish(INPUT, b"a")
        yield from until(first.is_caught_up)
        fake.crash_at(point)
        fake.cluster.publish(INPUT, b"b")
        while True:
            yield

    first.crash_during(story())
    first.again().run_until_caught_up()
    fake.assert_exactly_once()


@pytest.mark.parametrize("passage", [1, 2])
def test_a_process_killed_after_initialising_a_producer_has_processed_nothing(fake: FakeKafka, passage: int) -> None:
    fake.cluster.publish(INPUT, b"a")
    fake.crash_at(FaultPoint.INITIALISED, passage)
    first = Instance(fake, producers=2)
    first.crash_during(first.is_caught_up)
    assert first.work.submitted == []
    first.again().run_until_caught_up()
    fake.assert_exactly_once()


@pytest.mark.parametrize("is_decided", [False, True])
def test_a_process_killed_during_the_commit_leaves_the_outcome_to_the_coordinator(
    fake: FakeKafka, is_decided: bool
) -> None:
    fake.cluster.publish(INPUT, b"a", b"b")
    fake.fail("commit_transaction", CrashError(), applied=is_decided)
    first = Instance(fake)
    first.crash_during(first.is_caught_up)
    second = first.again()
    second.run_until_caught_up()
    fake.assert_exactly_once()
    assert second.work.offsets == ([] if is_decided else [0, 1])


def test_a_successor_of_the_same_name_aborts_what_is_left_open_before_it_reads(fake: FakeKafka) -> None:
    fake.cluster.publish(INPUT, b"a")
    fake.crash_at(FaultPoint.PRODUCED)
    first = Instance(fake)
    first.crash_during(first.is_caught_up)
    (left,) = fake.cluster.open_transactions()
    began = fake.clock.now
    first.again().run_until_caught_up()
    assert left.outcome is Outcome.ABORTED
    assert fake.clock.now - began < 5


def test_a_successor_of_another_name_waits_until_the_coordinator_aborts_what_is_left_open(fake: FakeKafka) -> None:
    fake.cluster.publish(INPUT, b"a")
    fake.crash_at(FaultPoint.PRODUCED)
    first = Instance(fake)
    first.crash_during(first.is_caught_up)
    second = Instance(fake, "two")

    def story() -> Iterator[None]:
        yield from until(lambda: "offsets" in second.not_ready)
        assert second.work.submitted == []
        fake.clock.sleep(61)
        fake.cluster.expire_transactions()
        yield from until(second.is_caught_up)

    assert second.run(story())
    assert "offsets" not in second.not_ready
    fake.assert_exactly_once()


def test_a_process_killed_at_every_step_in_turn_produces_each_output_once(fake: FakeKafka) -> None:
    fake.cluster.publish(INPUT, b"a", b"b", b"c")
    instance = Instance(fake, producers=2, max_records=1)
    for point in [FaultPoint.INITIALISED, *IN_A_TRANSACTION, *reversed(IN_A_TRANSACTION)]:
        fake.crash_at(point)
        fake.cluster.publish(INPUT, point.encode())
        instance.crash_during(instance.is_caught_up)
        instance = instance.again()
    instance.run_until_caught_up()
    fake.assert_exactly_once()


def test_what_was_done_out_of_order_is_read_back_and_not_done_again(fake: FakeKafka) -> None:
    fake.cluster.publish(INPUT, *(b"%d" % number for number in range(10)))
    first = Instance(fake)
    first.work.hold = True

    def story() -> Iterator[None]:
        yield from until(lambda: len(first.work.waiting) == 10)
        first.work.complete(3, 4, 7, 9)
        yield from until(lambda: len(fake.outputs()) == 4)
        fake.crash_at(FaultPoint.BEGUN)
        first.work.complete(0)
        while True:
            yield

    first.crash_during(story())
    progress = fake.progress()
    assert progress is not None
    assert (progress.offset, progress.ahead) == (0, frozenset({3, 4, 7, 9}))
    second = first.again()
    second.run_until_caught_up()
    assert second.work.offsets == [0, 1, 2, 5, 6, 8]
    fake.assert_exactly_once()


def test_metadata_that_cannot_be_read_has_the_records_from_the_offset_on_done_again(fake: FakeKafka) -> None:
    fake.cluster.publish(INPUT, b"a", b"b", b"c")
    fake.cluster.commit("streamer-rerank", (INPUT, 0), 1, "done1:~~~~~'")
    one = Instance(fake)
    one.run_until_caught_up()
    assert one.work.offsets == [1, 2]
    assert fake.outputs() == [b"b", b"c"]
