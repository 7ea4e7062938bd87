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
Econometrics 1999). Its maximum is found by the same kind of alternation between pairs and ranks.
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
ASSUMED: Mapping[str, float] = {"1/rank": 1.0, "1/sqrt(rank)": 0.5}
"""The exponents of the assumed curves."""
ESTIMATED = "estimated from these clicks"
BINS = np.array([1, 2, 3, 4, 6, 9, 14, 21, 36, 61, DEEPEST + 1])
"""Ranks that share one parameter, by their first rank; the last is an end. Neighbours with too few clicks are joined."""
LEAST_BINS = 3
LEAST_SESSIONS = 40
"""A bin has so many sessions with clicks on clips that were shown at different ranks."""
GROUPS = 20
"""Number of groups of sessions, without each of which the curve is estimated again."""
_ITERATIONS = 500
_CONVERGED = 1e-4


@dataclass(frozen=True, slots=True)
class Shown:
    """Results as they were shown (m,): ``pair``, a number for query text and clip; ``rank``; ``clicked``; ``session``."""

    pair: IntArray
    rank: IntArray
    clicked: npt.NDArray[np.bool_]
    session: IntArray


def assumed(exponent: float) -> FloatArray:
    """Return the curve (DEEPEST,) of rank ** -exponent, from the first rank on."""
    curve: FloatArray = np.arange(1, DEEPEST + 1) ** -exponent
    return curve


def fit(shown: Shown) -> tuple[FloatArray, FloatArray] | None:
    """Estimate the curve (DEEPEST,), and the curves (GROUPS, DEEPEST) without the sessions of each group.

    A session is in group ``session % GROUPS``. Curves are relative to the first rank and never increase. Between the
    bins' middles, and beyond the last one, they are interpolated on logarithmic scales. None if too few clicks are on
    clips that were shown at different ranks.
    """
    edges = BINS
    varied = _of_varied_pairs(shown, edges)
    edges = _joined(shown, varied, edges)
    if len(edges) <= LEAST_BINS:
        return None
    varied = _of_varied_pairs(shown, edges)
    pair, place, session = shown.pair[varied], _bin(shown.rank[varied], edges), shown.session[varied]
    clicked = shown.clicked[varied]
    width = len(edges) - 1
    cells, cell = np.unique(pair * width + place, return_inverse=True)
    pair, place = np.divmod(cells, width)
    _, pair = np.unique(pair, return_inverse=True)
    # Counts of each cell (rows) in each group of sessions (columns).
    at = cell * GROUPS + session % GROUPS
    shows = np.bincount(at, minlength=len(cells) * GROUPS).reshape(-1, GROUPS).astype(float)
    clicks = np.bincount(at, clicked, minlength=len(cells) * GROUPS).reshape(-1, GROUPS)
    all_shows, all_clicks = shows.sum(axis=1), clicks.sum(axis=1)
    whole = _alternate(pair, place, all_shows, all_clicks, 1.0 / edges[:-1])
    without = [
        _curve(_alternate(pair, place, all_shows - shows[:, each], all_clicks - clicks[:, each], whole), edges)
        for each in range(GROUPS)
    ]
    return _curve(whole, edges), np.array(without)


def _bin(rank: IntArray, edges: IntArray) -> IntArray:
    return np.searchsorted(edges, np.minimum(rank, DEEPEST), side="right") - 1


def _of_varied_pairs(shown: Shown, edges: IntArray) -> npt.NDArray[np.bool_]:
    """Return which results are of pairs that were clicked, and shown in more than one bin."""
    place = _bin(shown.rank, edges)
    size = int(shown.pair.max()) + 1
    first, last = np.full(size, len(edges)), np.full(size, -1)
    np.minimum.at(first, shown.pair, place)
    np.maximum.at(last, shown.pair, place)
    return ((first < last) & (np.bincount(shown.pair[shown.clicked], minlength=size) > 0))[shown.pair]


def _joined(shown: Shown, varied: npt.NDArray[np.bool_], edges: IntArray) -> IntArray:
    """Join neighbouring bins until each has enough sessions with clicks; returns the edges that remain."""
    chosen = varied & shown.clicked
    sessions, place = shown.session[chosen], _bin(shown.rank[chosen], edges)
    kept, last = [], 0
    for each in range(len(edges) - 1):
        inside = (place >= last) & (place <= each)
        if len(np.unique(sessions[inside])) >= LEAST_SESSIONS:
            kept.append(int(edges[last]))
            last = each + 1
    return np.array([*kept, int(edges[-1])])


def _alternate(pair: IntArray, place: IntArray, shows: FloatArray, clicks: FloatArray, start: FloatArray) -> FloatArray:
    """Fit clicks = shows * examined[place] * attracted[pair] by maximum Poisson likelihood; returns ``examined``."""
    of_pair = np.bincount(pair, clicks)
    of_place = np.bincount(place, clicks, minlength=len(start))
    examined = np.maximum(start, _LEAST)
    for _ in range(_ITERATIONS):
        attracted = of_pair / np.maximum(np.bincount(pair, shows * examined[place]), _LEAST)
        new = of_place / np.maximum(np.bincount(place, shows * attracted[pair], minlength=len(start)), _LEAST)
        new = np.maximum(new / max(new[0], _LEAST), _LEAST)
        moved = np.abs(np.log(new / examined)).max()
        examined = new
        if moved < _CONVERGED:
            break
    return examined


_LEAST = 1e-9
"""Keeps quotients finite where there are no clicks."""


def _curve(examined: FloatArray, edges: IntArray) -> FloatArray:
    middles = np.log(np.sqrt(edges[:-1] * (edges[1:] - 1.0)))
    values = np.log(np.maximum(examined, 1 / DEEPEST))
    ranks = np.log(np.arange(1, DEEPEST + 1))
    curve = np.interp(ranks, middles, values)
    beyond = ranks > middles[-1]
    slope = (values[-1] - values[0]) / (middles[-1] - middles[0])
    curve[beyond] = values[-1] + slope * (ranks[beyond] - middles[-1])
    curve = np.minimum.accumulate(np.exp(curve))
    found: FloatArray = np.maximum(curve / curve[0], 1 / DEEPEST)
    return found
