"""Confidence intervals of means over queries, by a bootstrap that draws whole clusters of queries.

Queries with the same text have much the same results, so they are one cluster, and a resample draws clusters, not
queries. The intervals are studentised (bootstrap-t; Efron and Tibshirani, "An Introduction to the Bootstrap", 1993,
section 12.5): each resample's distance from the estimate is divided by its own standard error, which is that of a ratio
of sums over clusters (Cochran, "Sampling Techniques", 1977, section 6.3).

They are simultaneous: the quantile is that of the largest distance among all columns (Romano and Wolf, Econometrica
2005). So if nothing differs from 0, all intervals hold 0 with the stated probability, however many groups there are.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterator

    import numpy.typing as npt

    FloatArray = npt.NDArray[np.float64]

CONFIDENCE = 0.95
RESAMPLES = 1_999
LEAST_CLUSTERS = 30
"""Fewer clusters, counted as so many of equal size, have no intervals."""
LEAST_ACTIVE = 20
"""A column that differs from 0 in fewer clusters has no interval: resamples often hold none of these."""
_VALUES = 4_000_000
"""Largest number of drawn clusters in memory at once."""
_ROUNDING = 1e-12
"""Smaller standard errors are rounding errors of a column that is the same in each cluster."""


@dataclass(frozen=True, slots=True)
class Intervals:
    """Means (k,) over queries, with ``low`` and ``high`` (k,), which are NaN where there is no interval."""

    mean: FloatArray
    low: FloatArray
    high: FloatArray


def effective(queries: npt.NDArray[Any]) -> float:
    """Return the number of clusters of equal size that would say as much as these, of so many queries (c,) each.

    Kish's: (sum m)^2 / sum m^2.
    """
    total = float(queries.sum())
    return total**2 / float((queries.astype(np.float64) ** 2).sum()) if total else 0.0


def simultaneous(sums: FloatArray, queries: npt.NDArray[Any], *, seed: int = 0) -> Intervals:
    """Return the mean of each column over all queries, and intervals that hold together at :data:`CONFIDENCE`.

    ``sums`` (c, k): the columns' sums over the queries of each cluster; ``queries`` (c,): how many those are, none of
    them 0. Deterministic for a seed.
    """
    sizes = queries.astype(np.float64)
    mean = sums.sum(axis=0) / sizes.sum()
    low, high = np.full_like(mean, np.nan), np.full_like(mean, np.nan)
    if effective(queries) < LEAST_CLUSTERS:
        return Intervals(mean, low, high)
    error = _error(mean, sizes, sums)
    is_constant = error < _ROUNDING
    drawn = ~is_constant & ((sums != 0).sum(axis=0) >= LEAST_ACTIVE)
    low[is_constant] = high[is_constant] = mean[is_constant]
    if drawn.any():
        half = _quantile(sums[:, drawn], sizes, seed) * error[drawn]
        low[drawn], high[drawn] = mean[drawn] - half, mean[drawn] + half
    return Intervals(mean, low, high)


def _error(mean: FloatArray, sizes: FloatArray, sums: FloatArray) -> FloatArray:
    count = len(sizes)
    residuals = sums - mean * sizes[:, None]
    found: FloatArray = np.sqrt(count / (count - 1) * (residuals**2).sum(axis=0)) / sizes.sum()
    return found


def _quantile(sums: FloatArray, sizes: FloatArray, seed: int) -> float:
    """Return the quantile of the largest studentised distance of a resample's means from the means."""
    count, columns = len(sizes), sums.shape[1]
    mean = sums.sum(axis=0) / sizes.sum()
    # What each cluster adds to the sums of which a resample's means and errors are made. Columns are centred before
    # they are squared, so that no digits are lost.
    centred = sums - mean * sizes[:, None]
    parts = np.column_stack([centred, centred**2, centred * sizes[:, None], sizes, sizes**2])
    largest = []
    for weights in _draws(count, seed):
        found = weights @ parts
        total = found[:, -2:-1]
        distance = found[:, :columns] / total
        squares = found[:, columns : 2 * columns] - 2 * distance * found[:, 2 * columns : 3 * columns]
        squares += distance**2 * found[:, -1:]
        error = np.sqrt(count / (count - 1) * np.maximum(squares, 0)) / total
        with np.errstate(divide="ignore", invalid="ignore"):
            studentised = np.abs(distance) / error
        # A resample without any of a column's clusters has no error, and is as far away as can be.
        largest.append(np.where(error > _ROUNDING, studentised, np.inf).max(axis=1))
    return float(np.quantile(np.concatenate(largest), CONFIDENCE, method="higher"))


def _draws(count: int, seed: int) -> Iterator[FloatArray]:
    """Yield the resamples in batches (b, count): how often each cluster was drawn."""
    chance = np.random.default_rng(seed)
    batch = max(1, min(RESAMPLES, _VALUES // count))
    for begin in range(0, RESAMPLES, batch):
        rows = min(batch, RESAMPLES - begin)
        places = chance.integers(0, count, (rows, count)) + np.arange(rows)[:, None] * count
        yield np.bincount(places.ravel(), minlength=rows * count).reshape(rows, count).astype(np.float64)
