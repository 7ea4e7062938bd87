"""What clicks under the order that was shown say about another order: an inverse-propensity estimate.

Users click what they examine, and examine first ranks most, so clicks under one order cannot be counted under another.
A click at rank r therefore counts 1 / p(r), p being the probability of examining that rank: it stands for those who
would have clicked, but did not look (Joachims, Swaminathan, Schnabel, "Unbiased Learning-to-Rank with Biased Feedback",
WSDM 2017). What is estimated is where relevant results stand: the mean of DCG's discount 1 / log2(1 + rank) over the
results that users would click if they examined all, 1 if all stood first. Both sums are estimated, so the estimate is
self-normalised (Swaminathan, Joachims, "The Self-Normalized Estimator for Counterfactual Learning", NIPS 2015), and
weights are clipped at those of rank :data:`~streamer.evaluation.pilot.position_bias.DEEPEST`.

Clicks of one session are not independent. The interval is that of a ratio of sums over sessions: cluster-robust, by
linearisation (Cochran, "Sampling Techniques", 1977, section 6.3) with the jackknife's correction for heavy clusters
(CR3; Bell, McCaffrey, Survey Methodology 2002), and Student's t with Satterthwaite's degrees of freedom.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from streamer.evaluation.measures import missing_extra
from streamer.evaluation.pilot import position_bias

if TYPE_CHECKING:
    import numpy.typing as npt

    FloatArray = npt.NDArray[np.float64]
    IntArray = npt.NDArray[np.intp]

CONFIDENCE = 0.95


@dataclass(frozen=True, slots=True)
class Clicked:
    """Clicked results (m,): the ``session`` (from 0), the rank ``before`` and ``after``, both from 1."""

    session: IntArray
    before: IntArray
    after: IntArray


@dataclass(frozen=True, slots=True)
class Estimate:
    """The mean discount ``before`` and ``after``, and the change with its interval at :data:`CONFIDENCE`.

    ``effective_clicks``: the number of clicks of equal weight that would say as much (Kish, (sum w)^2 / sum w^2).
    ``effective_sessions`` likewise. ``low`` and ``high`` are None where one session says it all.
    """

    before: float
    after: float
    gain: float
    low: float | None
    high: float | None
    effective_clicks: float
    effective_sessions: float


def discount(ranks: IntArray) -> FloatArray:
    """Return DCG's discount of ranks from 1."""
    found: FloatArray = 1 / np.log2(1.0 + ranks)
    return found


def estimate(clicks: Clicked, curve: FloatArray) -> Estimate | None:
    """Estimate the change under a position bias ``curve`` (DEEPEST,); None without clicks.

    Raises MeasureError if scipy is not installed.
    """
    if not len(clicks.session):
        return None
    weights = _weights(clicks, curve)
    residuals = _residuals(clicks, weights)
    return _estimate(clicks, weights, float(np.sqrt((residuals**2).sum())), _freedom(residuals))


def estimate_fitted(clicks: Clicked, curve: FloatArray, without: FloatArray) -> Estimate | None:
    """Estimate the change under a ``curve`` that :func:`~streamer.evaluation.pilot.position_bias.fit` has estimated.

    The uncertainty of the curve is part of the interval: the estimate is repeated without each group of sessions, with
    the curve ``without`` (GROUPS, DEEPEST) it (the delete-a-group jackknife; Kott, Journal of Official Statistics
    2001). By itself that is too short where few deep clicks determine the curve (88 to 95 % of intervals of simulated
    users held the truth), so the error under a known curve is added to it.
    """
    if not len(clicks.session):
        return None
    weights = _weights(clicks, curve)
    groups = position_bias.GROUPS
    gains = []
    for each in range(groups):
        kept = clicks.session % groups != each
        left = Clicked(clicks.session[kept], clicks.before[kept], clicks.after[kept])
        if not len(left.session):
            return _estimate(clicks, weights, 0.0, 0.0)
        gains.append(_gain(left, _weights(left, without[each])))
    deviations = np.array(gains) - _gain(clicks, weights)
    residuals = _residuals(clicks, weights)
    error = float(np.sqrt((groups - 1) / groups * (deviations**2).sum() + (residuals**2).sum()))
    return _estimate(clicks, weights, error, min(_freedom(deviations), _freedom(residuals)))


def _residuals(clicks: Clicked, weights: FloatArray) -> FloatArray:
    """Return each session's part in the error of the gain.

    Divided by what the other sessions weigh, it is the error of an estimate without that session.
    """
    share = np.bincount(clicks.session, weights) / weights.sum()
    parts = np.bincount(clicks.session, weights * (_moves(clicks) - _gain(clicks, weights))) / weights.sum()
    here = share > 0
    found: FloatArray = parts[here] / np.maximum(1 - share[here], 1 / len(share))
    return found


def _freedom(residuals: FloatArray) -> float:
    """Return Satterthwaite's degrees of freedom of a sum of squares, from the kurtosis: n - 1 at most, 0 for one.

    A few sessions with deep clicks make most of the sum, which is then known less well than their number suggests.
    """
    count = len(residuals)
    squares = residuals**2
    spread = (squares**2).sum() - squares.sum() ** 2 / count
    most = float(count - 1)
    return min(most, float(2 * squares.sum() ** 2 / spread)) if spread > 0 else most


def _weights(clicks: Clicked, curve: FloatArray) -> FloatArray:
    found: FloatArray = 1 / curve[np.minimum(clicks.before, position_bias.DEEPEST) - 1]
    return found


def _moves(clicks: Clicked) -> FloatArray:
    return discount(clicks.after) - discount(clicks.before)


def _gain(clicks: Clicked, weights: FloatArray) -> float:
    return float((weights * _moves(clicks)).sum() / weights.sum())


def _effective(weights: npt.NDArray[Any]) -> float:
    """Return Kish's effective number."""
    return float(weights.sum() ** 2 / (weights**2).sum())


def _estimate(clicks: Clicked, weights: FloatArray, error: float, freedom: float) -> Estimate:
    gain = _gain(clicks, weights)
    half = _quantile(freedom) * error if freedom >= 1 else None
    return Estimate(
        before=float((weights * discount(clicks.before)).sum() / weights.sum()),
        after=float((weights * discount(clicks.after)).sum() / weights.sum()),
        gain=gain,
        low=None if half is None else gain - half,
        high=None if half is None else gain + half,
        effective_clicks=_effective(weights),
        effective_sessions=_effective(np.bincount(clicks.session, weights)),
    )


def _quantile(freedom: float) -> float:
    try:
        from scipy.stats import t  # noqa: PLC0415 - an optional extra
    except ImportError as error:
        raise missing_extra(error) from None
    return float(t.ppf((1 + CONFIDENCE) / 2, freedom))
