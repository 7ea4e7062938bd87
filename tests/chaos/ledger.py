"""What a fault entitles the service to: which records may come out again, and which may never come out.

Everything else comes out once. What is in the ledger is counted apart, so that nothing hides behind it.
"""

from __future__ import annotations

import threading
import time
from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tests.support.driver import RERANKED, RESULTS

if TYPE_CHECKING:
    from collections.abc import Iterable

    from tests.chaos.inputs import Input
    from tests.support.driver import Record


@dataclass(frozen=True, slots=True)
class Span:
    """Offsets from ``first`` up to, not including, ``end`` of one log; ``topic`` is without the prefix."""

    topic: str
    partition: int
    generation: int
    first: int
    end: int

    def holds(self, each: Input) -> bool:
        """Whether an input stands in it."""
        record = each.record
        return (record.topic, record.partition, each.generation) == (
            self.topic,
            self.partition,
            self.generation,
        ) and self.first <= record.offset < self.end


class Ledger:
    """Used from every lane."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._again: list[Span] = []
        self._gone: list[Span] = []
        self._unread: list[Span] = []
        self._incomplete: list[Span] = []
        self._generations: dict[tuple[str, int], int] = defaultdict(int)
        self._topic_generations: dict[str, int] = defaultdict(int)
        self._kept: dict[str, list[Record]] = defaultdict(list)
        self.forgotten: dict[str, float] = {}
        """The clips of which the store has lost a record or a tombstone, and when first, in seconds after 1970."""
        self.smallest_limit: dict[str, int] = {}
        """The smallest size that an output topic had, in bytes, where one was lowered."""

    # -- what a fault does -----------------------------------------------------------------------------------

    def generation(self, topic: str, partition: int) -> int:
        """Return which log of a partition records are written to now."""
        with self._lock:
            return self._topic_generations[topic] + self._generations[topic, partition]

    def replace_log(self, topic: str, partition: int | None = None) -> None:
        """Note that what is written from now on stands in another log; None is every partition of the topic."""
        with self._lock:
            if partition is None:
                self._topic_generations[topic] += 1
            else:
                self._generations[topic, partition] += 1

    def allow_again(self, topic: str, partition: int, first: int, end: int) -> None:
        """Let these offsets of the partition's log, and of the logs before it, be processed once more."""
        latest = self.generation(topic, partition)
        with self._lock:
            self._again += [Span(topic, partition, each, first, end) for each in range(latest + 1)]

    def allow_gone(self, topic: str, partition: int, first: int, end: int) -> None:
        """Let these offsets never be processed: their records were deleted before."""
        latest = self.generation(topic, partition)
        with self._lock:
            self._gone.append(Span(topic, partition, latest, first, end))

    def allow_degraded(self, topic: str, partition: int, first: int, end: int) -> None:
        """Let the queries at these offsets of the partition's log be answered without the store."""
        latest = self.generation(topic, partition)
        with self._lock:
            self._unread.append(Span(topic, partition, latest, first, end))

    def allow_incomplete(self, topic: str, partition: int, first: int, end: int) -> None:
        """Let the queries at these offsets of the partition's log be answered without some records."""
        latest = self.generation(topic, partition)
        with self._lock:
            self._incomplete.append(Span(topic, partition, latest, first, end))

    def forget(self, clip_ids: Iterable[str]) -> None:
        """Note that the store has lost what it had of these clips, until the log is read again."""
        with self._lock:
            self.forgotten = dict.fromkeys(clip_ids, time.time()) | self.forgotten

    def keep(self, topic: str, records: Iterable[Record]) -> None:
        """Keep what an output topic held before it was deleted."""
        with self._lock:
            self._kept[topic] += records

    def limit(self, topic: str, size: int) -> None:
        """Note that outputs of more than ``size`` bytes may have been refused for a while."""
        with self._lock:
            self.smallest_limit[topic] = min(size, self.smallest_limit.get(topic, size))

    # -- what the verdict asks -------------------------------------------------------------------------------

    def kept(self, topic: str) -> list[Record]:
        """Return what was kept of a topic."""
        return self._kept[topic]

    def bounds(self, each: Input) -> tuple[int, int]:
        """Return how often an input comes out at least and at most."""
        fewest = 0 if any(span.holds(each) for span in self._gone) else 1
        return fewest, 1 + sum(span.holds(each) for span in self._again)

    def may_be_degraded(self, each: Input) -> bool:
        """Whether a query may have been answered while the store could not be read."""
        return any(span.holds(each) for span in self._unread)

    def may_be_incomplete(self, each: Input) -> bool:
        """Whether a query may have been answered while some servers of the store did not answer."""
        return any(span.holds(each) for span in (*self._incomplete, *self._unread))

    def may_be_too_large(self, each: Input, candidates: int) -> bool:
        """Whether the answer to a query of so many candidates may have exceeded the output topic's limit."""
        limit = self.smallest_limit.get(RERANKED)
        return each.record.topic == RESULTS and limit is not None and candidates * MOST_PER_CANDIDATE > limit


MOST_PER_CANDIDATE = 200
"""Bytes that a candidate takes in an answer at most."""
