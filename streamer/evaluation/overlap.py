"""How similar two rankings are to a user who looks at the first results most.

Rank-biased overlap (Webber, Moffat, Zobel, "A Similarity Measure for Indefinite Rankings", TOIS 2010): RBO_EXT with
p = 0.9, which gives the first ten ranks 86 % of the weight.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

PERSISTENCE = 0.9


def rank_biased_overlap(initial_ranks: np.ndarray[Any, Any]) -> float:
    """Return RBO_EXT of two lists' first k results from the ranks (k,), from 1, of one's results in the other."""
    depths = np.arange(1, len(initial_ranks) + 1)
    # The overlap at depth d: results among the first d of one list with a rank up to d in the other.
    enters = np.maximum(initial_ranks, depths)
    shared = np.searchsorted(np.sort(enters), depths, side="right")
    agreement = shared / depths
    weights = PERSISTENCE ** (depths - 1)
    return float((1 - PERSISTENCE) * (agreement * weights).sum() + agreement[-1] * PERSISTENCE ** len(depths))


def overlap_of(one: Sequence[Any], other: Sequence[Any]) -> float:
    """Return the rank-biased overlap of two lists of k >= 1 results, which may hold different ones."""
    rank_of = {each: rank for rank, each in enumerate(other, start=1)}
    return rank_biased_overlap(np.array([rank_of.get(each, len(one) + 1) for each in one]))
