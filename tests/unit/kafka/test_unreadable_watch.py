"""Which partitions are taken for stuck, what is said of them, and what becomes of what a recovery finds."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import pytest
from confluent_kafka import KafkaError, KafkaException, TopicPartition

from streamer.events import now
from streamer.health import Health
from streamer.kafka.inflight.offsets import Progress
from streamer.kafka.inflight.partitions import AssignedPartition, Assignment
from streamer.kafka.readers.recovery import Finished, Unreadable
from streamer.kafka.records import InFlightRecord, Record
from streamer.kafka.watch import unreadable
from streamer.kafka.watch.unreadable import UnreadableWatch
from streamer.metrics import Metrics
from streamer.settings import load
from streamer.topology import RERANK

if TYPE_CHECKING:
    from collections.abc import Callable

BAD = KafkaError(KafkaError._BAD_COMPRESSION, "no such luck")
STILL = {"next_offset": 5, "ls_offset": 9, "hi_offset": 9, "fetchq_cnt": 0, "fetch_state": "active"}


class FakeConsumer:
    def __init__(self) -> None:
        self.calls: list[tuple[str, int]] = []
        self.refuses = False

    def pause(self, places: list[TopicPartition]) -> None:
        self.calls += [("pause", each.partition) for each in places]

    def resume(self, places: list[TopicPartition]) -> None:
        self.calls += [("resume", each.partition) for each in places]

    def seek(self, place: TopicPartition) -> None:
        if self.refuses:
            raise KafkaException(KafkaError(KafkaError._STATE))
        self.calls.append(("seek", place.offset))


class FakeRecovery:
    made: list[FakeRecovery]

    def __init__(self, _settings: object, _service: object, place: TopicPartition, *, log: str) -> None:
        self.place, self.log = place, log
        self.found: list[Record | Unreadable | Finished] = []
        self.cancelled = False
        FakeRecovery.made.append(self)

    def take(self) -> Record | Unreadable | Finished | None:
        return self.found.pop(0) if self.found else None

    def cancel(self) -> None:
        self.cancelled = True


class Harness:
    """A watch over partition 3, of which the group has committed offset 4."""

    def __init__(self) -> None:
        self.settings = load({})
        self.metrics = Metrics()
        self.health = Health(self.metrics)
        self.health.ready("start")
        self.assignment = Assignment(max_records=100, max_bytes=1 << 20)
        self.assignment.add("query.results", 3, "id-3")
        self.partition: AssignedPartition = next(iter(self.assignment))
        self.consumer = FakeConsumer()
        self.submitted: list[int] = []
        self.watch = UnreadableWatch(
            self.settings,
            RERANK,
            self.assignment,
            metrics=self.metrics,
            health=self.health,
            consumer=lambda: self.consumer,  # type: ignore[arg-type, return-value]
            begin=self.begin,
        )

    def begin(self, partition: AssignedPartition, record: Record) -> InFlightRecord | None:
        in_flight = InFlightRecord(record, lambda: None)
        return in_flight if partition.add(in_flight) else None

    def serve(self) -> None:
        self.watch.serve(lambda records: self.submitted.extend(each.record.offset for each in records))

    def statistics(self, **changed: Any) -> None:
        self.watch.on_statistics({"3": STILL | changed, "7": STILL})

    def metric(self) -> float | None:
        return next(
            (sample.value for each in self.metrics.registry.collect() for sample in each.samples
             if sample.name == "streamer_unreadable_partitions"), None,
        )  # fmt: skip


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    at = [1_000.0]
    monkeypatch.setattr(time, "monotonic", lambda: at[0])

    def advance(seconds: float) -> None:
        at[0] += seconds

    return advance


@pytest.fixture
def harness(monkeypatch: pytest.MonkeyPatch) -> Harness:
    FakeRecovery.made = []
    monkeypatch.setattr(unreadable, "Recovery", FakeRecovery)
    made = Harness()
    made.partition.start_from(Progress(4))
    return made


def record(offset: int) -> Record:
    return Record("query.results", 3, offset, key=None, value=b"{}", headers=(), timestamp=now(), log="id-3")


def test_an_error_of_decoding_names_the_partition_pauses_it_and_begins_where_nothing_has_come_yet(
    harness: Harness,
) -> None:
    assert harness.watch.on_error(3, 2, BAD)
    assert harness.partition.stalled
    [problem] = harness.health.readiness_problems()
    assert problem.startswith("unreadable: query.results[3] stands at offset 4: no such luck")
    assert harness.metric() == 1
    harness.serve()
    assert harness.consumer.calls == [("pause", 3)]
    [recovery] = FakeRecovery.made
    assert (recovery.place.offset, recovery.log) == (4, "id-3")
    harness.watch.on_error(3, 2, BAD)  # which the client says again until the pause has come through
    harness.serve()
    assert len(FakeRecovery.made) == 1


def test_nothing_begins_before_it_is_known_what_is_committed(harness: Harness) -> None:
    harness.assignment.add("query.results", 3, "id-3")
    partition = harness.assignment.get(3)
    assert partition is not None
    harness.watch.on_error(3, 2, BAD)
    harness.serve()
    assert not FakeRecovery.made
    partition.start_from(None)
    harness.serve()
    assert FakeRecovery.made[0].place.offset == 2


def test_a_consumer_that_was_sent_elsewhere_meanwhile_is_left_alone(harness: Harness) -> None:
    harness.watch.on_error(3, 4, BAD)
    harness.assignment.renew(harness.partition).stalled = False
    harness.serve()
    assert not FakeRecovery.made
    assert harness.health.readiness_problems() == []
    assert harness.metric() == 0


def test_what_is_found_is_worked_on_in_order_and_the_consumer_goes_on_after_it(harness: Harness) -> None:
    harness.watch.on_error(3, 4, BAD)
    harness.serve()
    FakeRecovery.made[0].found = [record(4), record(5), Finished(8)]
    harness.serve()
    assert harness.submitted == [4, 5]
    assert harness.consumer.calls == [("pause", 3), ("seek", 8), ("resume", 3)]
    assert not harness.partition.stalled
    assert harness.health.readiness_problems() == []
    assert harness.metric() == 0
    assert harness.partition.position == 8


def test_an_unreadable_batch_becomes_one_dead_letter_and_the_offset_after_it_is_committed(
    harness: Harness,
) -> None:
    harness.watch.on_error(3, 4, BAD)
    harness.serve()
    FakeRecovery.made[0].found = [Unreadable(4, 90, "no such luck")]
    harness.serve()
    [done] = harness.partition.committable()
    [letter] = done.outputs or ()
    headers = dict(letter.headers)
    assert (letter.topic, letter.key, letter.value) == ("query.results.dlq", None, None)
    assert (headers["dlq.reason"], headers["dlq.partition"]) == (b"unreadable", b"3")
    assert (headers["dlq.offset"], headers["dlq.last_offset"]) == (b"4", b"90")
    assert harness.partition.progress_after([done]).offset == 91
    assert harness.submitted == []


def test_a_full_queue_leaves_what_is_found_where_it_is(harness: Harness) -> None:
    harness.watch.on_error(3, 4, BAD)
    harness.serve()
    FakeRecovery.made[0].found = [record(offset) for offset in range(4, 204)]
    harness.serve()
    assert harness.submitted == list(range(4, 104))
    assert len(FakeRecovery.made[0].found) == 100


def test_a_partition_that_is_taken_away_is_forgotten_with_its_recovery(harness: Harness) -> None:
    harness.watch.on_error(3, 4, BAD)
    harness.serve()
    harness.assignment.remove(3)
    harness.watch.forget([3])
    assert FakeRecovery.made[0].cancelled
    assert harness.health.readiness_problems() == []


def test_a_client_that_cannot_go_on_just_now_is_tried_again(harness: Harness) -> None:
    harness.watch.on_error(3, 4, BAD)
    harness.serve()
    FakeRecovery.made[0].found = [record(4), Finished(5)]
    harness.consumer.refuses = True
    harness.serve()
    assert harness.partition.stalled
    harness.consumer.refuses = False
    harness.serve()
    assert FakeRecovery.made[1].place.offset == 5
    FakeRecovery.made[1].found = [Finished(5)]
    harness.serve()
    assert not harness.partition.stalled
    assert harness.submitted == [4]


def test_a_position_that_stands_still_below_the_last_stable_offset_is_looked_into(
    harness: Harness, clock: Callable[[float], None]
) -> None:
    for _ in range(int(unreadable._STILL_S)):
        harness.statistics()
        assert not harness.partition.stalled
        clock(1)
    harness.statistics()
    assert harness.partition.stalled
    assert "no record for 10 s" in harness.health.readiness_problems()[0]


@pytest.mark.parametrize(
    "changed",
    [
        {"next_offset": 9},  # caught up
        {"ls_offset": 5},  # behind it stands an open transaction
        {"fetchq_cnt": 1},  # we are slow, not the client
        {"fetch_state": "offset-query"},
        {"next_offset": -1001},
    ],
    ids=str,
)
def test_a_position_that_has_a_reason_to_stand_still_is_left_alone(
    harness: Harness, clock: Callable[[float], None], changed: dict[str, Any]
) -> None:
    for _ in range(60):
        harness.statistics(**changed)
        clock(1)
    assert not harness.partition.stalled


def test_a_position_that_moves_now_and_then_is_left_alone(harness: Harness, clock: Callable[[float], None]) -> None:
    for second in range(60):
        harness.statistics(next_offset=second // 8, ls_offset=100)
        clock(1)
    assert not harness.partition.stalled


def test_a_paused_partition_may_stand_still(harness: Harness, clock: Callable[[float], None]) -> None:
    harness.partition.paused = True
    for _ in range(60):
        harness.statistics()
        clock(1)
    assert not harness.partition.stalled


def test_a_partition_without_a_valid_offset_is_named_with_what_to_do_until_it_goes(harness: Harness) -> None:
    harness.settings.kafka["auto.offset.reset"] = "error"
    assert harness.watch.on_error(3, -1001, KafkaError(KafkaError._AUTO_OFFSET_RESET, "no offset"))
    [problem] = harness.health.readiness_problems()
    assert problem.startswith("position: query.results[3]: no offset. auto.offset.reset is error")
    assert "--reset-offsets" in problem
    assert not harness.partition.stalled
    harness.watch.forget([3])
    assert harness.health.readiness_problems() == []


def test_the_watch_for_unreadable_batches_ignores_other_errors(harness: Harness) -> None:
    assert not harness.watch.on_error(3, 4, KafkaError(KafkaError._TRANSPORT))
    assert not harness.partition.stalled
