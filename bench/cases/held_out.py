"""What is chosen on some topics and measured on others, for measurements of ways to score."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from scipy.stats import t

from streamer.evaluation.comparison import CONFIDENCE, RESAMPLES

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy.typing as npt

    FloatArray = npt.NDArray[np.float64]
    IntArray = npt.NDArray[np.intp]

FOLDS = 5
_NOISE = 1e-12
"""Smaller gains are rounding errors."""


def folds_of(topics: int) -> IntArray:
    """Return each topic's fold (t,): always the same, so that all ways are chosen without the same topics."""
    return np.random.default_rng(0).permutation(np.arange(topics) % FOLDS)


def held_out(values: FloatArray) -> FloatArray:
    """Return each topic's value (t,) at the point with the largest mean on the other folds, of ``values`` (t, p)."""
    fold_of = folds_of(len(values))
    found = np.empty(len(values))
    for fold in range(FOLDS):
        unseen = fold_of == fold
        found[unseen] = values[unseen, values[~unseen].mean(axis=0).argmax()]
    return found


def compared(before: FloatArray, after: FloatArray) -> list[dict[str, Any]]:
    """Compare AP (t, c) of c ways topic by topic: means before, gains with 95 % intervals, wins, losses and p.

    The tests are those of :mod:`streamer.evaluation.comparison`: random signs of the gains, and Student's interval. All
    ways get the same signs, so that one product tests all of them.
    """
    gains = after - before
    gains[np.abs(gains) <= _NOISE] = 0
    topics = len(gains)
    signs = 2.0 * np.random.default_rng(0).integers(0, 2, (RESAMPLES, topics), np.int8) - 1
    as_far = np.abs(signs @ gains) >= np.abs(gains.sum(axis=0)) - _NOISE
    p = (1 + np.count_nonzero(as_far, axis=0)) / (1 + RESAMPLES)
    half = t.ppf((1 + CONFIDENCE) / 2, topics - 1) * gains.std(axis=0, ddof=1) / np.sqrt(topics)
    mean = gains.mean(axis=0)
    columns = {
        "before": before.mean(axis=0),
        "gain": mean,
        "low": mean - half,
        "high": mean + half,
        "wins": (gains > 0).sum(axis=0),
        "losses": (gains < 0).sum(axis=0),
        "p": p,
    }
    return [
        dict(zip(columns, row, strict=True)) for row in zip(*(each.tolist() for each in columns.values()), strict=True)
    ]


def correct(cells: Sequence[dict[str, Any]]) -> None:
    """Correct the p-values of cells for their number (Bonferroni)."""
    for cell in cells:
        cell["bonferroni_p"] = min(1.0, len(cells) * cell["p"])
