"""Compares two evaluations topic by topic: gain, wins and losses, and statistical significance.

Significance is scipy's: a paired randomisation test of the mean gain (the signs of the gains are drawn at random, all
of them where there are at most :data:`RESAMPLES` ways; Smucker, Allan, Carterette, CIKM 2007), and Student's paired
t-test with its confidence interval. Both are two-sided. The randomisation test is exact for the hypothesis that before
and after can be exchanged in every topic, so that gains are distributed symmetrically about 0; it is no exact test of a
mean of 0 where gains are skewed. Neither is the t-test with few topics. There a bootstrap interval stands beside them
(bias-corrected and accelerated; Efron, JASA 1987). P-values of several measures and runs are corrected by Holm's
method.

Ranks (MdR, MnR) gain where they fall. The gain in the median rank is the difference of both medians: the randomisation
test exchanges before and after in each topic and compares that difference, its interval is the percentiles of a
bootstrap over the topics, and there is no t-test of it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import numpy.typing as npt

from streamer.evaluation.measures import MEDIAN_RANK, RANKS, missing_extra
from streamer.evaluation.trec_rows import TrecError

if TYPE_CHECKING:
    from collections.abc import Hashable, Mapping, Sequence

    from streamer.evaluation.measures import Evaluation

K = TypeVar("K", bound="Hashable")

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
"""Largest number of resamples in memory at once."""
_VALUES = 10_000_000
"""Largest number of resampled values in memory at once."""
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

    ``before``, ``after``, ``gain``: means, and for MdR medians and their difference; a gain is positive where after is
    better, also in ranks, of which less is better. ``randomization_p``, ``t_p``: the p-values of the gain under the
    hypothesis that reranking changes nothing. ``gain_low``, ``gain_high``: the confidence interval of the gain at
    ``confidence``. ``holm_p``: the randomisation test's p corrected for the measures and runs that are compared at
    once. ``skewness``: of the gains; ``is_doubtful``: they are skewed and few, so that ``bootstrap_low`` and
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
    return compare_all(base, {"": reranked})[""]


def compare_all(base: Evaluation, others: Mapping[str, Evaluation]) -> dict[str, dict[str, Comparison]]:
    """Compare each of several evaluations with ``base``, as :func:`compare` does.

    The p-values are corrected for all measures of all evaluations at once.
    """
    compared = {name: _measures(base, other, name) for name, other in others.items()}
    corrected = holm(
        {
            (name, measure): each.randomization_p
            for name, measures in compared.items()
            for measure, each in measures.items()
            if each.randomization_p is not None
        }
    )
    return {
        name: {measure: replace(each, holm_p=corrected.get((name, measure))) for measure, each in measures.items()}
        for name, measures in compared.items()
    }


def holm(p_values: Mapping[K, float]) -> dict[K, float]:
    """Correct the p-values of several tests at once (Holm, Scandinavian Journal of Statistics 1979)."""
    corrected: dict[K, float] = {}
    largest = 0.0
    for position, (name, p) in enumerate(sorted(p_values.items(), key=lambda each: each[1])):
        largest = max(largest, min(1.0, (len(p_values) - position) * p))
        corrected[name] = largest
    return corrected


def _measures(base: Evaluation, other: Evaluation, name: str) -> dict[str, Comparison]:
    topics = [topic for topic in base.topics if topic in other.topics]
    if not topics:
        of = f" ({name})" if name else ""
        raise TrecError(f"expected topics that are in both runs and in the qrels, found none{of}")
    return {
        measure: _compare(
            measure, *(np.array([each.topics[topic][measure] for topic in topics]) for each in (base, other))
        )
        for measure in base.mean
        if measure in other.mean
    }


def _compare(measure: str, before: npt.NDArray[np.float64], after: npt.NDArray[np.float64]) -> Comparison:
    gains = before - after if measure in RANKS else after - before
    gains[np.abs(gains) <= _NOISE] = 0
    several, enough = len(gains) > 1, len(gains) >= LEAST_TOPICS
    p = t_p = low = high = skewness = boot_low = boot_high = None
    if measure == MEDIAN_RANK:
        means = float(np.median(before)), float(np.median(after))
        gain = means[0] - means[1]
        if several:
            p = _randomization((before, after), _median_gain)
        if enough:
            boot_low, boot_high = low, high = _interval((before, after), _median_gain, "percentile")
            skewness = _skewness(gains)
    else:
        means = math.fsum(before) / len(before), math.fsum(after) / len(after)
        gain = math.fsum(gains) / len(gains)
        if several:
            p = _randomization((gains,), np.mean)
            t_p, low, high = _t_test(gains)
        if enough:
            skewness, (boot_low, boot_high) = _skewness(gains), _interval((gains,), np.mean, "BCa")
    return Comparison(
        topics=len(gains),
        before=means[0],
        after=means[1],
        gain=gain,
        wins=int((gains > 0).sum()),
        losses=int((gains < 0).sum()),
        ties=int((gains == 0).sum()),
        randomization_p=p,
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


def _median_gain(before: npt.NDArray[np.float64], after: npt.NDArray[np.float64], axis: int = -1) -> Any:
    return np.median(before, axis=axis) - np.median(after, axis=axis)


def _randomization(samples: tuple[npt.NDArray[np.float64], ...], statistic: Any) -> float:
    """Return the p-value of a statistic of gains under random signs, or of before and after under random exchanges.

    Deterministic.
    """
    try:
        from scipy.stats import permutation_test  # noqa: PLC0415 - an optional extra
    except ImportError as error:
        raise missing_extra(error) from None
    result = permutation_test(
        samples,
        statistic,
        permutation_type="samples",
        n_resamples=RESAMPLES,
        batch=_batch(len(samples[0])),
        vectorized=True,
        rng=np.random.default_rng(0),
    )
    return float(result.pvalue)


def _batch(topics: int) -> int:
    return max(1, min(_BATCH, _VALUES // topics))


def _t_test(gains: npt.NDArray[np.float64]) -> tuple[float, float, float]:
    """Return the p-value and the interval of the mean gain."""
    from scipy.stats import ttest_1samp  # noqa: PLC0415

    if np.ptp(gains) == 0:
        # Without any spread, the statistic would divide by 0.
        return (1.0 if gains[0] == 0 else 0.0), float(gains[0]), float(gains[0])
    result = ttest_1samp(gains, 0.0)
    interval = result.confidence_interval(CONFIDENCE)
    return float(result.pvalue), float(interval.low), float(interval.high)


def _skewness(gains: npt.NDArray[np.float64]) -> float:
    from scipy.stats import skew  # noqa: PLC0415

    return 0.0 if np.ptp(gains) == 0 else float(skew(gains, bias=False))


def _interval(samples: tuple[npt.NDArray[np.float64], ...], statistic: Any, method: str) -> tuple[float, float]:
    """Return the bootstrap interval of a statistic over topics, each with all its samples; deterministic."""
    from scipy.stats import bootstrap  # noqa: PLC0415

    if all(np.ptp(each) == 0 for each in samples):
        same = float(statistic(*samples))
        return same, same
    result = bootstrap(
        samples,
        statistic,
        n_resamples=BOOTSTRAPS,
        batch=_batch(len(samples[0])),
        vectorized=True,
        paired=len(samples) > 1,
        confidence_level=CONFIDENCE,
        method=method,
        rng=np.random.default_rng(0),
    )
    low, high = result.confidence_interval
    return float(low), float(high)


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
