"""What the consume loop takes of records and bytes, and when it pauses a partition."""

from __future__ import annotations

from typing import TYPE_CHECKING

from streamer.kafka import Output
from tests.support.fake_client import TIMED_OUT
from tests.support.fake_kafka import INPUT, OUTPUT, Instance, nothing_happens, until

if TYPE_CHECKING:
    from collections.abc import Iterator

    from streamer.kafka import Record
    from tests.support.fake_kafka import FakeKafka


# -- budgets ---------------------------------------------------------------------------------------------------


def test_a_partition_is_paused_when_its_records_fill_the_budget_and_resumed_at_half(fake: FakeKafka) -> None:
    fake.cluster.publish(INPUT, *(b"%d" % number for number in range(100)))
    one = Instance(fake, max_records=8)
    one.work.hold = True
    place = (INPUT, 0)

    def story() -> Iterator[None]:
        yield from until(lambda: place in one.consumer.paused)
        taken = len(one.work.submitted)
        assert 8 <= taken <= 8 + 32
        yield from nothing_happens(fake, 1)
        assert len(one.work.submitted) == taken
        one.work.complete(*range(taken - 5))
        yield from until(lambda: (progress := fake.progress()) is not None and progress.offset == taken - 5)
        assert place in one.consumer.paused  # five of eight are in flight
        one.work.complete(taken - 5)
        yield from until(lambda: place not in one.consumer.paused)
        one.work.hold = False
        one.work.complete()
        yield from until(one.is_caught_up)

    assert one.run(story())
    fake.assert_exactly_once()


def test_a_partition_is_paused_when_its_bytes_fill_the_budget(fake: FakeKafka) -> None:
    fake.cluster.publish(INPUT, *(bytes([number]) * 300_000 for number in range(60)))
    one = Instance(fake, max_records=1_000, queue_bytes=1 << 20)
    one.work.hold = True

    def story() -> Iterator[None]:
        yield from until(lambda: bool(one.consumer.paused))
        assert one.value("streamer_in_flight_records") <= 33
        one.work.hold = False
        one.work.complete()
        yield from until(one.is_caught_up)

    assert one.run(story())
    fake.assert_exactly_once()


def test_outputs_count_towards_the_bytes_until_they_are_committed(fake: FakeKafka) -> None:
    def large(record: Record) -> list[Output]:
        return [Output(OUTPUT, record.key, b"x" * (2 << 20), ())]

    fake.cluster.publish(INPUT, b"a", b"b")
    one = Instance(fake, work=large, queue_bytes=1 << 20)
    fake.fail("commit_transaction", TIMED_OUT, times=2)
    peak = 0.0

    def story() -> Iterator[None]:
        nonlocal peak
        while not one.is_caught_up():
            peak = max(peak, one.loop._assignment.bytes)
            yield

    assert one.run(story())
    assert peak > 2 << 20
    assert one.loop._assignment.bytes == 0


def test_a_slow_partition_does_not_take_the_room_of_another(fake_pair: FakeKafka) -> None:
    fake = fake_pair
    fake.cluster.publish(INPUT, *(b"s%d" % number for number in range(5)), partition=0)
    one = Instance(fake, max_records=10)
    one.work.hold = True

    def story() -> Iterator[None]:
        yield from until(lambda: one.consumer.paused == {(INPUT, 0)})
        fake.cluster.publish(INPUT, b"quick", partition=1)
        yield from until(lambda: any(each.record.partition == 1 for each in one.work.waiting))
        one.work.complete()
        yield from until(one.is_caught_up)

    assert one.run(story())
