"""Accuracy against chance: of n independent choices so many were right, by an exact interval and an exact test."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from streamer.evaluation.measures import missing_extra

CONFIDENCE = 0.95
SIGNIFICANT = 0.05
Said = Literal["above chance", "below chance", "not told from chance"]


@dataclass(frozen=True, slots=True)
class Accuracy:
    """Of ``of`` choices ``right`` were right; ``accuracy`` is their share, ``chance`` what guessing would reach.

    ``low``, ``high``: the interval at :data:`CONFIDENCE`, exact for independent choices (Clopper, Pearson, Biometrika
    1934). ``p``: the probability, by guessing, of a number of right choices that is no more probable than this one
    (the exact binomial test, two-sided).
    """

    right: int
    of: int
    accuracy: float
    low: float
    high: float
    chance: float
    p: float


def accuracy(right: int, of: int, chance: float) -> Accuracy:
    """Return the accuracy of ``right`` of ``of`` >= 1 choices. Raises MeasureError if scipy is not installed."""
    tested = _stats().binomtest(right, of, chance)
    interval = tested.proportion_ci(CONFIDENCE, method="exact")
    return Accuracy(right, of, right / of, float(interval.low), float(interval.high), chance, float(tested.pvalue))


@dataclass(frozen=True, slots=True)
class Change:
    """What another way of choosing changes on the same choices.

    ``gained`` were wrong and are right, ``lost`` the reverse. ``p``: the exact test of McNemar (Psychometrika 1947), in
    which each change is equally probable in both directions.
    """

    gained: int
    lost: int
    p: float


def change(gained: int, lost: int) -> Change:
    """Compare two ways by the choices on which they differ. Raises MeasureError if scipy is not installed."""
    p = float(_stats().binomtest(gained, gained + lost, 0.5).pvalue) if gained + lost else 1.0
    return Change(gained, lost, p)


def says(measured: Accuracy, corrected_p: float) -> Said:
    """Return what an accuracy says, if ``corrected_p`` is its p corrected for all that are tested at once."""
    if corrected_p >= SIGNIFICANT:
        return "not told from chance"
    return "above chance" if measured.accuracy > measured.chance else "below chance"


def _stats() -> Any:
    try:
        from scipy import stats  # noqa: PLC0415 - an optional extra
    except ImportError as error:
        raise missing_extra(error) from None
    return stats
