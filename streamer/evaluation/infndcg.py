"""Inferred NDCG, for judgments sampled from a pool by strata.

Source: Yilmaz, Kanoulas, Aslam, "A Simple and Efficient Sampling Method for Estimating AP and NDCG", SIGIR 2008, as
NIST's sample_eval computes it for TRECVID. The gain of a shot is its relevance, 0 if that is negative, and the discount
of rank r is 1 / log2(r + 1). Of each stratum s, the run's best 1000 results hold pooled_s pooled and judged_s judged
shots, and the judged ones stand for all pooled ones:

    DCG = sum over strata s of pooled_s / judged_s * (sum of gain / log2(rank + 1) over the judged shots of s)

The ideal ranking begins with the shots of the highest relevance, of which the pool is expected to hold

    E = sum over strata s of (judged shots of s with it) * (pooled shots of s) / (judged shots of s)

and goes on with the next lower one. As in NIST's program, such a block has floor(E) shots, and the next one begins E
ranks later, so that its ranks need not be whole; a block ends at rank 1000, but if E shots of higher relevance already
reach it, the block still has its first shot. Relevances are ordered as numbers (the program orders them as text, which
differs from 10 on). NDCG is DCG / ideal DCG, 0 if nothing is relevant. An estimate can exceed 1.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from streamer.evaluation.infap import DEPTH

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from streamer.evaluation.trec import Judgments


class InferredNDCG:
    """The measure for the pool of one topic."""

    def __init__(self, judgments: Judgments) -> None:
        self._strata = len(judgments.stratum_names)
        strata, rels = judgments.strata, judgments.rels
        self._of = dict(zip(judgments.shots, zip(strata.tolist(), rels.tolist(), strict=True), strict=True))
        pooled = np.bincount(strata, minlength=self._strata)
        judged = np.bincount(strata[rels >= 0], minlength=self._strata)
        expected: dict[int, float] = {}
        # In NIST's order of operations: whether a count reaches the next whole number may depend on its last bit.
        for stratum in range(self._strata):
            grades, counts = np.unique(rels[(strata == stratum) & (rels > 0)], return_counts=True)
            for grade, count in zip(grades.tolist(), counts.tolist(), strict=True):
                found = count * int(pooled[stratum]) / int(judged[stratum])
                expected[grade] = expected.get(grade, 0.0) + found
        self._ideal = _ideal(expected)

    def of(self, shots: Sequence[str]) -> float:
        """Compute the measure for results best first."""
        if not self._ideal:
            return 0.0
        found = [self._of.get(shot, (-1, 0)) for shot in shots[:DEPTH]]
        strata, rels = np.array(found, np.intp).reshape(-1, 2).T
        ranks = np.arange(1, len(found) + 1)
        is_pooled, is_judged = strata >= 0, (strata >= 0) & (rels >= 0)
        pooled = np.bincount(strata[is_pooled], minlength=self._strata)
        judged = np.bincount(strata[is_judged], minlength=self._strata)
        gains = np.bincount(strata[is_judged], (rels / np.log2(ranks + 1))[is_judged], minlength=self._strata)
        rates = np.divide(pooled, judged, out=np.zeros(self._strata), where=judged > 0)
        return float(gains @ rates) / self._ideal


def _ideal(expected: Mapping[int, float]) -> float:
    """Return the DCG of the ideal ranking from the expected number of shots of each relevance."""
    total, start = 0.0, 0.0
    for grade in sorted(expected, reverse=True):
        rank, end = start + 1, start + expected[grade]
        while rank <= end:
            total += grade / math.log2(rank + 1)
            if rank >= DEPTH:
                break
            rank += 1
        start = end
    return total
