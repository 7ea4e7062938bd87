"""Measures that depend on the ranks of relevant results alone, for many rankings of one topic at once.

The definitions are trec_eval's, as :mod:`streamer.evaluation.measures` has them from ir_measures, which measures one
ranking at a time: unjudged results are not relevant, and results after the thousandth do not count.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from streamer.evaluation.infap import DEPTH

if TYPE_CHECKING:
    from streamer.evaluation.trec import FloatArray, IntArray, Judgments


class RankMeasure:
    """A measure by its canonical name (``nDCG@10``), for a topic's judgments."""

    def __init__(self, name: str, judgments: Judgments) -> None:
        self._kind, _, cutoff = name.partition("@")
        self._cutoff = int(cutoff) if cutoff else DEPTH
        grades = np.sort(judgments.rels[judgments.rels > 0].astype(float))[::-1]
        self._relevant = max(1, len(grades))
        ideal = grades[: self._cutoff] / np.log2(np.arange(2, min(len(grades), self._cutoff) + 2))
        self._ideal = float(ideal.sum()) or 1.0

    def of(self, ranks: IntArray, grades: FloatArray) -> FloatArray:
        """Measure r rankings by their relevant results: ``ranks`` (r, m), ascending from 1, and ``grades`` (r, m)."""
        counted = ranks <= self._cutoff
        found = counted.sum(axis=1)
        values: dict[str, FloatArray] = {
            "P": found / self._cutoff,
            "R": found / self._relevant,
            "Success": (found > 0).astype(float),
        }
        if self._kind in values:
            return values[self._kind]
        if self._kind == "RR":
            best: FloatArray = (counted / ranks).max(axis=1, initial=0.0)
            return best
        if self._kind == "nDCG":
            gained: FloatArray = (grades * counted / np.log2(1.0 + ranks)).sum(axis=1) / self._ideal
            return gained
        precisions = np.arange(1, ranks.shape[1] + 1) / ranks
        mean: FloatArray = (precisions * counted).sum(axis=1) / self._relevant
        return mean
