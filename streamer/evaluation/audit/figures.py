"""The figures of an audit: exposure by group, and which part of it the engine and the reranking add.

For each query and group: the *target* is the group's share of the candidates, which is the exposure that it would have
if chance ordered the list. What the engine adds is its exposure in the engine's order less that share; what reranking
adds is its exposure after less before. So target + engine + reranking = exposure after, to the last digit of a mean.
Each query counts the same.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

import numpy as np

from streamer.evaluation.audit import intervals
from streamer.evaluation.audit.exposure import awrf, exposure
from streamer.evaluation.audit.groups import Groups
from streamer.evaluation.audit.lists import CLUSTERS, Clusters
from streamer.evaluation.first_results import MostChanged
from streamer.evaluation.questions import ReplayError

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from streamer.evaluation.audit.groups import Catalogue, FloatArray, Profile
    from streamer.evaluation.audit.intervals import Intervals
    from streamer.evaluation.audit.lists import Lists
    from streamer.evaluation.audit.sensitivity import Masking

Data = dict[str, Any]


def chosen(catalogue: Catalogue, named: Sequence[str], most: int) -> tuple[list[str], list[str]]:
    """Return the attributes to audit, and those that are passed over because they have more values than groups.

    ``named`` are audited in any case. Raises :class:`ReplayError` where no clip has one of them, or any attribute.
    """
    counts = catalogue.counts()
    if named:
        if absent := [name for name in named if not counts[name]]:
            raise ReplayError(f"no clip has the attribute {', '.join(absent)}")
        return list(dict.fromkeys(named)), []
    by_clips = sorted(counts, key=lambda name: -counts[name].total())
    few = [name for name in by_clips if len(counts[name]) <= most][:MAX_ATTRIBUTES]
    passed_over = [name for name in by_clips if name not in few]
    if not few:
        why = f"; {', '.join(passed_over[:_NAMED])} have more values than groups" if passed_over else ""
        raise ReplayError(f"no clip has an attribute to group it by{why}")
    return few, passed_over


MAX_ATTRIBUTES = 20
"""Most attributes that are audited unless they are named."""
_NAMED = 5


class _Attribute:
    """The sums of one attribute over the queries of each cluster."""

    def __init__(self, groups: Groups) -> None:
        self.groups = groups
        size = len(groups.names)
        self.engine, self.reranking = np.zeros((CLUSTERS, size)), np.zeros((CLUSTERS, size))
        self.gain = np.zeros((CLUSTERS, 1))
        self.target, self.before, self.after = np.zeros(size), np.zeros(size), np.zeros(size)
        self.first_before, self.first_after, self.clips = np.zeros(size), np.zeros(size), np.zeros(size)
        self.awrf_before = self.awrf_after = 0.0

    def add(self, cluster: int, before: Sequence[Profile], after: Sequence[Profile], top: int) -> None:
        members = self.groups.membership(before)
        first, then = members[:top], self.groups.membership(after[:top])
        target, exposed, exposed_then = members.mean(axis=0), exposure(first), exposure(then)
        one, other = awrf(exposed, target), awrf(exposed_then, target)
        self.engine[cluster] += exposed - target
        self.reranking[cluster] += exposed_then - exposed
        self.gain[cluster] += other - one
        self.clips += members.sum(axis=0)
        self.target += target
        self.before += exposed
        self.after += exposed_then
        self.first_before += first.mean(axis=0)
        self.first_after += then.mean(axis=0)
        self.awrf_before += one
        self.awrf_after += other


class Audit:
    """The figures over the queries so far."""

    def __init__(self, catalogue: Catalogue, attributes: Sequence[str], *, top: int, most: int) -> None:
        """``attributes``: those to audit; ``top``: the ranks that count; ``most``: groups of one attribute."""
        counts = catalogue.counts()
        self._catalogue = catalogue
        self._attributes = [_Attribute(Groups(each, counts.get(each, Counter()), most)) for each in attributes]
        self._clusters = Clusters()
        self._top = top
        self._examples = MostChanged()
        self.queries = self._candidates = self._without_upload = self._changed = 0

    def add(self, lists: Iterable[Lists]) -> None:
        """Add queries."""
        known = self._catalogue
        for each in lists:
            self.queries += 1
            self._candidates += len(each.before)
            self._without_upload += sum(clip not in known for clip in each.before)
            self._changed += list(each.before[: self._top]) != list(each.after[: self._top])
            self._examples.add(each.query, each.before, each.after)
            cluster = self._clusters.add(each.query)
            before, after = ([known.of(clip) for clip in side] for side in (each.before, each.after))
            for attribute in self._attributes:
                attribute.add(cluster, before, after, self._top)

    @property
    def groups(self) -> list[Groups]:
        """The groups of each attribute."""
        return [each.groups for each in self._attributes]

    def data(self, masking: Masking | None = None) -> Data:
        """Return the figures as JSON, numbers unrounded; None where there is no interval. At least one query.

        ``masking``: by how much masks move them, where that was measured.
        """
        used = self._clusters.queries > 0
        sizes = self._clusters.queries[used]

        def together(name: str) -> Intervals:
            return intervals.simultaneous(
                np.concatenate([getattr(each, name)[used] for each in self._attributes], axis=1), sizes
            )

        engine, reranking, gain = together("engine"), together("reranking"), together("gain")
        found: list[Data] = []
        begin = 0
        for number, attribute in enumerate(self._attributes):
            end = begin + len(attribute.groups.names)
            columns = slice(begin, end)
            found.append(
                {
                    "attribute": attribute.groups.attribute,
                    "values": attribute.groups.values,
                    "unknown_share": float(attribute.target[-1] / self.queries),
                    "awrf": {
                        "before": attribute.awrf_before / self.queries,
                        "after": attribute.awrf_after / self.queries,
                        "gain": _interval(gain, number),
                    },
                    "groups": self._groups(
                        attribute,
                        _part(engine, columns),
                        _part(reranking, columns),
                        masking.moves[number].tolist() if masking is not None else [None] * (end - begin),
                    ),
                }
            )
            begin = end
        return {
            "queries": self.queries,
            "distinct_queries": len(self._clusters),
            "effective_queries": intervals.effective(sizes),
            "changed": self._changed,
            "candidates": self._candidates,
            "candidates_without_upload": self._without_upload,
            "clips": len(self._catalogue),
            "top": self._top,
            "confidence": intervals.CONFIDENCE,
            "masking": None
            if masking is None
            else {
                "queries": masking.queries,
                "clips": masking.clips,
                "failed": masking.failed,
                "share": masking.share,
            },
            "attributes": found,
            "examples": self._examples.examples(),
        }

    def _groups(
        self, attribute: _Attribute, engine: Intervals, reranking: Intervals, masking: Sequence[float | None]
    ) -> list[Data]:
        return [
            {
                "group": name,
                "candidates": float(attribute.clips[number]),
                "target": float(attribute.target[number] / self.queries),
                "exposure_before": float(attribute.before[number] / self.queries),
                "exposure_after": float(attribute.after[number] / self.queries),
                "share_before": float(attribute.first_before[number] / self.queries),
                "share_after": float(attribute.first_after[number] / self.queries),
                "engine": _interval(engine, number),
                "reranking": _interval(reranking, number),
                "masking": masking[number],
            }
            for number, name in enumerate(attribute.groups.names)
        ]


def _part(of: Intervals, columns: slice) -> Intervals:
    return intervals.Intervals(of.mean[columns], of.low[columns], of.high[columns])


def _interval(of: Intervals, number: int) -> Data:
    return {
        "mean": float(of.mean[number]),
        "low": _number(of.low, number),
        "high": _number(of.high, number),
    }


def _number(values: FloatArray, number: int) -> float | None:
    value = float(values[number])
    return value if np.isfinite(value) else None
