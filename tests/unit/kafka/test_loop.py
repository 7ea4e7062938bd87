"""Where the consume loop begins, which topics it waits for, and how it ends."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from confluent_kafka import KafkaError
from structlog.testing import capture_logs

from streamer.kafka import FatalError
from streamer.kafka.records import REDRIVEN_FOR
from tests.support.fake_client import TIMED_OUT, FakeMessage, error
from tests.support.fake_kafka import GROUP, INPUT, OUTPUT, Instance, nothing_happens, until
from tests.support.fake_producer import FakeProducer

if TYPE_CHECKING:
    from collections.abc import Iterator

    from confluent_kafka import TopicPartition

    from tests.support.fake_kafka import FakeKafka


# -- where it begins -------------------------------------------------------------------------------------------


def test_a_group_that_has_committed_nothing_begins_at_the_beginning(fake: FakeKafka) -> None:
    fake.cluster.publish(INPUT, b"a", b"b", b"c")
    fake.cluster.log(INPUT).delete_before(1)
    one = Instance(fake)
    one.run_until_caught_up()
    assert one.work.offsets == [1, 2]


def test_nothing_is_worked_on_before_it_is_known_what_is_done(fake: FakeKafka) -> None:
    fake.cluster.publish(INPUT, b"a", b"b")
    fake.fail("committed", TIMED_OUT, times=3)
    one = Instance(fake)

    def story() -> Iterator[None]:
        yield from until(lambda: fake.count("committed") == 3)
        assert one.work.submitted == []
        assert "Timed out" in one.not_ready["offsets"]
        yield from until(one.is_caught_up)

    assert one.run(story())
    assert "offsets" not in one.not_ready
    assert one.value("streamer_events_consumed_total", topic=INPUT) == 2


def test_progress_is_not_computed_at_every_iteration(fake: FakeKafka) -> None:
    fake.cluster.publish(INPUT, b"a")
    refused = error(KafkaError.COORDINATOR_LOAD_IN_PROGRESS, retriable=True)
    fault = fake.fail("committed", refused, times=1_000_000)
    one = Instance(fake)

    def story() -> Iterator[None]:
        yield from until(lambda: fault.fired == 1)
        yield from nothing_happens(fake, 1.0)

    one.run(story())
    assert 5 <= fault.fired <= 12
    fault.times = fault.fired


def test_records_that_are_done_and_come_again_are_not_handed_over(fake: FakeKafka) -> None:
    fake.cluster.publish(INPUT, *(b"%d" % number for number in range(5)))
    first = Instance(fake)
    first.work.hold = True

    def story() -> Iterator[None]:
        yield from until(lambda: len(first.work.waiting) == 5)
        first.work.complete(1, 3)
        yield from until(lambda: len(fake.outputs()) == 2)

    assert not first.run(story())
    second = first.again()
    second.run_until_caught_up()
    assert second.work.offsets == [0, 2, 4]
    assert second.value("streamer_events_consumed_total", topic=INPUT) == 3
    fake.assert_exactly_once()


def test_a_record_that_was_redriven_for_another_group_is_passed_over_counted_and_logged(fake: FakeKafka) -> None:
    for group in (b"another", GROUP.encode()):
        fake.cluster.publish(INPUT, b"a", headers=((REDRIVEN_FOR, group),))
    one = Instance(fake)
    with capture_logs() as logs:
        one.run_until_caught_up()
    assert one.work.offsets == [1]
    assert one.value("streamer_events_passed_over_total", topic=INPUT) == 1
    [told] = [each for each in logs if each["event"] == "redriven record passed over"]
    assert (told["log_level"], told["redriven_for"], told["group"]) == ("info", "another", GROUP)


def test_what_an_upstream_transaction_leaves_at_the_end_of_the_log_is_committed_too(fake: FakeKafka) -> None:
    fake.cluster.publish(INPUT, b"a")
    upstream = fake.producer()
    upstream.begin_transaction()
    upstream.produce(INPUT, b"x", b"x", 0)
    upstream.poll(0)
    upstream.abort_transaction(1)
    one = Instance(fake)
    assert one.run(lambda: (progress := fake.progress()) is not None and progress.offset == 3)
    assert one.work.offsets == [0]


# -- topics ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("missing", [INPUT, OUTPUT])
def test_it_waits_for_a_topic_that_is_missing_and_says_which(fake: FakeKafka, missing: str) -> None:
    kept = fake.cluster.topics.pop(missing)
    one = Instance(fake)

    def story() -> Iterator[None]:
        yield from until(lambda: "does not exist" in one.not_ready["topic"])
        assert missing in one.not_ready["topic"]
        fake.cluster.topics[missing] = kept
        fake.cluster.publish(INPUT, b"a")
        yield from until(lambda: one.is_caught_up() and "topic" not in one.not_ready)

    assert one.run(story())


def test_it_joins_no_group_before_the_input_topic_exists(fake: FakeKafka) -> None:
    del fake.cluster.topics[INPUT]
    one = Instance(fake)
    assert one.run(nothing_happens(fake, 5))
    assert fake.count("join") == 0


def test_a_recreated_topic_is_read_from_its_beginning_and_what_was_in_flight_of_the_old_one_is_dropped(
    fake: FakeKafka,
) -> None:
    fake.cluster.publish(INPUT, b"a", b"b", b"x")
    one = Instance(fake)
    one.work.hold = True

    def story() -> Iterator[None]:
        yield from until(lambda: len(one.work.waiting) == 3)
        one.work.complete(0, 1)
        yield from until(lambda: fake.outputs() == [b"a", b"b"])
        [old] = one.work.waiting
        fake.cluster.recreate_topic(INPUT)
        fake.cluster.publish(INPUT, b"c")
        yield from until(lambda: len(one.work.waiting) == 2)
        assert old.revoked
        one.work.complete()
        yield from until(one.is_caught_up)

    assert one.run(story())
    assert one.work.offsets == [0, 1, 2, 0]
    assert fake.outputs() == [b"a", b"b", b"c"]
    assert one.value("streamer_topics_recreated_total", topic=INPUT) == 1


def test_an_unknown_topic_id_has_the_topic_looked_up_again(fake: FakeKafka) -> None:
    one = Instance(fake)

    def story() -> Iterator[None]:
        yield from one.report(FakeMessage(INPUT, 0, fault=error(KafkaError.UNKNOWN_TOPIC_ID)))
        asked = fake.count("describe_topics")
        yield from until(lambda: fake.count("describe_topics") > asked)
        fake.cluster.publish(INPUT, b"a")
        yield from until(one.is_caught_up)

    assert one.run(story())


def test_new_partitions_are_read_when_the_topic_has_been_looked_up_again_or_after_two_seconds(
    fake: FakeKafka,
) -> None:
    fake.cluster.publish(INPUT, b"a")
    one = Instance(fake)

    def story() -> Iterator[None]:
        yield from until(lambda: fake.count("join") == 1)
        fake.held = []
        yield from until(lambda: one.value("streamer_assigned_partitions") == 1)
        assigned_at = fake.clock.now
        yield from until(lambda: len(one.work.submitted) == 1)
        assert 1.8 <= fake.clock.now - assigned_at < 2.2
        yield from until(one.is_caught_up)

    assert one.run(story())


# -- the end ---------------------------------------------------------------------------------------------------


def test_a_stop_while_idle_leaves_the_group_at_once(fake: FakeKafka) -> None:
    one = Instance(fake)
    assert one.run(lambda: one.value("streamer_assigned_partitions") == 1)
    assert fake.cluster.group(GROUP).members == {}
    assert one.consumer.is_closed


def test_a_stop_while_busy_commits_what_completes_in_time_and_fetches_nothing_new(
    fake: FakeKafka, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake.cluster.publish(INPUT, b"a", b"b")
    one = Instance(fake, drain_timeout=5.0)
    one.work.hold = True

    def story() -> Iterator[None]:
        yield from until(lambda: len(one.work.waiting) == 2)
        pause = one.consumer.pause

        def pause_and_complete(places: list[TopicPartition]) -> None:
            """Do what a worker does while the loop drains."""
            pause(places)
            fake.cluster.publish(INPUT, b"new")
            one.work.complete()

        monkeypatch.setattr(one.consumer, "pause", pause_and_complete)

    assert one.run(story())
    assert fake.outputs() == [b"a", b"b"]
    assert one.work.offsets == [0, 1]


def test_work_that_outlasts_the_stop_is_left_to_the_next_process(fake: FakeKafka) -> None:
    fake.cluster.publish(INPUT, b"a", b"b", b"c")
    one = Instance(fake, drain_timeout=3.0)
    one.work.hold = True
    at = 0.0

    def story() -> Iterator[None]:
        nonlocal at
        yield from until(lambda: len(one.work.waiting) == 3)
        one.work.complete(1)
        at = fake.clock.now

    assert not one.run(story())
    assert 3.0 <= fake.clock.now - at < 3.5
    assert fake.outputs() == [b"b"]
    second = one.again()
    second.run_until_caught_up()
    assert second.work.offsets == [0, 2]
    fake.assert_exactly_once()


def test_a_stop_leaves_what_came_before_it_was_known_what_is_done(fake: FakeKafka) -> None:
    fake.cluster.publish(INPUT, b"a")
    fault = fake.fail("committed", TIMED_OUT, times=1_000_000)
    one = Instance(fake)
    assert one.run(lambda: one.loop._assignment.records == 1)
    assert one.work.submitted == []
    fault.times = fault.fired
    one.again().run_until_caught_up()
    fake.assert_exactly_once()


def test_a_stop_while_no_coordinator_answers_ends_in_time(fake: FakeKafka) -> None:
    fake.cluster.publish(INPUT, b"a")
    one = Instance(fake, drain_timeout=1.0)
    one.work.hold = True
    at = 0.0

    def story() -> Iterator[None]:
        nonlocal at
        yield from until(lambda: len(one.work.waiting) == 1)
        fake.cluster.down = True
        one.work.complete()
        at = fake.clock.now

    assert not one.run(story())
    # A request that has begun may end after the deadline, but waits for less once a stop is asked for.
    assert 1.0 <= fake.clock.now - at < 1.0 + 0.8
    fake.cluster.down = False
    fake.bury(one.process)
    one.again().run_until_caught_up()
    fake.assert_exactly_once()


def test_a_stop_before_any_broker_answers_is_a_clean_end(fake: FakeKafka) -> None:
    fake.cluster.down = True
    one = Instance(fake)
    assert one.run(lambda: "transactions" in one.not_ready)
    assert "Timed out" in one.not_ready["transactions"]


# -- brokers ---------------------------------------------------------------------------------------------------


def test_brokers_that_are_unreachable_at_the_start_are_waited_for(fake: FakeKafka) -> None:
    fake.cluster.publish(INPUT, b"a")
    fake.cluster.down = True
    one = Instance(fake)

    def story() -> Iterator[None]:
        yield from until(lambda: "transactions" in one.not_ready)
        fake.cluster.down = False
        yield from until(one.is_caught_up)

    assert one.run(story())
    assert "transactions" not in one.not_ready
    fake.assert_exactly_once()


def test_brokers_that_become_unreachable_while_records_are_in_flight_cost_nothing(fake: FakeKafka) -> None:
    fake.cluster.publish(INPUT, b"a", b"b")
    one = Instance(fake)
    one.work.hold = True

    def story() -> Iterator[None]:
        yield from until(lambda: len(one.work.waiting) == 2)
        fake.cluster.down = True
        one.work.complete()
        yield from nothing_happens(fake, 20)
        assert fake.outputs() == []
        fake.cluster.down = False
        yield from until(one.is_caught_up)

    assert one.run(story())
    assert one.work.offsets == [0, 1]
    fake.assert_exactly_once()


def test_a_second_process_of_the_same_name_ends_the_first(fake: FakeKafka) -> None:
    fake.cluster.publish(INPUT, b"a")
    one, twin = Instance(fake), Instance(fake)
    one.work.hold = True

    def story() -> Iterator[None]:
        yield from until(lambda: len(one.work.waiting) == 1)
        twin.run(lambda: fake.count("init_transactions") == 2)
        one.work.complete()
        while True:
            yield

    with pytest.raises(FatalError, match=r"streamer-rerank-one is fenced.*--instance-id"):
        one.run(story())
    assert one.value("streamer_transactions_total", outcome="fenced") == 1
    assert fake.outputs() == []


def test_a_commit_that_the_cluster_has_lost_ends_the_process(fake: FakeKafka) -> None:
    fake.cluster.publish(INPUT, b"a", b"b")
    one = Instance(fake)

    def story() -> Iterator[None]:
        yield from until(one.is_caught_up)
        fake.cluster.commit(GROUP, (INPUT, 0), 1)
        fake.fail("commit_transaction", error(KafkaError.UNKNOWN, fatal=True))
        fake.cluster.publish(INPUT, b"c")
        while True:
            yield

    with pytest.raises(FatalError, match=r"lost a commit that it had acknowledged.*2 was committed, the group has 1"):
        one.run(story())


@pytest.mark.parametrize("producers", [1, 3])
def test_keys_are_divided_among_the_partitions_that_an_output_has_now(fake: FakeKafka, producers: int) -> None:
    fake.cluster.create_topic(OUTPUT, 6)
    one = Instance(fake, producers=producers)

    def story() -> Iterator[None]:
        fake.cluster.publish(INPUT, *(bytes([key]) for key in range(20)))
        yield from until(one.is_caught_up)
        fake.cluster.recreate_topic(OUTPUT, 4)
        yield from nothing_happens(fake, 4)
        fake.cluster.publish(INPUT, *(bytes([key]) for key in range(100, 120)))
        yield from until(one.is_caught_up)

    assert one.run(story())
    found = [[entry.key for entry in log.readable()] for log in fake.cluster.topics[OUTPUT].logs]
    assert found == [[bytes([key]) for key in range(100, 120) if key % 4 == number] for number in range(4)]


def test_an_output_that_was_created_again_is_written_by_new_producers(fake: FakeKafka) -> None:
    one = Instance(fake, producers=2)
    fake.fail("init_transactions", TIMED_OUT, skip=2)
    before: list[object] = []
    after: list[object] = []

    def producers() -> list[object]:
        return [client for client in fake.process.clients if isinstance(client, FakeProducer)]

    def story() -> Iterator[None]:
        yield from nothing_happens(fake, 1)
        before.extend(producers())
        fake.cluster.recreate_topic(OUTPUT)
        yield from nothing_happens(fake, 6)
        for number in range(4):
            fake.cluster.publish(INPUT, b"%d" % number)
            yield from until(one.is_caught_up)
        after.extend(producers())

    assert one.run(story())
    fake.assert_all_fired()
    assert fake.outputs() == [b"%d" % number for number in range(4)]
    assert len(before) == 2
    assert len(after) == 4
