"""The quality of a ranked list; computed here so that the demo needs no extra package."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence


def average_precision(ranked: Sequence[str], relevant: Collection[str]) -> float:
    """Compute non-interpolated average precision: the mean, over all relevant ids, of the precision at its rank.

    ``ranked``: distinct ids, best first. A relevant id that is not in the list counts as 0. Raises :class:`ValueError`
    if nothing is relevant, because the measure is undefined then.
    """
    if not relevant:
        raise ValueError("average precision is undefined where nothing is relevant")
    found, total = 0, 0.0
    for rank, identifier in enumerate(ranked, start=1):
        if identifier in relevant:
            found += 1
            total += found / rank
    return total / len(relevant)
