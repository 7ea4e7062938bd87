"""A log that is not what it was: truncated, lost, created again, mirrored, or with offsets set by hand."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from confluent_kafka import KafkaError, TopicPartition

from streamer.kafka import FatalError
from streamer.kafka.inflight.offsets import Origin, Progress, read_commit
from streamer.store import Position
from tests.support.committing import FATAL
from tests.support.fake_client import TIMED_OUT, FakeMessage
from tests.support.fake_kafka import GROUP, INPUT, Instance, nothing_happens, until

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.support.fake_kafka import FakeKafka

PLACE = (INPUT, 0)
DONE = Progress(10, frozenset({12, 13}))


def committed(offset: int, metadata: str) -> TopicPartition:
    return TopicPartition(*PLACE, offset, metadata=metadata)


def resets(instance: Instance, reason: str) -> float:
    return instance.value("streamer_log_resets_total", topic=INPUT, reason=reason)


def values(*numbers: int) -> list[bytes]:
    return [b"%03d" % number for number in numbers]


# -- what a commit's metadata says -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("offset", "log", "expected"),
    [
        (10, "a-0", (DONE, Origin.OWN)),
        (9, "a-0", (Progress(9), Origin.MOVED)),
        (11, "b-0", (Progress(11), Origin.TRANSLATED)),
        (10, "b-0", (None, Origin.FOREIGN)),
    ],
)
def test_metadata_is_believed_as_far_as_it_names_its_log_and_its_offset(
    offset: int, log: str, expected: tuple[Progress | None, Origin]
) -> None:
    assert read_commit(committed(offset, DONE.metadata("a-0")), log) == expected


def test_a_commit_with_nothing_done_ahead_names_its_log_too() -> None:
    assert read_commit(committed(10, Progress(10).metadata("a-0")), "b-0").origin is Origin.FOREIGN


# -- the log ends before the position -----------------------------------------------------------------------------


@pytest.mark.parametrize("left", [0, 30])
def test_a_committed_offset_beyond_the_end_skips_nothing(fake: FakeKafka, left: int) -> None:
    fake.cluster.publish(INPUT, *values(*range(left)))
    fake.cluster.commit(GROUP, PLACE, 1_000, Progress(1_000, frozenset({1_003})).metadata(_log(fake)))
    one = Instance(fake)

    def story() -> Iterator[None]:
        yield from nothing_happens(fake, 3)
        fake.cluster.publish(INPUT, *values(*range(100, 120)))
        yield from until(lambda: len(fake.outputs()) >= left + 20)
        yield from nothing_happens(fake, 3)

    assert one.run(story())
    assert sorted(fake.outputs()) == sorted(fake.outputs(INPUT))
    assert resets(one, "beyond_end") == 1
    assert fake.progress() == Progress(left + 20)


def test_an_empty_log_takes_the_committed_offset_back_before_anything_is_written(fake: FakeKafka) -> None:
    fake.cluster.commit(GROUP, PLACE, 1_000)
    one = Instance(fake)
    assert one.run(lambda: fake.progress() == Progress(0))


def test_a_log_that_is_truncated_while_it_is_read_is_processed_again(fake: FakeKafka) -> None:
    fake.cluster.publish(INPUT, *values(*range(10)))
    one = Instance(fake)

    def story() -> Iterator[None]:
        yield from until(lambda: fake.progress() == Progress(10))
        fake.cluster.log(INPUT).truncate(4)
        fake.cluster.publish(INPUT, *values(*range(100, 120)))
        yield from until(lambda: len(set(fake.outputs())) == 30)
        yield from until(one.is_caught_up)

    assert one.run(story())
    assert set(fake.outputs(INPUT)) <= set(fake.outputs())
    assert resets(one, "beyond_end") == 1


def test_a_log_that_was_truncated_and_filled_again_between_two_runs_is_recognised_by_the_leaders_epoch(
    fake: FakeKafka,
) -> None:
    fake.cluster.publish(INPUT, *values(*range(10)))
    Instance(fake).run_until_caught_up()
    assert fake.cluster.group(GROUP).committed[PLACE].leader_epoch == 0
    fake.cluster.log(INPUT).truncate(4)
    fake.cluster.publish(INPUT, *values(*range(100, 120)))
    two = Instance(fake, "two")
    assert two.run(until(lambda: set(fake.outputs(INPUT)) <= set(fake.outputs())))
    assert resets(two, "beyond_end") == 1


def test_a_log_that_was_lost_and_filled_again_is_found_where_its_producers_are_transactional(fake: FakeKafka) -> None:
    """A commit beyond the marker at the end has an epoch too."""
    upstream = fake.producer()
    for value in values(*range(3)):
        upstream.begin_transaction()
        upstream.produce(INPUT, value=value, key=value)
        upstream.commit_transaction(1)
    one = Instance(fake)

    def story() -> Iterator[None]:
        yield from until(lambda: fake.progress() == Progress(5))
        yield from nothing_happens(fake, 0.5)
        one.tell_leaders()
        yield from until(lambda: fake.progress() == Progress(6))

    assert one.run(story())
    assert fake.cluster.group(GROUP).committed[PLACE].leader_epoch == 0
    fake.cluster.log(INPUT).truncate(0)
    fake.cluster.publish(INPUT, *values(*range(100, 120)))
    two = Instance(fake, "two")
    assert two.run(until(lambda: set(fake.outputs(INPUT)) <= set(fake.outputs())))


def test_records_done_ahead_that_were_replaced_are_processed_and_those_before_them_are_not(fake: FakeKafka) -> None:
    """The log lost its end beyond the committed offset: that is valid, and part of the list beside it."""
    fake.cluster.publish(INPUT, *values(*range(10)))
    one = Instance(fake)
    one.work.hold = True

    def story() -> Iterator[None]:
        yield from until(lambda: len(one.work.waiting) == 10)
        one.work.complete(2, 7, 8)
        yield from until(lambda: fake.progress() == Progress(0, frozenset({2, 7, 8})))

    one.run(story())
    fake.cluster.log(INPUT).truncate(5)
    fake.cluster.publish(INPUT, *values(*range(100, 110)))
    two = Instance(fake, "two")
    two.work.hold = True

    def another() -> Iterator[None]:
        yield from until(lambda: len(two.work.waiting) == 14)
        fake.fail("commit_transaction", FATAL)  # upon which the group's commit is read again, with its list
        two.work.complete()
        yield from until(two.is_caught_up)

    assert two.run(another())
    assert sorted(fake.outputs()[3:]) == values(0, 1, 3, 4, *range(100, 110))
    assert resets(two, "beyond_end") == 1


def test_a_batch_that_could_not_be_read_in_the_lost_log_does_not_hold_up_the_new_one(fake: FakeKafka) -> None:
    fake.cluster.publish(INPUT, *values(*range(10)))
    Instance(fake).run_until_caught_up()
    fake.cluster.log(INPUT).truncate(4)
    fake.cluster.publish(INPUT, *values(*range(100, 120)))
    two = Instance(fake, "two")
    fake.fail("committed", TIMED_OUT, client="two")
    unreadable = KafkaError(KafkaError._BAD_COMPRESSION)

    def story() -> Iterator[None]:
        yield from two.report(FakeMessage(*PLACE, fault=unreadable, offset=10))
        yield from until(lambda: set(fake.outputs(INPUT)) <= set(fake.outputs()))
        assert two.not_ready == {}

    assert two.run(story())


def test_records_in_flight_of_a_truncated_log_are_abandoned(fake: FakeKafka) -> None:
    fake.cluster.publish(INPUT, *values(*range(5)))
    one = Instance(fake)
    one.work.hold = True

    def story() -> Iterator[None]:
        yield from until(lambda: len(one.work.waiting) == 5)
        old = list(one.work.waiting)
        fake.cluster.log(INPUT).truncate(0)
        fake.cluster.publish(INPUT, *values(100))
        yield from until(lambda: len(one.work.waiting) == 6)
        assert [each.revoked for each in one.work.waiting] == [True] * 5 + [False]
        for each in old:
            one.work.waiting.remove(each)
            each.complete(one.work.work(each.record))
        yield from nothing_happens(fake, 1)
        assert fake.outputs() == []
        one.work.complete()
        yield from until(one.is_caught_up)

    assert one.run(story())
    assert fake.outputs() == values(100)


# -- another log of the same name -----------------------------------------------------------------------------


def test_a_commit_of_a_deleted_topic_that_lands_in_the_new_one_skips_nothing(fake: FakeKafka) -> None:
    fake.cluster.publish(INPUT, *values(*range(10)))
    Instance(fake).run_until_caught_up()
    late = fake.cluster.group(GROUP).committed[PLACE]
    fake.cluster.recreate_topic(INPUT)
    fake.cluster.commit(GROUP, PLACE, late.offset, late.metadata)
    fake.cluster.publish(INPUT, *values(*range(100, 120)))
    two = Instance(fake, "two")
    two.run_until_caught_up()
    assert fake.outputs()[10:] == fake.outputs(INPUT)
    assert resets(two, "foreign") == 1


@pytest.mark.parametrize("protocols", [{"classic"}, {"classic", "consumer"}])
def test_a_topic_that_is_created_again_under_a_service_ends_it_and_its_restart_reads_the_new_one(
    fake: FakeKafka, protocols: set[str]
) -> None:
    fake.cluster.protocols = protocols
    fake.cluster.publish(INPUT, *values(*range(10)))
    one = Instance(fake)

    def story() -> Iterator[None]:
        yield from until(lambda: fake.progress() == Progress(10))
        fake.cluster.recreate_topic(INPUT)
        fake.cluster.publish(INPUT, *values(*range(100, 120)))
        yield from nothing_happens(fake, 10)

    with pytest.raises(FatalError, match="created again"):
        one.run(story())
    one.process.crash()
    fake.bury(one.process)
    one.again().run_until_caught_up()
    assert fake.outputs()[10:] == fake.outputs(INPUT)


def test_a_mirrored_commit_skips_nothing(fake: FakeKafka) -> None:
    """MirrorMaker 2 copies metadata unchanged beside a translated offset."""
    fake.cluster.publish(INPUT, *values(*range(10)))
    fake.cluster.commit(GROUP, PLACE, 4, Progress(40, frozenset({41, 43})).metadata("source-0"))
    one = Instance(fake)
    one.run_until_caught_up()
    assert fake.outputs() == values(*range(4, 10))
    assert resets(one, "translated") == 1


def test_offsets_set_by_hand_count_and_what_was_done_beyond_them_is_done_again(fake: FakeKafka) -> None:
    fake.cluster.publish(INPUT, *values(*range(10)))
    fake.cluster.commit(GROUP, PLACE, 4, Progress(6, frozenset({8})).metadata(_log(fake)))
    one = Instance(fake)
    one.run_until_caught_up()
    assert fake.outputs() == values(*range(4, 10))
    assert resets(one, "moved") == 1


# -- auto.offset.reset ----------------------------------------------------------------------------------------


def test_a_new_group_may_begin_at_the_end_and_a_known_one_never_does(fake: FakeKafka) -> None:
    latest = {"auto.offset.reset": "latest"}
    fake.cluster.publish(INPUT, *values(*range(10)))
    one = Instance(fake, kafka=latest)

    def story() -> Iterator[None]:
        yield from nothing_happens(fake, 3)
        fake.cluster.publish(INPUT, *values(10, 11))
        yield from until(lambda: fake.progress() == Progress(12))

    assert one.run(story())
    assert fake.outputs() == values(10, 11)
    fake.cluster.log(INPUT).truncate(3)
    fake.cluster.publish(INPUT, *values(100, 101))
    two = Instance(fake, "two", kafka=latest)
    assert two.run(until(lambda: len(fake.outputs()) == 4))
    assert fake.outputs()[2:] == values(100, 101)


# -- brokers that take little metadata ------------------------------------------------------------------------


@pytest.mark.parametrize(("limit", "metadata"), [(60, "done2:"), (8, "")])
def test_brokers_that_refuse_the_metadata_get_less_of_it(fake: FakeKafka, limit: int, metadata: str) -> None:
    fake.cluster.max_metadata_bytes = limit
    fake.cluster.publish(INPUT, *values(*range(400)))
    one = Instance(fake, max_records=1_000)
    one.work.hold = True

    def story() -> Iterator[None]:
        yield from until(lambda: len(one.work.waiting) == 400)
        one.work.complete(*range(1, 400))
        yield from until(lambda: len(fake.outputs()) == 399)
        found = fake.cluster.group(GROUP).committed[PLACE]
        assert (found.offset, found.metadata[:6]) == (0, metadata)
        one.work.complete(0)
        yield from until(lambda: fake.progress() == Progress(400))

    assert one.run(story())
    assert sorted(fake.outputs()) == values(*range(400))
    assert one.value("streamer_commits_shortened_total") >= 1


def _log(fake: FakeKafka) -> str:
    return f"{fake.cluster.topics[INPUT].topic_id}-0"


# -- the order of events in the store -------------------------------------------------------------------------


def test_an_offset_that_a_truncated_log_uses_again_is_later_than_the_lost_ones(fake: FakeKafka) -> None:
    fake.cluster.publish(INPUT, *values(*range(10)))
    one = Instance(fake)

    def story() -> Iterator[None]:
        yield from until(lambda: fake.progress() == Progress(10))
        fake.cluster.log(INPUT).truncate(4)
        fake.cluster.publish(INPUT, b"new")
        yield from until(lambda: b"new" in fake.outputs())

    assert one.run(story())
    read = [each.record for each in one.work.submitted]
    lost, new = read[9], read[-1]
    assert (lost.offset, new.offset) == (9, 4)
    position = {each: Position.of(each.log, each.offset, each.leader_epoch) for each in (lost, new)}
    assert position[lost].precedes(position[new])
