"""An audit that goes on: the exposure of groups of clips in each new answer, as counters for Prometheus.

The figures are those of :mod:`streamer.evaluation.audit.figures`, summed over the answers since the start; their
quotients by the number of queries are its means. There are no intervals: those are for a report on a fixed set of
queries, and whoever looks at a graph all the time would find a difference sooner or later.
"""

from __future__ import annotations

import heapq
from typing import TYPE_CHECKING, NamedTuple

import structlog

from streamer.codec import JSON
from streamer.evaluation.audit.attributes import take
from streamer.evaluation.audit.exposure import discount
from streamer.evaluation.audit.groups import OTHER, UNKNOWN, Catalogue
from streamer.evaluation.audit.lists import lists_of
from streamer.events import InvalidEvent, QueryReranked
from streamer.kafka.outputs import GROUP
from streamer.kafka.records import text_of
from streamer.printable import printable

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from streamer.codec import Codec
    from streamer.kafka import Record
    from streamer.metrics import Metrics

log = structlog.get_logger()

CANDIDATES, ENGINE, RERANKED = "candidates", "engine", "reranked"


class _Attribute:
    """The groups of one attribute: the values that are counted by name, and one group of all others.

    Their number is bounded, whatever clips are uploaded with. They are the most frequent values at the start; as long
    as there are fewer than ``most``, a value that comes later has a group of its own, too.
    """

    def __init__(self, name: str, counts: Mapping[str, int], most: int) -> None:
        self.name = name
        self._most = most
        self._values = set(heapq.nsmallest(most, counts, key=lambda value: (-counts[value], value)))

    def groups(self, values: Sequence[str]) -> Sequence[str]:
        """Return the groups of a clip with these values; it counts for each of them in equal parts."""
        return [self._group(value) for value in values] or [UNKNOWN]

    def _group(self, value: str) -> str:
        if value not in self._values:
            if len(self._values) >= self._most:
                return OTHER
            self._values.add(value)
        return printable(value)


class _Weighted(NamedTuple):
    """Clips, and each one's part of the exposure in one order; the parts have the sum 1."""

    order: str
    clips: Sequence[str]
    parts: Sequence[float]


class LiveAudit:
    """Counts answers into metrics; used from one thread."""

    def __init__(
        self,
        catalogue: Catalogue,
        attributes: Iterable[str],
        *,
        top: int,
        most: int,
        group: str,
        metrics: Metrics,
        codec: Codec = JSON,
    ) -> None:
        """``catalogue``: the clips at the start; ``top``: the ranks that count; ``group``: whose answers, in full."""
        counts = catalogue.counts()
        self._catalogue = catalogue
        self._attributes = [_Attribute(each, counts.get(each, {}), most) for each in attributes]
        self._top = top
        self._group = group
        self._metrics = metrics
        self._codec = codec

    def upload(self, record: Record) -> None:
        """Take a record of ``clips.uploaded``."""
        take(self._catalogue, record, self._codec)

    def answer(self, record: Record) -> None:
        """Take a record of ``query.reranked``."""
        if (reason := self._count(record)) is not None:
            self._metrics.exposure_left_out.labels(reason).inc()
        else:
            self._metrics.exposure_queries.inc()

    def _count(self, record: Record) -> str | None:
        """Count the lists of an answer, or return why they are left out."""
        if text_of(record.headers, GROUP) != self._group:
            return "other_group"
        try:
            lists = lists_of(self._codec.decode(QueryReranked, record.value, record.key))
        except InvalidEvent as error:
            log.warning("invalid event skipped", place=record.place, error=str(error))
            return "invalid"
        if isinstance(lists, str):
            return lists
        weights = discount(min(self._top, len(lists.before)))
        exposed = (weights / weights.sum()).tolist()
        for each in (
            _Weighted(CANDIDATES, lists.before, [1 / len(lists.before)] * len(lists.before)),
            _Weighted(ENGINE, lists.before[: self._top], exposed),
            _Weighted(RERANKED, lists.after[: self._top], exposed),
        ):
            self._add(each)
        return None

    def _add(self, weighted: _Weighted) -> None:
        for attribute in self._attributes:
            sums: dict[str, float] = {}
            for clip, part in zip(weighted.clips, weighted.parts, strict=True):
                values = next((values for name, values in self._catalogue.of(clip) if name == attribute.name), ())
                groups = attribute.groups(values)
                for group in groups:
                    sums[group] = sums.get(group, 0.0) + part / len(groups)
            for group, total in sums.items():
                self._metrics.exposure.labels(attribute.name, group, weighted.order).inc(total)
