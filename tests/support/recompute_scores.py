"""Pooling and imputing, worked out again with exact integers and fractions, as the documentation defines them.

Nothing of the product is imported.
"""

from __future__ import annotations

import math
from fractions import Fraction
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence


def pooled(cosines: Sequence[float], pooling: str) -> float:
    """Return a clip's score from the cosines of its vectors."""
    best = max(cosines)
    if pooling == "max":
        return best
    tau = float(pooling.removeprefix("softmax:"))
    weights = [round(math.exp((best - cosine) / -tau) * 2**24) for cosine in cosines]
    distances = [round((best - cosine) * 2**22) for cosine in cosines]
    total = sum(weight * distance for weight, distance in zip(weights, distances, strict=True))
    return best - float(total) / float(sum(weights)) * 2**-22


def predicted(own: Sequence[float], known: Sequence[float], of: Sequence[float]) -> list[float]:
    """Return the frame scores that least squares over ``own`` and ``known`` predicts for the own scores ``of``."""
    mean_own, mean_known = (_sum(values) / len(values) for values in (own, known))
    deviations = [value - mean_own for value in own]
    variance = _sum([each * each for each in deviations])
    slope = 0.0
    if variance:
        products = [each * (value - mean_known) for each, value in zip(deviations, known, strict=True)]
        slope = _sum(products) / variance
    return [mean_known + slope * (value - mean_own) for value in of]


def _sum(values: Sequence[float]) -> float:
    return float(sum(map(Fraction, values)))
