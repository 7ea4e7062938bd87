"""Inferred NDCG a second time, slowly, one shot after the other, from its definition alone."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping


def brute_infndcg(scores: Mapping[str, float], pool: Mapping[str, tuple[str, int]]) -> float:
    """``scores``: of each shot returned. ``pool``: of each pooled shot its stratum and rel."""
    best = ideal(pool)
    if best == 0:
        return 0.0
    ranked = sorted(scores, key=lambda shot: (scores[shot], shot.encode()), reverse=True)[:1000]
    total = 0.0
    for stratum in {stratum for stratum, _ in pool.values()}:
        of = {shot: rel for shot, (other, rel) in pool.items() if other == stratum}
        here = [(rank, of[shot]) for rank, shot in enumerate(ranked, start=1) if shot in of]
        judged = [(rank, rel) for rank, rel in here if rel >= 0]
        if judged:
            # The mean gain of a judged shot, for each pooled one.
            total += len(here) * sum(rel / math.log2(rank + 1) for rank, rel in judged) / len(judged)
    return total / best


def ideal(pool: Mapping[str, tuple[str, int]]) -> float:
    """Return the largest DCG of 1000 results, whose blocks of equal relevance are as large as the pool lets expect."""
    total, above = 0.0, 0.0
    for grade in sorted({rel for _, rel in pool.values() if rel > 0}, reverse=True):
        block = expected(pool, grade)
        places = [above + 1 + number for number in range(int(block) + 1)]
        for number, rank in enumerate(places):
            # The block ends at its expected size, and at rank 1000, but its first place is always there.
            if rank <= above + block and (number == 0 or places[number - 1] < 1000):
                total += grade / math.log2(rank + 1)
        above += block
    return total


def expected(pool: Mapping[str, tuple[str, int]], grade: int) -> float:
    """Return the number of pooled shots to expect with this relevance."""
    total = 0.0
    for stratum in sorted({stratum for stratum, _ in pool.values()}):
        rels = [rel for other, rel in pool.values() if other == stratum]
        if count := rels.count(grade):
            total += count * len(rels) / sum(rel >= 0 for rel in rels)
    return total
