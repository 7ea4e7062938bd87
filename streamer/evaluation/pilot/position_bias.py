"""Position bias: how likely users examine each rank of a list, as assumed and as estimated from clicks.

The probability of a click is that of examining the rank times that of clicking the clip once it is examined (the
examination hypothesis, or position-based model). Relative to the first rank, examination is assumed to be 1 / rank or
1 / sqrt(rank), as in the literature's simulations (Joachims, Swaminathan, Schnabel, "Unbiased Learning-to-Rank with
Biased Feedback", WSDM 2017).

Where an engine showed the same clip for the same query at different ranks, the curve can be estimated, because the
clip's click rates there differ by the rank alone. The model is that of Wang, Golbandi, Bendersky, Metzler, Najork,
"Position Bias Estimation for Unbiased Learning to Rank in Personal Search" (WSDM 2018), and the data are the harvested
interventions of Agarwal, Zaitsev, Wang, Li, Najork, Joachims, "Estimating Position Bias without Intrusive
Interventions" (WSDM 2019). But a pair of a query and a clip is seen a few times only, and then the EM algorithm with an
attractiveness of its own for each pair is biased towards a flat curve: every pair adds a parameter. The Poisson
likelihood with an effect for each pair is not, because the effects cancel out of it, and it needs no more than the mean
of the clicks to be right (Wooldridge, "Distribution-free estimation of some nonlinear panel data models", Journal of
Econometrics 1999).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Mapping

    import numpy.typing as npt

    FloatArray = npt.NDArray[np.float64]
    IntArray = npt.NDArray[np.intp]

DEEPEST = 100
"""Deeper ranks count as this one, which bounds the weight of a click (clipped propensities)."""
LEAST_EXAMINED = 1 / 200
"""An estimated curve does not fall below this."""
ASSUMED: Mapping[str, float] = {"1/rank": 1.0, "1/sqrt(rank)": 0.5}
"""The exponents of the assumed curves."""
ESTIMATED = "estimated from these clicks"
KNOTS = np.log([1, 3, 10, 30, DEEPEST])
"""The estimated curve is straight between these ranks, on logarithmic scales."""
LEAST_SESSIONS = 100
"""Fewer sessions with clicks on clips that were shown at different ranks allow no estimate."""
GROUPS = 6
"""Number of groups of sessions, without each of which the curve is estimated again."""
_BEND = 0.5
"""How much neighbouring slopes differ, as a standard deviation: where clicks say little, the curve stays a power."""
_STEPS, _STEPS_WITHOUT = 30, 2
"""Newton steps for all sessions, and from there without a group of them."""


@dataclass(frozen=True, slots=True)
class Shown:
    """Results as they were shown (m,): ``pair``, a number for query and clip; ``rank``, ``clicked``, ``session``."""

    pair: IntArray
    rank: IntArray
    clicked: npt.NDArray[np.bool_]
    session: IntArray


def assumed(exponent: float) -> FloatArray:
    """Return the curve (DEEPEST,) of rank ** -exponent, from the first rank on."""
    curve: FloatArray = np.arange(1.0, DEEPEST + 1) ** -exponent
    return curve


def fit(shown: Shown) -> tuple[FloatArray, FloatArray] | None:
    """Estimate the curve (DEEPEST,), and the curves (GROUPS, DEEPEST) without the sessions of each group.

    A session is in group ``session % GROUPS``. Curves are relative to the first rank and never increase. None if too
    few clicks are on clips that were shown at different ranks.
    """
    varied = _of_varied_pairs(shown)
    if len(np.unique(shown.session[varied & shown.clicked])) < LEAST_SESSIONS:
        return None
    rank = np.minimum(shown.rank[varied], DEEPEST)
    cells, cell = np.unique(shown.pair[varied] * (DEEPEST + 1) + rank, return_inverse=True)
    pair, rank = np.divmod(cells, DEEPEST + 1)
    _, pair = np.unique(pair, return_inverse=True)
    # Counts of each cell (rows) in each group of sessions (columns).
    at = cell * GROUPS + shown.session[varied] % GROUPS
    shows = np.bincount(at, minlength=len(cells) * GROUPS).reshape(-1, GROUPS).astype(float)
    clicks = np.bincount(at, shown.clicked[varied], minlength=len(cells) * GROUPS).reshape(-1, GROUPS)
    all_shows, all_clicks = shows.sum(axis=1), clicks.sum(axis=1)
    parts = _parts(rank)
    slopes = _slopes(pair, parts, all_shows, all_clicks, np.ones(parts.shape[1]), _STEPS)
    without = [
        _slopes(pair, parts, all_shows - shows[:, each], all_clicks - clicks[:, each], slopes, _STEPS_WITHOUT)
        for each in range(GROUPS)
    ]
    return _curve(slopes), np.array([_curve(each) for each in without])


def _of_varied_pairs(shown: Shown) -> npt.NDArray[np.bool_]:
    """Return which results are of pairs that were clicked, and shown at more than one rank."""
    size = int(shown.pair.max()) + 1
    first, last = np.full(size, np.iinfo(np.intp).max), np.zeros(size, np.intp)
    np.minimum.at(first, shown.pair, shown.rank)
    np.maximum.at(last, shown.pair, shown.rank)
    return ((first < last) & (np.bincount(shown.pair[shown.clicked], minlength=size) > 0))[shown.pair]


def _parts(rank: IntArray) -> FloatArray:
    """Return how much of each stretch between knots (k,) is before each rank (m,), on a logarithmic scale: (m, k)."""
    parts: FloatArray = np.clip(np.log(rank)[:, None] - KNOTS[:-1], 0, np.diff(KNOTS))
    return parts


def _slopes(
    pair: IntArray, parts: FloatArray, shows: FloatArray, clicks: FloatArray, start: FloatArray, steps: int
) -> FloatArray:
    """Fit clicks = shows * attracted[pair] * exp(-parts @ slopes) by maximum penalised Poisson likelihood.

    The pairs' effects are maximised out, which leaves a multinomial likelihood for each pair's clicks. It is concave,
    so Newton's method finds the maximum.
    """
    count = parts.shape[1]
    bends = np.diff(np.eye(count), axis=0) / _BEND
    penalty = bends.T @ bends + 1e-6 * np.eye(count)
    of_pair = np.bincount(pair, clicks)
    slopes = start
    for _ in range(steps):
        exposed = shows * np.exp(-parts @ slopes)
        expected = exposed * (of_pair / np.maximum(np.bincount(pair, exposed), _LEAST))[pair]
        means = np.array([np.bincount(pair, expected * part) for part in parts.T]).T
        gradient = parts.T @ (expected - clicks) - penalty @ slopes
        curvature = (parts * expected[:, None]).T @ parts + penalty
        curvature -= (means / np.maximum(of_pair, _LEAST)[:, None]).T @ means
        step = np.linalg.solve(curvature, gradient)
        slopes = slopes + np.clip(step, -1, 1)
        if np.abs(step).max() < _CONVERGED:
            break
    return slopes


_LEAST = 1e-9
"""Keeps quotients finite where there are no clicks."""
_CONVERGED = 1e-6


def _curve(slopes: FloatArray) -> FloatArray:
    curve = np.exp(-_parts(np.arange(1, DEEPEST + 1)) @ slopes)
    found: FloatArray = np.maximum(np.minimum.accumulate(curve), LEAST_EXAMINED)
    return found
