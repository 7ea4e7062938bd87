"""Extended inferred AP a second time, slowly, in exact fractions, from its definition alone."""

from __future__ import annotations

from fractions import Fraction
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

TINY, THRICE = Fraction("0.00001"), Fraction("0.00003")


def brute_infap(scores: Mapping[str, float], pool: Mapping[str, tuple[str, int]]) -> float:
    """``scores``: of each shot returned. ``pool``: of each pooled shot its stratum and rel."""
    ranked = sorted(scores, key=lambda shot: (scores[shot], shot.encode()), reverse=True)[:1000]
    strata = {stratum for stratum, _ in pool.values()}

    def count(shots: list[str], stratum: str, *, least: int) -> int:
        return sum(shot in pool and pool[shot][0] == stratum and pool[shot][1] >= least for shot in shots)

    everything = list(pool)
    expected = {}
    for stratum in strata:
        judged = count(everything, stratum, least=0)
        share = Fraction(count(everything, stratum, least=1), judged) if judged else Fraction(0)
        expected[stratum] = share * count(everything, stratum, least=-99)
    total = sum(expected.values())
    if total == 0:
        return 0.0
    result = Fraction(0)
    for stratum in strata:
        precisions = []
        for position, shot in enumerate(ranked):
            if shot not in pool or pool[shot][0] != stratum or pool[shot][1] <= 0:
                continue
            above, rank = ranked[:position], position + 1
            pooled_above = sum(each in pool for each in above)
            precision = Fraction(1, rank)
            if pooled_above:
                precision += Fraction(pooled_above, rank) * sum(
                    Fraction(count(above, each, least=-99), pooled_above)
                    * (count(above, each, least=1) + TINY)
                    / (count(above, each, least=0) + THRICE)
                    for each in strata
                )
            precisions.append(precision)
        if precisions:
            result += expected[stratum] / total * sum(precisions) / count(everything, stratum, least=1)
    return float(result * total / 1000 if total > 1000 else result)
