"""How unusual the best of a list's frame scores is: the percentile, from the scores of other clips for the same query.

A cosine that is high for one query is low for another, so a cut-off on cosines fits no query but its own. But clips
that were drawn at random from the store, the bank, say what is usual for a query. If the n scored candidates were such
clips too, then all orders of the bank's N scores and the list's n would be equally likely, whatever their distribution.
The k best of all are the bank's with the probability

    G(k) = (N / (N + n)) * ((N - 1) / (N + n - 1)) * ... * ((N - k + 1) / (N + n - k + 1))

and the percentile of a list whose best score equals the bank's k-th best one is G(k). So for candidates that are like
any clips, it is at most G(k) with exactly the probability G(k): it is uniform, but for the steps. For a large bank it
is F^n, F being the share of the bank's scores that are less than the list's best, since G(k) tends to (1 - k / N)^n.
F^n itself is wrong where the bank is not much larger than the list: with N = n, its first step is at 0.37, not at 0.5.

Between two scores of the bank, the percentile is interpolated on a straight line. Of equal scores, all have the mean of
the first one's and the last one's. Below the bank's least score it stays the same, and beyond its best score b it is

    1 - (1 - G(1)) * t / (t + s - b)

for the best score s, t being the mean by which the bank's best :data:`TAIL` scores exceed the next one, the usual
estimate of a tail's scale. That says only how the last step, of the width 1 - G(1), is divided; it approaches 1 slowly,
and is 1 nowhere unless t is 0.

Everything is computed by single operations on float64, in a given order, so that it has the same digits everywhere.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from streamer.scoring import FloatArray

TAIL = 16
"""How many of a bank's best scores give the scale of its tail."""


def percentile(best: float, others: FloatArray, listed: int) -> float:
    """Return the percentile (0 to 1) of the best of ``listed`` frame scores among ``others`` (N,), in any order.

    ``others`` are finite and more than :data:`TAIL`; else ValueError is raised.
    """
    count = len(others)
    if count <= TAIL:
        raise ValueError(f"{count} scores of other clips, expected more than {TAIL}")
    ascending = np.sort(others)
    steps = levels(count, listed)

    def level(score: float) -> float:
        first, last = (int(ascending.searchsorted(score, side)) for side in ("left", "right"))
        return (float(steps[count - last + 1]) + float(steps[count - first])) / 2

    above = int(ascending.searchsorted(best, "right"))
    if above == count and best > ascending[-1]:
        top: list[float] = ascending[count - TAIL :].tolist()
        scale = math.fsum(top) / TAIL - float(ascending[count - TAIL - 1])
        beyond = 1 - level(top[-1])
        return 1 - beyond * (scale / (scale + (best - top[-1])))
    if above == 0:
        return level(float(ascending[0]))
    low = float(ascending[above - 1])
    if best == low:
        return level(low)
    high = float(ascending[above])
    at_low, at_high = level(low), level(high)
    return min(at_high, at_low + (at_high - at_low) * ((best - low) / (high - low)))


def levels(count: int, listed: int) -> FloatArray:
    """Return G(k) for k = 0 to ``count`` (count + 1,): 1, then less and less."""
    left = np.arange(count, 0, -1, dtype=np.float64)
    return np.concatenate([[1.0], np.multiply.accumulate(left / (left + listed))])
