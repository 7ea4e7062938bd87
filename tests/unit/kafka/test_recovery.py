"""Recovery on a model of a log: every record that can be read comes once, and only what cannot be is given up."""

from __future__ import annotations

import itertools
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytest
from confluent_kafka import KafkaError, TopicPartition
from hypothesis import given
from hypothesis import strategies as st

from streamer.kafka.client import config
from streamer.kafka.readers import recovery
from streamer.kafka.readers.recovery import Finished, Recovery, Unreadable
from streamer.settings import load
from streamer.topology import RERANK

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from streamer.kafka.records import Record


@dataclass(frozen=True)
class Batch:
    """Offsets of one batch, and how a client of small (``narrow``) and of large buffers takes it."""

    length: int
    narrow: str
    wide: str
    compacted: frozenset[int] = frozenset()
    """Which of its records compaction has taken, counted from its beginning."""


class FakeMessage:
    def __init__(self, offset: int, error: KafkaError | None = None) -> None:
        self._offset, self._error = offset, error

    def topic(self) -> str:
        return "query.results"

    def partition(self) -> int:
        return 0

    def offset(self) -> int:
        return self._offset

    def error(self) -> KafkaError | None:
        return self._error

    def leader_epoch(self) -> None: ...

    def key(self) -> None: ...

    def value(self) -> bytes:
        return b"%d" % self._offset

    def headers(self) -> None: ...

    def timestamp(self) -> tuple[int, int]:
        return 1, 0


class FakeConsumer:
    """Fetches as librdkafka does: a whole batch, from whichever of its offsets on; it goes on only after a good one."""

    def __init__(
        self, log: Sequence[Batch], sight: str, answers: Callable[[], bool], refuses: Callable[[], bool]
    ) -> None:
        self._refuses = refuses
        self._batches = []
        begin = 0
        for batch in log:
            self._batches.append((begin, batch, getattr(batch, sight)))
            begin += batch.length
        self._end = begin
        self._answers = answers
        self._position = 0
        self._waiting: list[FakeMessage] = []

    def assign(self, partitions: Sequence[TopicPartition]) -> None:
        self._position, self._waiting = partitions[0].offset, []

    def poll(self, _timeout: float) -> FakeMessage | None:
        if not self._waiting and self._answers():
            self._fetch()
        return self._waiting.pop(0) if self._waiting else None

    def get_watermark_offsets(self, *_: object, **__: object) -> tuple[int, int]:
        return 0, self._end

    def close(self) -> None: ...

    def _fetch(self) -> None:
        if self._refuses():
            self._waiting = [FakeMessage(self._position, KafkaError(KafkaError.UNKNOWN))]
            return
        for begin, batch, sight in self._batches:
            if begin + batch.length <= self._position:
                continue
            if sight == "error":
                self._waiting = [FakeMessage(begin, KafkaError(KafkaError._BAD_COMPRESSION))]
            elif sight == "good":
                offsets = [begin + each for each in range(batch.length) if each not in batch.compacted]
                self._waiting = [FakeMessage(each) for each in offsets if each >= self._position]
                self._position = begin + batch.length
                if not self._waiting:
                    continue
            return
        self._waiting = [FakeMessage(self._end, KafkaError(KafkaError._PARTITION_EOF))]


@pytest.fixture(autouse=True)
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recovery, "_RETRY_S", 0.001)


def recovered(
    log: Sequence[Batch],
    start: int,
    answers: Callable[[], bool] = lambda: True,
    refuses: Callable[[], bool] = lambda: False,
) -> list[Record | Unreadable | Finished]:
    """Return all that a recovery at ``start`` finds, which ends with where the consumer goes on."""
    with pytest.MonkeyPatch.context() as patch:

        def make_client(_kind: object, properties: dict[str, Any]) -> FakeConsumer:
            sight = "wide" if properties["client.id"].endswith("-recover") else "narrow"
            return FakeConsumer(log, sight, answers, refuses)

        patch.setattr(config, "make_client", make_client)
        one = Recovery(SETTINGS, RERANK, TopicPartition("query.results", 0, start), log="id-0")
        found: list[Record | Unreadable | Finished] = []
        deadline = time.monotonic() + 20
        while not (found and isinstance(found[-1], Finished)):
            assert time.monotonic() < deadline, found
            if (each := one.take()) is None:
                time.sleep(0.0005)
            else:
                found.append(each)
        return found


SETTINGS = load({})
GOOD = Batch(3, "good", "good")


def test_a_batch_that_only_larger_buffers_hold_comes_whole_and_nothing_after_it() -> None:
    found = recovered([GOOD, Batch(5, "error", "good"), GOOD], 3)
    assert [each.offset for each in found] == [3, 4, 5, 6, 7, 8]  # type: ignore[union-attr]
    assert isinstance(found[-1], Finished)


@pytest.mark.parametrize("sight", ["error", "silent"])
@pytest.mark.parametrize("length", [1, 2, 3, 7, 8, 1000])
def test_what_no_buffer_holds_is_given_up_from_the_stuck_offset_to_its_last_and_no_further(
    sight: str, length: int
) -> None:
    for after in ([], [GOOD], [Batch(4, sight, sight)]):
        found = recovered([GOOD, Batch(length, sight, sight), *after], 3)
        assert [each[:2] for each in found[:-1] if isinstance(each, Unreadable)] == [
            (3, 2 + length + (4 if sight == "silent" and after and after[0] is not GOOD else 0))
        ]
        assert found[-1] == Finished(found[0].last + 1)  # type: ignore[union-attr]


@pytest.mark.parametrize("period", [2, 3, 7])
def test_a_brokers_own_error_gives_nothing_up_that_it_gives_later(period: int) -> None:
    """As while a remote tier is away: for a second and more, and then now and again."""
    turns = itertools.count()

    def refuses() -> bool:
        turn = next(turns)
        return turn < 100 or turn % period == 0

    found = recovered([GOOD, Batch(40, "silent", "good"), GOOD], 3, refuses=refuses)
    assert [each.offset for each in found if not isinstance(each, Unreadable)][:40] == list(range(3, 43))
    assert not [each for each in found if isinstance(each, Unreadable)]


def test_what_was_committed_inside_a_batch_is_not_given_up_again() -> None:
    assert [each[:2] for each in recovered([GOOD, Batch(9, "error", "error"), GOOD], 7) if len(each) == 3] == [  # type: ignore[arg-type, index]
        (7, 11)
    ]


@pytest.mark.parametrize("period", [60, 130, 170, 400])
def test_silence_of_a_broker_that_comes_and_goes_gives_nothing_up(period: int) -> None:
    """It is away for longer than the recovery waits for an answer, again and again; the batch is sound."""
    turns = itertools.count()
    found = recovered([GOOD, Batch(4, "error", "good"), GOOD], 3, lambda: next(turns) % period > period // 2)
    assert [each.offset for each in found] == [3, 4, 5, 6, 7]  # type: ignore[union-attr]


sights = st.sampled_from(["good", "error", "silent"])


@st.composite
def batches(draw: st.DrawFn) -> Batch:
    length = draw(st.integers(1, 9))
    wide = draw(sights)
    narrow = wide if wide != "good" else draw(sights)
    return Batch(length, narrow, wide, frozenset(draw(st.sets(st.integers(0, length - 1), max_size=length - 1))))


@given(st.lists(batches(), min_size=1, max_size=6))
def test_every_readable_record_of_a_stuck_batch_comes_once_and_only_unreadable_offsets_are_given_up(
    log: list[Batch],
) -> None:
    begin = 0
    for number, batch in enumerate(log):
        if batch.narrow != "good":
            found = recovered(log, begin)
            readable, unreadable, at = set(), set(), 0
            for each in log:
                offsets = range(at, at + each.length)
                if each.wide == "good":
                    readable |= {at + place for place in range(each.length)} - {at + place for place in each.compacted}
                else:
                    unreadable |= set(offsets)
                at += each.length
            end = found[-1].offset  # type: ignore[union-attr]
            came = [each.offset for each in found[:-1] if not isinstance(each, Unreadable)]
            given_up = {
                offset for each in found if isinstance(each, Unreadable) for offset in range(each.first, each.last + 1)
            }
            assert begin < end, number
            assert came == sorted(readable & set(range(begin, end)))
            assert given_up >= unreadable & set(range(begin, end))
            assert not given_up & readable
        begin += batch.length
