"""Extended inferred average precision (xinfAP), for judgments sampled from a pool by strata.

Source: Yilmaz, Kanoulas, Aslam, "A Simple and Efficient Sampling Method for Estimating AP and NDCG", SIGIR 2008, as
NIST's sample_eval computes it for TRECVID. Each stratum of a topic's pool was judged at its own sampling rate. With R
the expected number of relevant shots,

    R = sum over strata s of R_s,   R_s = relevant_s * pooled_s / judged_s          (none where nothing was judged)

the precision at a relevant shot of rank r, above which are n_s pooled shots of each stratum, n in all, is

    1 / r + n / r * sum over s of n_s / n * (relevant above_s + 1e-5) / (judged above_s + 3e-5)

and AP = sum over s of R_s / R * (sum of the precisions at its relevant shots) / relevant_s, 0 where R = 0. A run has
1000 results per topic, so if R is larger than that, AP is multiplied by R / 1000, and may exceed 1. Shots outside the
pool only occupy ranks; those of a stratum without judged shots count towards n.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from collections.abc import Sequence

    from streamer.evaluation.trec import FloatArray, IntArray, Judgments, Ranking

DEPTH = 1000
"""Number of results per topic that count; NIST cuts after sorting."""

_RELEVANT_PRIOR, _JUDGED_PRIOR = 1e-5, 3e-5

RELEVANT, NOT_RELEVANT, NOT_JUDGED = range(3)
"""The judgment of a pooled shot; its code is this + 3 * stratum. The code of a shot outside the pool is -1."""


class InferredAP:
    """The measure for the pool of one topic with s strata."""

    def __init__(self, judgments: Judgments) -> None:
        said = np.where(judgments.rels > 0, RELEVANT, np.where(judgments.rels < 0, NOT_JUDGED, NOT_RELEVANT))
        self._codes = 3 * judgments.strata + said
        self._shots = judgments.shots
        strata = len(judgments.stratum_names)
        counts = np.bincount(self._codes, minlength=3 * strata).reshape(strata, 3)
        judged = counts[:, RELEVANT] + counts[:, NOT_RELEVANT]
        # R_s / relevant_s: the number of pooled shots that each judged shot of the stratum represents.
        rates = np.divide(counts.sum(axis=1), judged, out=np.zeros(strata), where=judged > 0)
        self.relevant = float(counts[:, RELEVANT] @ rates)
        """R, the number of relevant shots to expect in the pool."""
        # AP is this weighted sum of precisions: R_s / R / relevant_s, times R / DEPTH where R is more than that.
        self._weights = rates / min(self.relevant, DEPTH) if self.relevant else rates
        self._strata = strata

    def codes(self, shots: Sequence[str]) -> IntArray:
        """Return each shot's code (n,): stratum * 3 + judgment, -1 outside the pool."""
        known = dict(zip(self._shots, self._codes.tolist(), strict=True))
        return np.array([known.get(shot, -1) for shot in shots], np.intp)

    def of(self, ranking: Ranking) -> float:
        """Compute the measure for the topic's results, in any order."""
        return self.of_codes(self.codes(ranking.shots)[ranking.order()])

    def of_codes(self, codes: IntArray) -> float:
        """Compute the measure for results best first, given by their :meth:`codes` (n,)."""
        codes = codes[:DEPTH]
        strata, said = np.divmod(codes, 3)
        # -1 is stratum -1, not judged, and so in no column.
        pooled = strata[:, None] == np.arange(self._strata)
        (found,) = np.nonzero(said == RELEVANT)
        return float(
            self.of_counts(
                strata[found],
                found + 1,
                _above(pooled)[found],
                _above(pooled & (said != NOT_JUDGED)[:, None])[found],
                _above(pooled & (said == RELEVANT)[:, None])[found],
            )
        )

    def of_counts(
        self,
        strata: IntArray,
        ranks: IntArray,
        pooled: npt.NDArray[np.integer],
        judged: npt.NDArray[np.integer],
        relevant: npt.NDArray[np.integer],
    ) -> FloatArray:
        """Compute the measure of rankings (...) from the m relevant results in each.

        ``strata`` (m,): theirs. ``ranks`` (..., m), from 1; beyond :data:`DEPTH` they add nothing. ``pooled``,
        ``judged``, ``relevant`` (..., m, s): the number of such shots of each stratum above each of them.
        """
        expected = (pooled * ((relevant + _RELEVANT_PRIOR) / (judged + _JUDGED_PRIOR))).sum(axis=-1)
        precisions = (1 + expected) / ranks
        ap: FloatArray = (precisions * self._weights[strata] * (ranks <= DEPTH)).sum(axis=-1)
        return ap


def _above(shown: npt.NDArray[np.bool_]) -> IntArray:
    """Count, for each row of (n, s), the rows before it that are set."""
    return shown.cumsum(axis=0) - shown
