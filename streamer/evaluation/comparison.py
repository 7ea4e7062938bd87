"""Compares two evaluations topic by topic: gain, wins and losses, and statistical significance.

Significance is scipy's: a paired randomisation test of the mean gain (the signs of the gains are drawn at random, all
of them where there are at most :data:`RESAMPLES` ways; Smucker, Allan, Carterette, CIKM 2007), and Student's paired
t-test with its confidence interval. Both are two-sided, and each measure is tested by itself.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from streamer.evaluation.measures import missing_extra
from streamer.evaluation.trec import TrecError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from streamer.evaluation.measures import Evaluation

RESAMPLES = 19_999
CONFIDENCE = 0.95
STRENGTHS = 4
"""Number of groups of equal size into which topics are divided by the base's values."""

_BATCH = 1_000
"""Number of resamples in memory at once."""
_NOISE = 1e-12
"""Smaller gains are rounding errors."""


@dataclass(frozen=True, slots=True)
class Strength:
    """The topics with base values from ``low`` to ``high``, and their mean gain."""

    low: float
    high: float
    topics: int
    gain: float
    wins: int
    losses: int


@dataclass(frozen=True, slots=True)
class Comparison:
    """One measure before and after, over the topics that both evaluations have.

    ``before``, ``after``, ``gain``: means. ``randomization_p``, ``t_p``: the p-values of the gain under the hypothesis
    that reranking changes nothing. ``gain_low``, ``gain_high``: the confidence interval of the mean gain at
    ``confidence``. Figures that need more than one topic are None for a single one.
    """

    topics: int
    before: float
    after: float
    gain: float
    wins: int
    losses: int
    ties: int
    randomization_p: float | None
    t_p: float | None
    confidence: float
    gain_low: float | None
    gain_high: float | None
    by_strength: Sequence[Strength]


def compare(base: Evaluation, reranked: Evaluation) -> dict[str, Comparison]:
    """Compare every measure that both evaluations have.

    Raises TrecError if they have no topic in common, and MeasureError if scipy is not installed.
    """
    topics = [topic for topic in base.topics if topic in reranked.topics]
    if not topics:
        raise TrecError("expected topics that are in both runs and in the qrels, found none")
    return {
        measure: _compare(*(np.array([each.topics[topic][measure] for topic in topics]) for each in (base, reranked)))
        for measure in base.mean
        if measure in reranked.mean
    }


def _compare(before: npt.NDArray[np.float64], after: npt.NDArray[np.float64]) -> Comparison:
    gains = after - before
    gains[np.abs(gains) <= _NOISE] = 0
    several = len(gains) > 1
    t_p, low, high = _t_test(gains) if several else (None, None, None)
    return Comparison(
        topics=len(gains),
        before=math.fsum(before) / len(before),
        after=math.fsum(after) / len(after),
        gain=math.fsum(gains) / len(gains),
        wins=int((gains > 0).sum()),
        losses=int((gains < 0).sum()),
        ties=int((gains == 0).sum()),
        randomization_p=_randomization(gains) if several else None,
        t_p=t_p,
        confidence=CONFIDENCE,
        gain_low=low,
        gain_high=high,
        by_strength=_by_strength(before, gains),
    )


def _randomization(gains: npt.NDArray[np.float64]) -> float:
    """Return the p-value of the mean gain under random signs; deterministic."""
    try:
        from scipy.stats import permutation_test  # noqa: PLC0415 - an optional extra
    except ImportError as error:
        raise missing_extra(error) from None
    result = permutation_test(
        (gains,),
        np.mean,
        permutation_type="samples",
        n_resamples=RESAMPLES,
        batch=_BATCH,
        vectorized=True,
        rng=np.random.default_rng(0),
    )
    return float(result.pvalue)


def _t_test(gains: npt.NDArray[np.float64]) -> tuple[float, float, float]:
    """Return the p-value and the interval of the mean gain."""
    from scipy.stats import ttest_1samp  # noqa: PLC0415

    if np.ptp(gains) == 0:
        # Without any spread, the statistic would divide by 0.
        return (1.0 if gains[0] == 0 else 0.0), float(gains[0]), float(gains[0])
    result = ttest_1samp(gains, 0.0)
    interval = result.confidence_interval(CONFIDENCE)
    return float(result.pvalue), float(interval.low), float(interval.high)


def _by_strength(before: npt.NDArray[np.float64], gains: npt.NDArray[np.float64]) -> list[Strength]:
    order = np.argsort(before, kind="stable")
    return [
        Strength(
            low=float(before[group[0]]),
            high=float(before[group[-1]]),
            topics=len(group),
            gain=float(gains[group].mean()),
            wins=int((gains[group] > 0).sum()),
            losses=int((gains[group] < 0).sum()),
        )
        for group in np.array_split(order, STRENGTHS)
        if len(group)
    ]
