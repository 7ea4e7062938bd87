"""Exposure that is counted as answers come: equal to that of an audit of the same answers, and bounded."""

from __future__ import annotations

import datetime as dt
from collections import Counter
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamer.codec import JSON
from streamer.evaluation.audit.figures import Audit
from streamer.evaluation.audit.groups import OTHER, UNKNOWN, Catalogue
from streamer.evaluation.audit.lists import Lists
from streamer.evaluation.audit.live import LiveAudit
from streamer.events import ClipUploaded, Degraded, QueryReranked, RerankedCandidate, Status, now
from streamer.kafka import Record
from streamer.kafka.outputs import GROUP
from streamer.kafka.readers.follower import Follower
from streamer.kafka.readers.topic_reader import ReadError, Span
from streamer.metrics import Metrics

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

OURS = "streamer-rerank"
SIDES: dict[str, Any] = {"a": "x", "b": ["x", "y"], "c": "y", "d": None, "e": "z", "f": "w"}


def record(key: str, event: ClipUploaded | QueryReranked | None, *, group: str = OURS, offset: int = 0) -> Record:
    value = JSON.encode(event) if event is not None else None
    return Record("topic", 0, offset, key.encode(), value, ((GROUP, group.encode()),), now())


def answer(
    before: Sequence[str], after: Sequence[str], query_id: str = "q", *, degraded: Degraded | None = None
) -> QueryReranked:
    at = now()
    return QueryReranked(
        query_id=query_id, query="snow", engine="e", issued_at=at, reranked_at=at, model_id="m", alpha=0.4, depth=100,
        normalization="minmax", degraded=degraded,
        results=[
            RerankedCandidate(clip, rank, 1.0, before.index(clip) + 1, 1.0, 0.5, 500, Status.RERANKED)
            for rank, clip in enumerate(after, start=1)
        ],
    )  # fmt: skip


def upload(clip_id: str, side: Any) -> ClipUploaded:
    return ClipUploaded(clip_id=clip_id, uri="file:///x", uploaded_at=now(), attributes={"side": side})


def exposed(metrics: Metrics) -> dict[tuple[str, str], float]:
    """Return what was counted, by group and order."""
    return {
        (sample.labels["value"], sample.labels["order"]): sample.value
        for family in metrics.registry.collect()
        for sample in family.samples
        if sample.name == "streamer_exposure_total"
    }


def live(known: Catalogue, metrics: Metrics, *, top: int = 10, most: int = 5) -> LiveAudit:
    return LiveAudit(known, ["side"], top=top, most=most, group=OURS, metrics=metrics)


@given(
    st.lists(st.tuples(st.permutations("abcdefg"), st.permutations("abcdefg")), min_size=1, max_size=6),
    st.integers(1, 8),
    st.integers(1, 5),
)
def test_the_counted_exposure_is_that_of_an_audit_of_the_same_answers(orders: list[Any], top: int, most: int) -> None:
    known = Catalogue(["side"])
    for clip_id, side in SIDES.items():
        known.put(clip_id, {"side": side, "other": "unused"})
    audit = Audit(known, ["side"], top=top, most=most)
    audit.add(Lists(f"q{number}", *each) for number, each in enumerate(orders))
    expected = audit.data()
    metrics = Metrics()
    counting = live(known, metrics, top=top, most=most)
    for each in orders:
        counting.answer(record("q", answer(*each)))
    found = exposed(metrics)
    queries = metrics.registry.get_sample_value("streamer_exposure_queries_total") or 0.0
    assert queries == len(orders)
    for group in expected["attributes"][0]["groups"]:
        for order, name in (("candidates", "target"), ("engine", "exposure_before"), ("reranked", "exposure_after")):
            assert found.get((group["group"], order), 0.0) / queries == pytest.approx(group[name], abs=1e-12)
    assert {group for group, _ in found} <= {group["group"] for group in expected["attributes"][0]["groups"]}


def test_however_many_values_are_uploaded_the_groups_are_bounded_and_printable() -> None:
    known, metrics = Catalogue(["side"]), Metrics()
    counting = live(known, metrics, most=3)
    clips = [f"c{number}" for number in range(200)]
    counting.upload(record("esc", upload("esc", "\x1b[31mred")))
    for number, clip in enumerate(clips):
        counting.upload(record(clip, upload(clip, f"side {number}")))
    counting.answer(record("q", answer(["esc", *clips], [*reversed(clips), "esc"])))
    groups = {group for group, _ in exposed(metrics)}
    assert len(groups) == 4
    assert OTHER in groups
    assert all(group.isprintable() for group in groups)
    sums: Counter[str] = Counter()
    for (_, order), value in exposed(metrics).items():
        sums[order] += value  # type: ignore[assignment]  # a Counter of floats
    assert dict(sums) == pytest.approx({"candidates": 1, "engine": 1, "reranked": 1})


def test_uploads_and_deletes_that_come_later_count_from_then_on() -> None:
    metrics = Metrics()
    counting = live(Catalogue(["side"]), metrics)
    counting.answer(record("q", answer(["a"], ["a"])))
    counting.upload(record("a", upload("a", "x")))
    counting.upload(Record("topic", 0, 0, b"broken", b"no event", (), now()))
    counting.answer(record("q", answer(["a"], ["a"])))
    counting.upload(record("a", None))
    counting.answer(record("q", answer(["a"], ["a"])))
    assert exposed(metrics) == {
        (group, order): count
        for order in ("candidates", "engine", "reranked")
        for group, count in ((UNKNOWN, 2.0), ("x", 1.0))
    }


def test_answers_that_say_nothing_of_reranking_are_left_out_and_counted_by_their_reason() -> None:
    metrics = Metrics()
    counting = live(Catalogue(["side"]), metrics)
    counting.answer(record("q", answer(["a"], ["a"]), group="streamer-rerank-b"))
    counting.answer(record("q", answer([], [])))
    counting.answer(record("q", answer(["a"], ["a"], degraded=Degraded.STORE_UNAVAILABLE)))
    counting.answer(record("replay-00000000.q", answer(["a"], ["a"], "replay-00000000.q")))
    counting.answer(Record("topic", 0, 0, b"q", b"{}", ((GROUP, OURS.encode()),), now()))
    left_out = {
        reason: metrics.registry.get_sample_value("streamer_exposure_left_out_total", {"reason": reason})
        for reason in ("other_group", "empty", "degraded", "replayed", "invalid")
    }
    assert left_out == dict.fromkeys(left_out, 1.0)
    assert exposed(metrics) == {}
    assert metrics.registry.get_sample_value("streamer_exposure_queries_total") == 0


class Log:
    """A topic with two partitions, as its reader shows it; ``fails_at``: an offset that cannot be read just now."""

    def __init__(self) -> None:
        self.begins, self.ends = [0, 0], [0, 0]
        self.fails_at: int | None = None

    def spans(self) -> list[Span]:
        return [Span(*each) for each in zip(range(2), self.begins, self.ends, strict=True)]

    def records(self, span: Span) -> Iterator[Record]:
        for offset in range(span.begin, span.end):
            if offset == self.fails_at:
                raise ReadError("a broker is unreachable")
            yield Record("topic", span.partition, offset, b"", b"", (), dt.datetime.now(dt.UTC))


def followed(log: Log, *, from_beginning: bool) -> Follower:
    return Follower(log, from_beginning=from_beginning)  # type: ignore[arg-type]  # a double of the reader


def places(follower: Follower) -> list[tuple[int, int]]:
    return [(each.partition, each.offset) for each in follower.poll()]


def test_a_follower_brings_each_record_once_and_only_new_ones_where_it_begins_at_the_end() -> None:
    log = Log()
    log.ends = [2, 1]
    whole, new = followed(log, from_beginning=True), followed(log, from_beginning=False)
    assert places(whole) == [(0, 0), (0, 1), (1, 0)]
    assert places(new) == []
    log.ends = [2, 3]
    assert places(whole) == places(new) == [(1, 1), (1, 2)]
    log.begins, log.ends = [5, 3], [6, 3]  # retention
    assert places(whole) == places(new) == [(0, 5)]


def test_a_follower_reads_a_topic_that_was_created_again_from_its_beginning() -> None:
    log = Log()
    log.ends = [5, 0]
    follower = followed(log, from_beginning=True)
    assert len(places(follower)) == 5
    log.ends = [2, 0]
    assert places(follower) == [(0, 0), (0, 1)]


def test_a_follower_goes_on_after_a_failure_where_it_broke_off() -> None:
    log = Log()
    log.ends = [4, 1]
    log.fails_at = 2
    follower = followed(log, from_beginning=True)
    records = follower.poll()
    assert [next(records).offset, next(records).offset] == [0, 1]
    with pytest.raises(ReadError):
        next(records)
    log.fails_at = None
    assert places(follower) == [(0, 2), (0, 3), (1, 0)]
