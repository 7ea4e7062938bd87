"""What may be committed: never past a record that is not done."""

from __future__ import annotations

import datetime as dt
import random
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
from confluent_kafka import TopicPartition
from hypothesis import given
from hypothesis import strategies as st

from streamer.events import Reason
from streamer.kafka.dead_letters import dead_letter, truncated
from streamer.kafka.inflight.offsets import WINDOW, Origin, Progress, read_commit
from streamer.kafka.inflight.partitions import AssignedPartition, Assignment
from streamer.kafka.records import InFlightRecord, Output, Record, dead_letter_reason

if TYPE_CHECKING:
    from collections.abc import Iterable

LOG = "log-0"
AT = dt.datetime(2026, 11, 24, tzinfo=dt.UTC)


def record(offset: int, value: bytes = b"{}") -> Record:
    return Record("t", 0, offset, b"k", value, (("traceparent", b"00"), ("ce_id", b"1"), ("other", None)), AT)


OFFSETS = st.lists(st.integers(0, 40), unique=True, min_size=1).map(sorted)


def received(partition: AssignedPartition, offsets: Iterable[int]) -> list[InFlightRecord]:
    records = [InFlightRecord(record(offset), lambda: None) for offset in offsets]
    return [in_flight for in_flight in records if partition.add(in_flight)]


@given(OFFSETS, st.integers(0, 2**32))
def test_records_are_committed_in_any_order_and_each_once_over_any_number_of_owners(
    offsets: list[int], seed: int
) -> None:
    draw = random.Random(seed)  # noqa: S311 - reproducible, not secret
    committed: Progress | None = None
    outputs: list[int] = []
    while len(outputs) < len(offsets):
        owner = AssignedPartition("t", 0, "log-0")
        owner.start_from(read(as_committed(committed)))
        start = committed.offset if committed is not None else 0
        records = received(owner, [offset for offset in offsets if offset >= start][: draw.randint(1, len(offsets))])
        assert not {in_flight.record.offset for in_flight in records} & set(outputs)
        for in_flight in draw.sample(records, len(records)):
            for size in draw.choices([1, 5], k=draw.randint(1, 2)):  # an output that a broker refuses is replaced
                in_flight.complete([Output("out", b"k", b"x" * size, ())])
            ready = list(owner.committable())
            batch = sorted(draw.sample(ready, draw.randint(0, len(ready))), key=lambda each: each.record.offset)
            if not batch:
                continue
            committed = owner.progress_after(batch)
            owner.mark_committed(committed)
            outputs += [each.record.offset for each in batch]
            assert all(committed.includes(offset) for offset in outputs)
            assert not any(committed.includes(offset) for offset in set(offsets) - set(outputs))
            left = [each for each in records if each.record.offset not in outputs]
            assert (len(owner), owner.bytes) == (len(left), sum(each.size for each in left))
            assert owner.completed == sum(each.outputs is not None for each in left)
            if not draw.randrange(3):
                break  # and another owner goes on
    assert sorted(outputs) == offsets


def as_committed(progress: Progress | None) -> TopicPartition:
    """Return what the group gives back for what it was given."""
    if progress is None:
        return TopicPartition("t", 0, -1001)
    metadata = progress.metadata(LOG)
    assert len(metadata) < 4096
    return TopicPartition("t", 0, progress.offset, metadata=metadata)


def read(committed: TopicPartition) -> Progress | None:
    return read_commit(committed, LOG).progress


def test_nothing_is_committed_further_ahead_than_the_metadata_can_say() -> None:
    partition = AssignedPartition("t", 0, "log-0")
    first, *others = received(partition, range(10, 10 + WINDOW + 100))
    for in_flight in others:
        in_flight.complete()
    ready = list(partition.committable())
    assert [in_flight.record.offset for in_flight in ready] == list(range(11, 10 + WINDOW))
    progress = partition.progress_after(ready)
    assert read(as_committed(progress)) == progress
    partition.mark_committed(progress)
    assert len(partition) == 101
    first.complete()
    assert partition.progress_after(list(partition.committable())) == Progress(10 + WINDOW + 100)


@pytest.mark.parametrize("metadata", ["", "2026-11-25 by hand", "done1:", "done1:~~~~~'", "done2:abc"])
def test_metadata_of_others_says_nothing(metadata: str) -> None:
    assert read_commit(TopicPartition("t", 0, 7, metadata=metadata), LOG) == (Progress(7), Origin.UNMARKED)


def test_records_that_come_before_it_is_known_what_is_done_wait_for_that() -> None:
    partition = AssignedPartition("t", 0, "log-0")
    received(partition, range(5, 9))
    assert not partition.known
    left = partition.start_from(Progress(5, frozenset({6, 8})))
    assert [in_flight.record.offset for in_flight in left] == [5, 7]


def test_what_is_passed_over_at_the_end_is_committed_with_the_records_before_it_or_alone() -> None:
    partition = AssignedPartition("t", 0, "log-0")
    partition.reached_end(7)
    assert not partition.has_skipped  # what the group has is not known yet
    partition.start_from(Progress(5))
    assert partition.has_skipped  # a transaction's marker, which no record shows
    assert partition.progress_after(()) == Progress(7)
    partition.mark_committed(Progress(7))
    assert not partition.has_skipped
    (in_flight,) = received(partition, [7])
    partition.reached_end(9)
    assert not partition.has_skipped
    in_flight.complete()
    assert partition.progress_after([in_flight]) == Progress(9)


def test_skipping_deleted_offsets_keeps_later_completed_records() -> None:
    partition = AssignedPartition("t", 0, "log-0")
    partition.start_from(Progress(5, frozenset({7, 9, 10})))
    assert received(partition, [7]) == []  # retention took 5 and 6
    assert partition.position == 8
    assert partition.has_skipped
    assert partition.progress_after(()) == Progress(8, frozenset({9, 10}))


def test_completing_a_record_wakes_the_loop_after_its_outputs_are_set() -> None:
    seen: list[object] = []
    in_flight = InFlightRecord(record(1), lambda: seen.append(in_flight.outputs))
    in_flight.complete([], since=AT)
    assert seen == [[]]
    assert in_flight.since == AT


def test_a_dead_letter_keeps_the_record_and_says_why() -> None:
    dead = dead_letter(record(7, b"broken"), Reason.NOT_JSON, "because", attempts=3)
    headers = dict(dead.headers)
    assert (dead.topic, dead.key, dead.value) == ("t.dlq", b"k", b"broken")
    assert headers["other"] is None
    assert headers["dlq.reason"] == b"not_json"
    assert headers["dlq.error"] == b"because"
    assert (headers["dlq.topic"], headers["dlq.partition"], headers["dlq.offset"]) == (b"t", b"0", b"7")
    assert headers["dlq.attempts"] == b"3"
    assert dt.datetime.fromisoformat((headers["dlq.at"] or b"").decode()).tzinfo is dt.UTC
    assert "dlq.timestamp" not in headers
    assert dead_letter_reason(dead) == "not_json"
    assert dead_letter_reason(Output("t", None, None, record(7).headers)) is None


def test_a_dead_letter_goes_to_the_topic_of_its_reader_s_settings() -> None:
    assert dead_letter(replace(record(7), dead_letters="refused"), Reason.NOT_JSON, "no").topic == "refused"


def test_a_dead_letter_says_the_records_own_time_and_whose_it_was() -> None:
    timed = replace(record(7), timestamp_ms=1_700_000_000_123, timestamp_type="LogAppendTime")
    dead = dead_letter(timed, Reason.NOT_JSON, "no")
    assert dead.timestamp is None
    assert dict(dead.headers)["dlq.timestamp"] == b"1700000000123"
    assert dict(dead.headers)["dlq.timestamp_type"] == b"LogAppendTime"


def test_a_record_that_fails_again_carries_the_newest_reason_only() -> None:
    first = dead_letter(record(7), Reason.FETCH_FAILED, "first")
    again = Record("t", 0, 9, first.key, first.value, first.headers, AT)
    second = dead_letter(again, Reason.NOT_FOUND, "second")
    assert [value for name, value in second.headers if name == "dlq.reason"] == [b"not_found"]


def test_a_dead_letter_that_is_too_large_is_cut_and_says_so() -> None:
    dead = truncated(dead_letter(record(7, b"x" * 300_000), Reason.TOO_LARGE, ""))
    assert len(dead.value or b"") == 100_000
    assert dict(dead.headers)["dlq.truncated_from"] == b"300000"


def test_a_dead_letter_that_was_cut_in_vain_keeps_the_reason_alone() -> None:
    large = Record("t", 0, 7, b"k" * 300_000, b"x", (("big", b"h" * 300_000), ("small", b"s")), AT)
    once = truncated(dead_letter(large, Reason.NOT_JSON, "no"))
    assert len(once.key or b"") == 100_000
    assert "big" not in dict(once.headers)
    assert dict(once.headers)["small"] == b"s"
    twice = truncated(once)
    assert (twice.key, twice.value) == (None, None)
    assert all(name.startswith("dlq.") for name, _ in twice.headers)
    assert dict(twice.headers)["dlq.offset"] == b"7"


@given(st.lists(st.integers(0, 5), min_size=1, max_size=60), st.integers(1, 20))
def test_a_budget_is_shared_and_a_partition_is_resumed_only_when_half_empty(
    arrivals: list[int], max_records: int
) -> None:
    assignment = Assignment(max_records=max_records, max_bytes=1 << 30)
    for number in range(6):
        assignment.add("t", number, f"log-{number}")
    offsets = dict.fromkeys(range(6), 0)
    for number in arrivals:
        partition = assignment.get(number)
        assert partition is not None
        if not partition.paused:
            partition.add(InFlightRecord(record(offsets[number]), lambda: None))
            offsets[number] += 1
        assignment.flow_changes()
        assert assignment.records <= max_records + 1
        assert all(each.paused for each in assignment) or not assignment.is_full
    for number, offset in offsets.items():
        partition = assignment.get(number)
        assert partition is not None
        if offset:
            partition.mark_committed(Progress(offset))
    assignment.flow_changes()
    assert not any(each.paused for each in assignment)


def test_records_of_a_revoked_partition_are_marked_as_revoked() -> None:
    assignment = Assignment(max_records=10, max_bytes=1 << 30)
    assignment.add("t", 3, "log-3")
    partition = assignment.get(3)
    assert partition is not None
    in_flight = InFlightRecord(record(1), lambda: None)
    partition.add(in_flight)
    assert assignment.remove(3) == 1
    assert in_flight.revoked
    assert assignment.get(3) is None
    assert assignment.remove(3) == 0


def test_records_that_were_received_before_the_committed_offset_void_it() -> None:
    partition = AssignedPartition("t", 0, LOG)
    received(partition, range(3))
    left = partition.start_from(Progress(1_000, frozenset({1_001})))
    assert [in_flight.record.offset for in_flight in left] == [0, 1, 2]
    assert (partition.rewound, partition.progress) == (True, None)


def test_the_epoch_is_committed_only_where_everything_before_the_offset_is_of_it_or_older() -> None:
    partition = AssignedPartition("t", 0, LOG)
    partition.start_from(None)
    assert not partition.awaits_leader
    partition.add(InFlightRecord(replace(record(4), leader_epoch=7), lambda: None))
    assert (partition.epoch_for(4), partition.epoch_for(5)) == (7, 7)
    partition.reached_end(9)  # markers, perhaps of a leader elected since
    assert (partition.epoch_for(9), partition.awaits_leader) == (None, True)
    partition.saw_leader(-1)
    assert (partition.epoch_for(9), partition.awaits_leader) == (None, True)
    partition.saw_leader(8)
    assert (partition.epoch_for(9), partition.awaits_leader) == (None, False)
    partition.saw_leader(7)
    assert partition.epoch_for(9) == 7


def test_markers_are_committed_with_the_records_before_them_once_their_leader_is_known() -> None:
    partition = AssignedPartition("t", 0, LOG)
    partition.start_from(None)
    in_flight = InFlightRecord(replace(record(4), leader_epoch=7), lambda: None)
    partition.add(in_flight)
    partition.reached_end(9)
    assert partition.progress_after([in_flight]) == Progress(5)
    partition.saw_leader(8)
    assert partition.progress_after([in_flight]) == Progress(9)


@pytest.mark.parametrize(
    ("offset", "epoch", "committed", "expected"),
    [(12, 4, 3, True), (12, 3, 3, False), (11, 4, 3, False), (12, None, 3, False), (12, 4, None, False)],
)
def test_a_record_of_a_later_epoch_is_not_the_one_that_was_completed(
    offset: int, epoch: int | None, committed: int | None, *, expected: bool
) -> None:
    partition = AssignedPartition("t", 0, LOG)
    partition.start_from(Progress(10, frozenset({12, 13})), committed)
    assert partition.is_replaced(replace(record(offset), leader_epoch=epoch)) is expected
