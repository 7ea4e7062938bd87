"""Measures of one topic at every point of a grid of the method's parameters, from its frame scores.

A reranked list differs from the initial one only in the order of its first candidates, and inferred AP depends only on
the ranks of the relevant ones and on the number of pooled ones above them. So for each depth all blends are sorted at
once, the candidates' judgments are summed along the sorted rows, with several counts packed into each integer, and the
sums are read at the relevant candidates. The scores are :func:`streamer.scoring.blend`'s and the measure is
:meth:`~streamer.evaluation.infap.InferredAP.of_counts`: each value equals, to the last bit, the value of the run that a
replay with these settings writes. Other measures are computed from the same ranks
(:mod:`streamer.evaluation.rank_measures`).
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from streamer.evaluation.infap import NOT_JUDGED, RELEVANT
from streamer.method import Method
from streamer.pooling import MAX
from streamer.scoring import IMPUTE, blend

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from streamer.evaluation.infap import InferredAP
    from streamer.evaluation.rank_measures import RankMeasure
    from streamer.scoring import FloatArray, IntArray, Missing, Normalization

_KINDS = 3
"""The counts of each stratum: pooled, judged and relevant shots."""


@dataclass(frozen=True, slots=True)
class Grid:
    """The grid of all combinations; points are numbered with alpha varying fastest, depth slowest."""

    alphas: tuple[float, ...]
    depths: tuple[int, ...]
    normalizations: tuple[Normalization, ...]
    missing: tuple[Missing, ...] = (IMPUTE,)
    poolings: tuple[str, ...] = (MAX,)

    def __len__(self) -> int:
        return len(self.depths) * len(self.poolings) * len(self.missing) * len(self.normalizations) * len(self.alphas)

    def blends(self) -> Iterator[tuple[str, Missing, Normalization]]:
        """Yield what besides alpha and depth makes a blend, in order."""
        return itertools.product(self.poolings, self.missing, self.normalizations)

    def points(self) -> Iterator[Method]:
        """Yield each point's method, in order."""
        for depth in self.depths:
            for pooling, missing, normalization in self.blends():
                for alpha in self.alphas:
                    yield Method(
                        alpha=alpha, depth=depth, normalization=normalization, missing=missing, pooling=pooling
                    )


class TopicSweep:
    """One topic's candidates in the engine's order: ``initial`` (n,) their scores, ``codes`` (n,) their judgments."""

    def __init__(
        self,
        measure: InferredAP,
        codes: IntArray,
        initial: FloatArray,
        others: Sequence[RankMeasure] = (),
        grades: FloatArray | None = None,
    ) -> None:
        """``codes`` are those of :meth:`~streamer.evaluation.infap.InferredAP.codes`.

        ``others`` are measured too. ``grades`` (n,): the degrees of relevance, which they need.
        """
        self._others = others
        self._grades = np.zeros(len(codes)) if grades is None else grades
        self._measure = measure
        self._codes = codes
        self._initial = initial
        self._counter = _Counter(codes)
        (self._relevant,) = np.nonzero(self._counter.is_relevant(codes))
        self._above = self._counter.above(codes[None], self._relevant[None])[0]

    def values(self, frame: Mapping[str, FloatArray], grid: Grid) -> FloatArray:
        """Return inferred AP and the other measures (1 + others, p) at each point.

        ``frame``: for each pooling the frame scores (>= the deepest depth, or n,), NaN without a record.
        """
        alphas = np.array(grid.alphas)[:, None]
        values = []
        for depth in grid.depths:
            top = min(depth, len(self._initial))
            blends = [
                blend(self._initial[:top], frame[pooling][:top], alphas, normalization, missing)
                for pooling, missing, normalization in grid.blends()
            ]
            values.append(self._of(np.concatenate(blends)))
        return np.concatenate(values, axis=1)

    def _of(self, blended: FloatArray) -> FloatArray:
        """Return the measures (1 + others, r) for each row of blended scores (r, top)."""
        rows, top = blended.shape
        order = _best_first(blended)
        codes = self._codes.take(order)
        found = np.nonzero(self._counter.is_relevant(codes))[1].reshape(rows, -1)
        strata = np.take_along_axis(codes, found, axis=1) // _KINDS
        # Relevant candidates below the depth keep their ranks and the counts above them.
        kept = self._relevant >= top
        below = self._relevant[kept]
        ranks = _beside(found, below) + 1
        strata = _beside(strata, self._codes[below] // _KINDS)
        pooled, judged, relevant = np.moveaxis(_beside(self._counter.above(codes, found), self._above[kept]), -1, 0)
        measured = [self._measure.of_counts(strata, ranks, pooled, judged, relevant)]
        if self._others:
            grades = _beside(self._grades.take(np.take_along_axis(order, found, axis=1)), self._grades[below])
            measured += [other.of(ranks, grades) for other in self._others]
        return np.array(measured)


def _beside(rows: npt.NDArray[Any], same: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Append ``same`` (k, ...) to each row of ``rows`` (r, m, ...): (r, m + k, ...), rows contiguous.

    numpy sums non-contiguous arrays in another order, which would change the last bit.
    """
    joined = np.empty((len(rows), rows.shape[1] + len(same), *rows.shape[2:]), rows.dtype)
    joined[:, : rows.shape[1]] = rows
    joined[:, rows.shape[1] :] = same
    return joined


def _best_first(scores: FloatArray) -> IntArray:
    """Order the columns of each row of (r, n), best first; ties keep their order.

    A stable sort takes five times as long as an unstable one, and ties are rare: only rows with ties are sorted stably.
    """
    order = np.argsort(-scores, axis=1)
    ranked = np.take_along_axis(scores, order, axis=1)
    tied = (ranked[:, 1:] == ranked[:, :-1]).any(axis=1)
    if tied.any():
        order[tied] = np.argsort(-scores[tied], axis=1, kind="stable")
    return order


class _Counter:
    """Counts the shots above results by stratum, with several counts packed into each 64-bit integer."""

    def __init__(self, codes: IntArray) -> None:
        self._strata = int(codes.max(initial=-1)) // _KINDS + 1
        counts = _KINDS * self._strata
        self._bits = max(1, len(codes).bit_length())
        self._in_each = 63 // self._bits
        # The increment of each code; code -1, outside the pool, selects the last column, which adds nothing.
        self._adds = np.zeros((-(-counts // self._in_each), counts + 1), np.int64)
        for code in range(counts):
            stratum, said = divmod(code, _KINDS)
            for kind, counted in enumerate((True, said != NOT_JUDGED, said == RELEVANT)):
                word, field = divmod(_KINDS * stratum + kind, self._in_each)
                self._adds[word, code] += int(counted) << (field * self._bits)
        self._is_relevant = np.append(np.arange(counts) % _KINDS == RELEVANT, False)

    def is_relevant(self, codes: IntArray) -> npt.NDArray[np.bool_]:
        """Return which codes are those of relevant shots."""
        return self._is_relevant.take(codes)

    def above(self, codes: IntArray, found: IntArray) -> npt.NDArray[np.int64]:
        """Count the shots above the columns ``found`` (r, m) in each row of ``codes`` (r, n): (r, m, strata, 3)."""
        counts = np.empty((*found.shape, len(self._adds) * self._in_each), np.int64)
        for word, adds in enumerate(self._adds):
            each = adds.take(codes)
            summed = np.take_along_axis(each.cumsum(axis=1) - each, found, axis=1)
            for field in range(self._in_each):
                counts[..., word * self._in_each + field] = summed >> (field * self._bits) & (1 << self._bits) - 1
        return counts[..., : _KINDS * self._strata].reshape(*found.shape, self._strata, _KINDS)
