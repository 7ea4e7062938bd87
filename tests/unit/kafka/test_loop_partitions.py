"""Partitions that come and go under the consume loop, and errors of its consumer."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from confluent_kafka import KafkaError

from streamer.kafka import FatalError
from tests.support.fake_client import TIMED_OUT, FakeMessage, error
from tests.support.fake_kafka import GROUP, INPUT, Instance, nothing_happens, until

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.support.fake_kafka import FakeKafka


# -- partitions come and go ------------------------------------------------------------------------------------


def test_what_is_done_of_a_revoked_partition_is_committed_before_it_goes(fake_pair: FakeKafka) -> None:
    fake = fake_pair
    fake.cluster.publish(INPUT, b"a", partition=0)
    fake.cluster.publish(INPUT, b"b", b"c", partition=1)
    one = Instance(fake)
    one.work.hold = True

    def story() -> Iterator[None]:
        yield from until(lambda: len(one.work.waiting) == 3)
        other = fake.member()
        other.poll(0)
        one.work.complete()
        yield from until(lambda: one.value("streamer_assigned_partitions") == 1)
        assert [fake.progress(number) is not None for number in (0, 1)] == [True, True]
        other.close()

    assert one.run(story())
    fake.assert_exactly_once()
    assert one.value("streamer_rebalances_total", kind="revoked") >= 1


def test_what_is_not_done_of_a_revoked_partition_is_left_after_half_of_the_drain_timeout(fake_pair: FakeKafka) -> None:
    fake = fake_pair
    fake.cluster.publish(INPUT, b"a", b"b", partition=1)
    one = Instance(fake, drain_timeout=4.0)
    one.work.hold = True

    def story() -> Iterator[None]:
        yield from until(lambda: len(one.work.waiting) == 2)
        other = fake.member()
        other.poll(0)
        began = fake.clock.now
        yield from until(lambda: one.value("streamer_assigned_partitions") == 1)
        assert 2.0 <= fake.clock.now - began < 2.5
        assert all(each.revoked for each in one.work.submitted)
        other.close()

    assert one.run(story())
    assert fake.outputs() == []


def test_work_that_completes_after_its_partition_was_revoked_is_not_reported(fake_pair: FakeKafka) -> None:
    fake = fake_pair
    fake.cluster.publish(INPUT, b"a", partition=1)
    one = Instance(fake, drain_timeout=1.0)
    one.work.hold = True

    def story() -> Iterator[None]:
        yield from until(lambda: len(one.work.waiting) == 1)
        other = fake.member()
        other.poll(0)
        yield from until(lambda: one.value("streamer_assigned_partitions") == 1)
        one.work.complete()
        yield from nothing_happens(fake, 2)
        assert fake.outputs() == []
        other.close()  # and the partition comes back
        yield from until(lambda: len(one.work.waiting) == 1)
        one.work.complete()
        yield from until(one.is_caught_up)

    assert one.run(story())
    assert one.work.offsets == [0, 0]
    fake.assert_exactly_once()


def test_a_member_that_was_expelled_drops_its_work_and_the_next_owner_does_it(fake: FakeKafka) -> None:
    fake.cluster.publish(INPUT, b"a", b"b")
    one, two = Instance(fake), Instance(fake, "two")
    one.work.hold = True

    def story() -> Iterator[None]:
        yield from until(lambda: len(one.work.waiting) == 2)
        one.consumer.expel()
        two.run_until_caught_up()
        one.work.complete()
        yield from until(lambda: one.value("streamer_rebalances_total", kind="lost") == 1)
        yield from nothing_happens(fake, 3)

    one.run(story())
    fake.assert_exactly_once()
    assert fake.outputs() == [b"a", b"b"]


def test_a_zombie_that_commits_before_it_learns_that_it_was_expelled_is_refused(fake: FakeKafka) -> None:
    fake.cluster.publish(INPUT, b"a", b"b")
    one, two = Instance(fake), Instance(fake, "two")
    one.work.hold = True

    def take_over() -> None:
        one.consumer.expel()
        two.run_until_caught_up()

    def story() -> Iterator[None]:
        yield from until(lambda: len(one.work.waiting) == 2)
        fake.fail("send_offsets", take_over, client="one")
        one.work.complete()
        yield from until(lambda: one.value("streamer_rebalances_total", kind="lost") == 1)
        yield from nothing_happens(fake, 3)

    one.run(story())
    assert one.value("streamer_transactions_total", outcome="aborted") >= 1
    fake.assert_exactly_once()


def test_a_rebalance_while_a_commit_is_under_way_has_it_committed_once(fake_pair: FakeKafka) -> None:
    fake = fake_pair
    fake.cluster.publish(INPUT, b"a", partition=1)
    one, two = Instance(fake), Instance(fake, "two")
    unanswered = fake.fail("commit_transaction", TIMED_OUT, applied=True, client="one")

    def story() -> Iterator[None]:
        yield from until(lambda: unanswered.fired == 1)
        other = fake.member()
        other.poll(0)
        yield from until(lambda: one.value("streamer_assigned_partitions") == 1)
        other.close()
        yield from until(one.is_caught_up)

    assert one.run(story())
    two.run_until_caught_up()
    fake.assert_exactly_once()
    assert two.work.submitted == []


def test_a_late_answer_to_a_commit_does_not_undo_what_another_member_has_committed_since(fake: FakeKafka) -> None:
    fake.cluster.publish(INPUT, *(b"%d" % number for number in range(10)))
    one, two = Instance(fake), Instance(fake, "two")
    one.work.hold = two.work.hold = True

    def of_two() -> Iterator[None]:
        yield from until(lambda: len(two.work.waiting) == 9)
        two.work.complete(1, 2, 3, 7)
        yield from until(lambda: len(fake.outputs()) == 5)

    def story() -> Iterator[None]:
        yield from until(lambda: len(one.work.waiting) == 10)
        unanswered = fake.fail("commit_transaction", TIMED_OUT, applied=True, times=1_000_000, client="one")
        one.work.complete(0)
        yield from until(lambda: unanswered.fired > 0)
        one.consumer.expel()
        two.run(of_two())
        one.work.waiting = []
        yield from until(lambda: [each.record.offset for each in one.work.waiting] == [4, 5, 6, 8, 9])
        unanswered.times = unanswered.fired
        yield from until(lambda: one.value("streamer_transactions_total", outcome="committed") == 1)
        one.work.complete(4)
        yield from until(lambda: len(fake.outputs()) == 6)

    one.run(story())
    progress = fake.progress()
    assert progress is not None
    assert (progress.offset, progress.ahead) == (5, frozenset({7}))
    one.again().run_until_caught_up()
    fake.assert_exactly_once()


def test_lost_partitions_are_waited_for_until_they_are_assigned_again(fake: FakeKafka) -> None:
    one = Instance(fake)
    seen: list[str] = []

    def story() -> Iterator[None]:
        yield from until(lambda: one.value("streamer_assigned_partitions") == 1)
        one.consumer.expel()
        yield from until(lambda: "assignment" in one.not_ready)
        seen.append(one.not_ready["assignment"])
        yield from until(lambda: "assignment" not in one.not_ready)

    assert one.run(story())
    assert seen == ["the partitions were lost; rejoining the group"]


def test_a_partition_that_was_paused_is_read_when_it_is_assigned_again(fake: FakeKafka) -> None:
    fake.cluster.publish(INPUT, *(b"%d" % number for number in range(6)))
    one = Instance(fake, max_records=2)
    one.work.hold = True

    def story() -> Iterator[None]:
        yield from until(lambda: one.value("streamer_paused_partitions") == 1 or bool(one.consumer.paused))
        one.consumer.expel()
        yield from until(lambda: one.value("streamer_rebalances_total", kind="assigned") == 2)
        one.work.hold = False
        one.work.waiting = []
        yield from until(one.is_caught_up)

    assert one.run(story())
    fake.assert_exactly_once()


def test_a_message_of_a_partition_that_is_not_ours_any_more_is_dropped(fake: FakeKafka) -> None:
    (offset,) = fake.cluster.publish(INPUT, b"a")
    one = Instance(fake)

    def story() -> Iterator[None]:
        entry = fake.cluster.log(INPUT).entries[offset]
        yield from one.report(FakeMessage(INPUT, 7, entry=entry))
        yield from until(one.is_caught_up)

    assert one.run(story())
    assert [each.record.partition for each in one.work.submitted] == [0]


# -- errors of the consumer ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "code",
    [
        KafkaError.NOT_COORDINATOR,
        KafkaError.COORDINATOR_NOT_AVAILABLE,
        KafkaError.COORDINATOR_LOAD_IN_PROGRESS,
    ],
)
def test_after_an_offset_fetch_that_the_client_does_not_repeat_it_rejoins(fake: FakeKafka, code: int) -> None:
    fake.cluster.publish(INPUT, b"a")
    fake.fail("offset_fetch", error(code))
    one = Instance(fake)
    first = one.consumer
    one.run_until_caught_up()
    assert one.consumer is not first
    assert first.is_closed
    fake.assert_exactly_once()


def test_partitions_of_a_broken_client_are_lost_even_without_a_callback_at_close(
    fake: FakeKafka,
) -> None:
    fake.cluster.publish(INPUT, b"a")
    one = Instance(fake)
    one.work.hold = True

    def story() -> Iterator[None]:
        yield from until(lambda: len(one.work.waiting) == 1)
        one.consumer.is_silent = True
        one.consumer.incoming.append(FakeMessage("", -1, fault=error(KafkaError.NOT_COORDINATOR)))
        yield from until(lambda: one.value("streamer_rebalances_total", kind="lost") == 1)
        assert one.work.submitted[0].revoked
        one.work.hold = False
        yield from until(one.is_caught_up)

    assert one.run(story())
    fake.assert_exactly_once()


def test_any_other_error_of_the_consumer_is_logged_and_it_goes_on(fake: FakeKafka) -> None:
    fake.cluster.publish(INPUT, b"a")
    one = Instance(fake)
    first = one.consumer

    def story() -> Iterator[None]:
        yield from one.report(FakeMessage(INPUT, 0, fault=error(KafkaError._TRANSPORT, retriable=True)))
        yield from until(one.is_caught_up)

    assert one.run(story())
    assert one.consumer is first


@pytest.mark.parametrize("fault", [error(KafkaError._FATAL), error(KafkaError.UNKNOWN, fatal=True)])
def test_a_fatal_error_of_a_consumer_with_partitions_ends_the_process(fake: FakeKafka, fault: KafkaError) -> None:
    one = Instance(fake)

    def story() -> Iterator[None]:
        yield from one.report(FakeMessage("", -1, fault=fault))
        while True:
            yield

    with pytest.raises(FatalError, match="consumer: "):
        one.run(story())
    assert one.consumer.is_closed


def test_a_protocol_that_is_not_offered_is_followed_by_the_classic_one(fake: FakeKafka) -> None:
    fake.cluster.publish(INPUT, b"a")
    fake.cluster.protocols = {"classic"}
    one = Instance(fake)
    one.run_until_caught_up()
    assert one.consumer.properties["group.protocol"] == "classic"


def test_when_no_protocol_is_left_the_process_ends(fake: FakeKafka) -> None:
    fake.cluster.protocols = set()
    one = Instance(fake)
    with pytest.raises(FatalError, match="consumer: "):
        one.run(nothing_happens(fake, 5))


def test_a_group_that_may_not_be_joined_is_named_and_joined_when_it_may(fake: FakeKafka) -> None:
    fake.cluster.publish(INPUT, b"a")
    fake.cluster.denied.add(("group", GROUP))
    one = Instance(fake)

    def story() -> Iterator[None]:
        yield from until(lambda: "lacks" in one.not_ready.get("assignment", ""))
        assert one.not_ready["assignment"].startswith(f"this client lacks Read on the group {GROUP}")
        fake.cluster.denied.clear()
        yield from until(one.is_caught_up)

    assert one.run(story())
    assert "assignment" not in one.not_ready


def test_a_refused_member_of_the_consumer_protocol_rejoins_after_two_seconds(fake: FakeKafka) -> None:
    fake.cluster.publish(INPUT, b"a")
    one = Instance(fake)
    first = one.consumer
    reason = KafkaError(KafkaError.GROUP_AUTHORIZATION_FAILED).str()

    def is_replaced() -> bool:
        """Say so at each poll, as the client does."""
        first.incoming.append(FakeMessage("", -1, fault=KafkaError(KafkaError._FATAL, reason)))
        return one.consumer is not first

    def story() -> Iterator[None]:
        first.incoming.append(FakeMessage("", -1, fault=KafkaError(KafkaError._FATAL, reason)))
        yield from until(lambda: not first.incoming)
        began = fake.clock.now
        yield from until(is_replaced)
        assert 1.5 <= fake.clock.now - began <= 2.2
        yield from until(one.is_caught_up)

    assert one.run(story())
    assert one.consumer.properties["group.protocol"] == "consumer"


def test_an_input_topic_that_may_not_be_read_any_more_is_named(fake: FakeKafka) -> None:
    one = Instance(fake)

    def story() -> Iterator[None]:
        yield from until(lambda: one.value("streamer_assigned_partitions") > 0)
        fake.cluster.denied.add(("topic-read", INPUT))
        one.consumer.incoming.append(FakeMessage(INPUT, 0, fault=error(KafkaError.TOPIC_AUTHORIZATION_FAILED)))
        yield from until(lambda: "topic" in one.not_ready)
        assert f"lacks Read on the topic {INPUT}" in one.not_ready["topic"]
        fake.cluster.denied.clear()
        yield from until(lambda: "topic" not in one.not_ready)

    assert one.run(story())
