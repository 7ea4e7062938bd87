"""Compares two evaluations topic by topic: gain, wins and losses, and statistical significance.

Significance is scipy's: a paired randomisation test of the mean gain (the signs of the gains are drawn at random, all
of them where there are at most :data:`RESAMPLES` ways; Smucker, Allan, Carterette, CIKM 2007), and Student's paired
t-test with its confidence interval. Both are two-sided. The randomisation test is exact for the hypothesis that before
and after can be exchanged in every topic, so that gains are distributed symmetrically about 0; it is no exact test of a
mean of 0 where gains are skewed. Neither is the t-test with few topics. There a bootstrap interval stands beside them
(bias-corrected and accelerated; Efron, JASA 1987). P-values of several measures are corrected by Holm's method.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from streamer.evaluation.measures import missing_extra
from streamer.evaluation.trec_rows import TrecError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from streamer.evaluation.measures import Evaluation

RESAMPLES = 19_999
CONFIDENCE = 0.95
SKEWED = 1.0
"""Gains with a larger sample skewness, in absolute value, are called skewed ..."""
FEW_TOPICS = 50
"""... and a test of fewer topics is then not to be trusted alone."""
LEAST_TOPICS = 8
"""Fewer topics have neither a skewness nor a bootstrap interval that means anything."""
BOOTSTRAPS = 9_999
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
    ``confidence``. ``holm_p``: the randomisation test's p corrected for the measures that are compared at once.
    ``skewness``: of the gains; ``is_doubtful``: they are skewed and few, so that ``bootstrap_low`` and
    ``bootstrap_high`` are to be read instead. Figures are None for fewer topics than they need.
    """

    topics: int
    before: float
    after: float
    gain: float
    wins: int
    losses: int
    ties: int
    randomization_p: float | None
    holm_p: float | None
    t_p: float | None
    confidence: float
    gain_low: float | None
    gain_high: float | None
    skewness: float | None
    is_doubtful: bool
    bootstrap_low: float | None
    bootstrap_high: float | None
    by_strength: Sequence[Strength]


def compare(base: Evaluation, reranked: Evaluation) -> dict[str, Comparison]:
    """Compare every measure that both evaluations have.

    Raises TrecError if they have no topic in common, and MeasureError if scipy is not installed.
    """
    topics = [topic for topic in base.topics if topic in reranked.topics]
    if not topics:
        raise TrecError("expected topics that are in both runs and in the qrels, found none")
    compared = {
        measure: _compare(*(np.array([each.topics[topic][measure] for topic in topics]) for each in (base, reranked)))
        for measure in base.mean
        if measure in reranked.mean
    }
    corrected = holm(
        {name: each.randomization_p for name, each in compared.items() if each.randomization_p is not None}
    )
    return {name: replace(each, holm_p=corrected.get(name)) for name, each in compared.items()}


def holm(p_values: Mapping[str, float]) -> dict[str, float]:
    """Correct the p-values of several tests at once (Holm, Scandinavian Journal of Statistics 1979)."""
    corrected, largest = {}, 0.0
    for position, (name, p) in enumerate(sorted(p_values.items(), key=lambda each: each[1])):
        largest = max(largest, min(1.0, (len(p_values) - position) * p))
        corrected[name] = largest
    return corrected


def _compare(before: npt.NDArray[np.float64], after: npt.NDArray[np.float64]) -> Comparison:
    gains = after - before
    gains[np.abs(gains) <= _NOISE] = 0
    several = len(gains) > 1
    t_p, low, high = _t_test(gains) if several else (None, None, None)
    skewness, boot_low, boot_high = _shape(gains) if len(gains) >= LEAST_TOPICS else (None, None, None)
    return Comparison(
        topics=len(gains),
        before=math.fsum(before) / len(before),
        after=math.fsum(after) / len(after),
        gain=math.fsum(gains) / len(gains),
        wins=int((gains > 0).sum()),
        losses=int((gains < 0).sum()),
        ties=int((gains == 0).sum()),
        randomization_p=_randomization(gains) if several else None,
        holm_p=None,
        t_p=t_p,
        confidence=CONFIDENCE,
        gain_low=low,
        gain_high=high,
        skewness=skewness,
        is_doubtful=skewness is not None and abs(skewness) > SKEWED and len(gains) < FEW_TOPICS,
        bootstrap_low=boot_low,
        bootstrap_high=boot_high,
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


def _shape(gains: npt.NDArray[np.float64]) -> tuple[float, float, float]:
    """Return the skewness of the gains, and the bootstrap interval of their mean; deterministic."""
    from scipy.stats import bootstrap, skew  # noqa: PLC0415

    if np.ptp(gains) == 0:
        return 0.0, float(gains[0]), float(gains[0])
    result = bootstrap(
        (gains,),
        np.mean,
        n_resamples=BOOTSTRAPS,
        batch=_BATCH,
        vectorized=True,
        confidence_level=CONFIDENCE,
        method="BCa",
        rng=np.random.default_rng(0),
    )
    low, high = result.confidence_interval
    return float(skew(gains, bias=False)), float(low), float(high)


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
