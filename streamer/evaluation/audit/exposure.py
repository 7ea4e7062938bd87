"""The exposure of groups of clips in one ranking, and how far it is from a target. Pure functions on arrays.

A user looks at the first results more than at later ones. The exposure of a rank is the discount that TREC's Fair
Ranking track uses, 1 / log2(max(rank, 2)), divided by the sum over all ranks that count. A group's exposure is that of
its clips; a clip in several groups gives each of them its part.

AWRF (attention-weighted rank fairness; Sapiezynski et al., "Quantifying the Impact of User Attention on Fair Group
Representation in Ranked Lists", WWW 2019; Ekstrand et al., "Overview of the TREC 2022 Fair Ranking Track") is 1 less
the Jensen-Shannon divergence of the groups' exposure from a target, with natural logarithms as in the track's program:
1 if they are equal, and 1 - ln 2 = 0.307 if they have nothing in common.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import numpy.typing as npt

    FloatArray = npt.NDArray[np.float64]


def discount(count: int) -> FloatArray:
    """Return the discounts (count,) of the ranks from 1, not normalised."""
    found: FloatArray = 1 / np.log2(np.maximum(np.arange(1, count + 1), 2))
    return found


def exposure(membership: npt.NDArray[Any]) -> FloatArray:
    """Return the exposure (g,) of each group in a ranking, best result first, whose rows are clips.

    ``membership`` (n, g) holds each clip's part in each group, each row with the sum 1; n is at least 1.
    """
    weights = discount(len(membership))
    found: FloatArray = weights @ membership / weights.sum()
    return found


def divergence(one: FloatArray, other: FloatArray) -> float:
    """Return the Jensen-Shannon divergence, in nats, of two distributions (g,)."""
    mixture = (one + other) / 2
    return float((_entropy(one, mixture) + _entropy(other, mixture)) / 2)


def _entropy(part: FloatArray, of: FloatArray) -> float:
    """Return the relative entropy of ``part``; a group without exposure adds nothing to it."""
    there = part > 0
    return float((part[there] * np.log(part[there] / of[there])).sum())


def awrf(exposed: FloatArray, target: FloatArray) -> float:
    """Return AWRF of the groups' exposure (g,) for a target (g,), both distributions."""
    return 1 - divergence(exposed, target)
