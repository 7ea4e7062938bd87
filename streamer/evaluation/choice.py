"""Choosing a point of a sweep: the best one, a conservative one, and what either gains on unseen topics.

``gains`` (t, p): the gains of t topics at p points over the engine's own list.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from streamer.evaluation.measures import missing_extra

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import numpy.typing as npt

    from streamer.scoring import FloatArray, IntArray

    Rule = Callable[[FloatArray], int | None]

CONFIDENCE = 0.95
GAIN, LOSS, NOT_SHOWN = "gain", "loss", "not shown"
"""What the interval of a gain on unseen topics says."""
POWER = 0.8
"""The probability with which a gain is to be seen, in the table of what can be seen."""


@dataclass(frozen=True, slots=True)
class Caution:
    """The promise of a conservative setting: at most ``share`` of all topics lose more than ``loss``.

    ``confidence``: of the sweeps that promise it, at least this share keep it.
    """

    loss: float = 0.01
    share: float = 0.1
    confidence: float = CONFIDENCE

    def losing(self, gains: FloatArray) -> FloatArray:
        """Return the share of topics that lose more than ``loss`` at each point."""
        return np.asarray((gains < -self.loss).mean(axis=0))

    def upper(self, losing: FloatArray, topics: int, tests: int) -> FloatArray:
        """Return the upper confidence bound of shares (p,) of so many topics, corrected for a number of tests.

        It is exact for topics drawn at random (Clopper, Pearson, Biometrika 1934). Raises MeasureError if scipy is not
        installed.
        """
        try:
            from scipy.stats import beta  # noqa: PLC0415 - an optional extra
        except ImportError as error:
            raise missing_extra(error) from None
        count = np.rint(losing * topics)
        bounds = beta.ppf(1 - (1 - self.confidence) / tests, count + 1, np.maximum(topics - count, 1))
        return np.where(count < topics, bounds, 1.0)


def best(gains: FloatArray) -> int:
    """Return the point of the largest mean gain; of ties the first."""
    return int(gains.mean(axis=0).argmax())


def conservative(gains: FloatArray, caution: Caution, chains: Sequence[IntArray], *, tests: int = 1) -> int | None:
    """Return the point of the largest mean gain among those whose promise is confirmed; None if there is none.

    A chain lists points from the safest to the boldest. Its points are tested in this order, and none after the first
    whose bound is too high (fixed-sequence testing), so that only the number of chains costs confidence: the
    probability that any confirmed point breaks the promise is at most 1 - confidence (Angelopoulos, Bates, Candes,
    Jordan, Lei, "Learn then Test", 2021). ``tests``: so many choices are made at once.
    """
    bounds = caution.upper(caution.losing(gains), len(gains), len(chains) * tests)
    confirmed: list[int] = []
    for chain in chains:
        within = bounds[chain] <= caution.share
        confirmed += chain[: len(chain) if within.all() else int(within.argmin())].tolist()
    if not confirmed:
        return None
    allowed = np.array(sorted(confirmed))
    return int(allowed[gains[:, allowed].mean(axis=0).argmax()])


@dataclass(frozen=True, slots=True)
class CrossValidation:
    """The gain of a rule's choice on unseen topics: ``gain`` is the mean, ``losing`` the share that gets worse.

    ``low``, ``high``: the interval of the mean at ``confidence``. ``deviation``: the standard deviation between topics.
    ``chosen``: the point of each fold. If a rule finds none, the fold's topics keep the engine's list.
    """

    gain: float
    low: float
    high: float
    confidence: float
    deviation: float
    losing: float
    chosen: tuple[int | None, ...]


def cross_validate(
    gains: FloatArray, rule: Rule, caution: Caution, *, folds: int, tests: int = 1, seed: int = 0
) -> CrossValidation:
    """Cross-validate: choose on all folds but one and measure on that one; the random folds are always the same.

    The folds' choices share topics, so the held-out gains are not independent, and the largest of many gains is partly
    chance. The interval is Student's, corrected as Nadeau and Bengio do ("Inference for the Generalization Error",
    Machine Learning 2003): its variance is multiplied by 1 + folds * (held out / chosen from). Its confidence is
    corrected for ``tests`` intervals at once (Bonferroni). Raises MeasureError if scipy is not installed.
    """
    held_out, chosen = _held_out(gains, rule, folds, seed)
    interval = _interval(held_out, folds, tests)
    return CrossValidation(*interval, float(caution.losing(held_out[:, None])[0]), tuple(chosen))


class Interval(NamedTuple):
    """The mean of held-out gains, its interval at ``confidence``, and their standard deviation between topics."""

    gain: float
    low: float
    high: float
    confidence: float
    deviation: float


def says(interval: Interval | CrossValidation) -> str:
    """Return what an interval of a mean gain says."""
    return GAIN if interval.low > 0 else LOSS if interval.high < 0 else NOT_SHOWN


def compare(
    gains: FloatArray, points: IntArray, others: IntArray, *, folds: int, tests: int = 1, seed: int = 0
) -> Interval:
    """Say how much more the best of ``points`` gains on unseen topics than the best of ``others``.

    Both are chosen without the topics on which they are measured, and compared topic by topic; the interval is that of
    :func:`cross_validate`. Raises MeasureError if scipy is not installed.
    """
    one, other = (_held_out(gains[:, each], best, folds, seed)[0] for each in (points, others))
    return _interval(one - other, folds, tests)


def _held_out(gains: FloatArray, rule: Rule, folds: int, seed: int) -> tuple[FloatArray, list[int | None]]:
    """Return each topic's gain (t,) with the point chosen without its fold, and the point of each fold."""
    topics = len(gains)
    fold_of = np.random.default_rng(seed).permutation(np.arange(topics) % folds)
    held_out = np.zeros(topics)
    chosen: list[int | None] = []
    for fold in range(folds):
        unseen = fold_of == fold
        chosen.append(point := rule(gains[~unseen]))
        if point is not None:
            held_out[unseen] = gains[unseen, point]
    return held_out, chosen


def _interval(held_out: FloatArray, folds: int, tests: int) -> Interval:
    try:
        from scipy.stats import t  # noqa: PLC0415 - an optional extra
    except ImportError as error:
        raise missing_extra(error) from None
    topics = len(held_out)
    deviation = float(held_out.std(ddof=1))
    confidence = 1 - (1 - CONFIDENCE) / tests
    half = float(t.ppf((1 + confidence) / 2, topics - 1)) * _corrected_error(deviation, topics, folds)
    gain = float(held_out.mean())
    return Interval(gain, gain - half, gain + half, confidence, deviation)


def _corrected_error(deviation: float, topics: int, folds: int) -> float:
    return deviation * float(np.sqrt((1 + folds / (folds - 1)) / topics))


@dataclass(frozen=True, slots=True)
class Visible:
    """What so many topics can show: the smallest mean gain, and with how many losing topics a conservative setting.

    ``gain`` is seen with probability :data:`POWER`. ``losing`` is None if not even 0 losing topics would do.
    """

    topics: int
    gain: float
    losing: int | None


def visible(topics: int, deviation: float, caution: Caution, *, folds: int, chains: int, tests: int = 1) -> Visible:
    """Say what ``topics`` can show if unseen gains deviate so much between topics."""
    from scipy.stats import t  # noqa: PLC0415

    quantiles = t.ppf([1 - (1 - CONFIDENCE) / tests / 2, POWER], topics - 1)
    gain = float(quantiles.sum()) * _corrected_error(deviation, topics, folds)
    shares = np.arange(topics + 1) / topics
    within = int((caution.upper(shares, topics, chains * tests) <= caution.share).sum())
    return Visible(topics, gain, within - 1 if within else None)


def frontier(costs: FloatArray, gains: FloatArray) -> npt.NDArray[np.bool_]:
    """Return which of n choices are Pareto-optimal: no other gains more at no higher cost, or as much at less cost."""
    order = np.lexsort((-gains, costs))
    reached = np.maximum.accumulate(gains[order])
    is_on = np.empty(len(costs), np.bool_)
    is_on[order] = np.append(True, reached[1:] > reached[:-1])
    return is_on
