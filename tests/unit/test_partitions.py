"""What may be committed: never past a record that is not done."""

from __future__ import annotations

import datetime as dt

from hypothesis import given
from hypothesis import strategies as st

from streamer.events import Reason
from streamer.kafka.partitions import AssignedPartition, Assignment, Work
from streamer.kafka.records import Output, Record, carried, dead_letter, dead_letter_reason, truncated

AT = dt.datetime(2026, 11, 24, tzinfo=dt.UTC)


def record(offset: int, value: bytes = b"{}") -> Record:
    return Record("t", 0, offset, b"k", value, (("traceparent", b"00"), ("ce_id", b"1"), ("other", None)), AT)


@given(st.lists(st.integers(0, 30), unique=True, min_size=1).map(sorted), st.data())
def test_a_partition_is_ready_up_to_its_first_record_that_is_not_done(offsets: list[int], data: st.DataObject) -> None:
    partition = AssignedPartition("t", 0, "log-0")
    works = [Work(record(offset), lambda: None) for offset in offsets]
    for work in works:
        partition.add(work)
    done: set[int] = set()
    for work in data.draw(st.permutations(works)):
        work.done([Output("out", b"k", b"x" * work.record.offset, ())])
        done.add(work.record.offset)
        expected = [offset for offset in offsets if all(earlier in done for earlier in offsets if earlier <= offset)]
        assert [ready.record.offset for ready in partition.ready()] == expected
    cut = data.draw(st.integers(0, len(offsets)))
    if cut:
        partition.committed(offsets[cut - 1] + 1)
        assert partition.next_offset == offsets[cut - 1] + 1
    assert len(partition) == len(offsets) - cut
    left = works[cut:]
    payloads = sum(work.record.offset for work in left)
    assert (
        partition.bytes
        == sum(work.record.size for work in left) + payloads + len(left) * Output("", b"k", b"", ()).size
    )


def test_lag_counts_from_the_oldest_record_in_flight_and_knows_the_end_that_markers_hide() -> None:
    partition = AssignedPartition("t", 0, "log-0")
    assert partition.lag(10) is None
    partition.end_seen = 10
    assert partition.lag(10) == 0
    partition.add(Work(record(10), lambda: None))
    assert partition.lag(12) == 2
    partition.committed(11)
    assert partition.lag(12) == 1  # a transaction's marker, which no record shows
    partition.end_seen = 12
    assert partition.lag(12) == 0


def test_done_wakes_the_loop_after_the_outputs_are_there() -> None:
    seen: list[object] = []
    work = Work(record(1), lambda: seen.append(work.outputs))
    work.done([], since=AT)
    assert seen == [[]]
    assert work.since == AT


def test_trace_context_and_cloud_events_are_carried_and_nothing_else() -> None:
    assert carried(record(1).headers) == (("traceparent", b"00"), ("ce_id", b"1"))


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
    assert dead_letter_reason(dead) == "not_json"
    assert dead_letter_reason(Output("t", None, None, dead.headers)) is None


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
    for partition in range(6):
        assignment.add("t", partition, f"log-{partition}")
    offsets = dict.fromkeys(range(6), 0)
    for number in arrivals:
        partition = assignment.get(number)
        assert partition is not None
        if not partition.paused:
            partition.add(Work(record(offsets[number]), lambda: None))
            offsets[number] += 1
        assignment.changes_of_flow()
        assert assignment.records <= max_records + 1
        assert all(each.paused for each in assignment) or not assignment.is_full
    for number, offset in offsets.items():
        partition = assignment.get(number)
        assert partition is not None
        if offset:
            partition.committed(offset)
    assignment.changes_of_flow()
    assert not any(each.paused for each in assignment)


def test_work_of_a_revoked_partition_is_marked_stale() -> None:
    assignment = Assignment(max_records=10, max_bytes=1 << 30)
    assignment.add("t", 3, "log-3")
    partition = assignment.get(3)
    assert partition is not None
    work = Work(record(1), lambda: None)
    partition.add(work)
    assert assignment.remove(3) == 1
    assert work.stale
    assert assignment.get(3) is None
    assert assignment.remove(3) == 0
