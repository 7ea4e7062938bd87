"""Pooling: how the cosines of a clip's vectors become its one frame score.

``max`` takes the largest cosine. ``softmax:TAU`` takes a weighted mean in which a cosine that is d below the largest
one has the weight exp(-d / TAU): many good frames count for more than one, and a small temperature TAU comes close to
``max``. The parameter is text, because settings, events and plans state it.
"""

from __future__ import annotations

import math
import re
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import numpy.typing as npt

    FloatArray = npt.NDArray[np.float64]
    IntArray = npt.NDArray[np.int64]

MAX = "max"
LEAST_TEMPERATURE, MOST_TEMPERATURE = 0.01, 1.0
"""Below, softmax is no different from max; above, from the mean of all frames."""
EXPECTED = f"max or softmax:TAU with TAU from {LEAST_TEMPERATURE:g} to {MOST_TEMPERATURE:g}"

_SOFTMAX = re.compile(r"softmax:([0-9]*\.?[0-9]+)")
_WEIGHT_STEP, _DISTANCE_STEP = 2.0**-24, 2.0**-22
"""Weights and distances are rounded to multiples of these, so that their sums are sums of integers. An int64 holds the
sum of 300,000 products."""
_FARTHEST = 18.0
"""exp(-18) is rounded to the weight 0."""
_SQUARINGS = 6
_COEFFICIENTS = [1 / math.factorial(power) for power in range(11, -1, -1)]


def parse(text: str) -> str:
    """Return a pooling in its one spelling: ``softmax:.10`` is ``softmax:0.1``. Raises ValueError if it is none."""
    if text == MAX:
        return MAX
    found = _SOFTMAX.fullmatch(text)
    if not found or not LEAST_TEMPERATURE <= (tau := float(found[1])) <= MOST_TEMPERATURE:
        raise ValueError(f"expected {EXPECTED}")
    return f"softmax:{repr(tau).removesuffix('.0')}"


@lru_cache(maxsize=64)
def temperature(pooling: str) -> float | None:
    """Return the temperature of a pooling, None for ``max``. Raises ValueError if it is no pooling."""
    spelled = parse(pooling)
    return None if spelled == MAX else float(spelled.partition(":")[2])


def softmax_mean(cosines: FloatArray, best: FloatArray, starts: IntArray, lengths: IntArray, tau: float) -> FloatArray:
    """Return the weighted mean (m,) of each clip's cosines.

    The cosines (n,) of clip i are ``lengths[i]`` from ``starts[i]`` on, without gaps, and ``best[i]`` (m,) is the
    largest of them. The mean is best - sum(w * d) / sum(w), d being a cosine's distance from the best one and w its
    weight exp(-d / tau): it never exceeds the best cosine and is equal to it where all are equal. Weights are rounded
    to multiples of 2**-24, and the distances in the sum to multiples of 2**-22. So the sums are exact and the result
    is identical to the last bit in any order of summation; it is off by about 1e-7.
    """
    distances = best.repeat(lengths) - cosines
    weights = np.rint(_exponential(distances / -tau) / _WEIGHT_STEP)
    products = (weights * np.rint(distances / _DISTANCE_STEP)).astype(np.int64)
    sums = np.add.reduceat(products, starts) / np.add.reduceat(weights.astype(np.int64), starts)
    return np.asarray(best - sums * _DISTANCE_STEP)


def _exponential(powers: FloatArray) -> FloatArray:
    """Return exp of powers <= 0, to 2**-45; what is below -18 counts as -18.

    numpy's own differs in its last bit between processors. This one adds and multiplies only, which no processor does
    differently: Taylor's series of a 64th of the power, squared six times.
    """
    small = np.maximum(powers, -_FARTHEST)
    small *= 2.0**-_SQUARINGS
    found = np.full_like(small, _COEFFICIENTS[0])
    for coefficient in _COEFFICIENTS[1:]:
        found *= small
        found += coefficient
    for _ in range(_SQUARINGS):
        found *= found
    return found
