"""What figures mean, in words: measures in a line each, verdicts of comparisons, and settings to paste."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from streamer.evaluation.measures import RANKS

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

Data = dict[str, Any]

SIGNIFICANT = 0.05
HELPS, HURTS, OPEN = "helps", "hurts", "not shown"

_EXPLAINED = {
    "AP": "average precision: the mean, over a topic's relevant results, of the share of relevant ones among all "
    "results down to each of them; 1 if all relevant results stand first, near 0 if they stand deep or are missing",
    "infAP": "inferred average precision: average precision (the mean, over a topic's relevant results, of the share "
    "of relevant ones among all results down to each of them; 1 if all stand first), estimated from a sample of "
    "judgments",
    "nDCG": "normalized discounted cumulative gain: relevant results count the less the deeper they stand; 1 is the "
    "best order possible",
    "infNDCG": "normalized discounted cumulative gain, in which relevant results count the less the deeper they stand, "
    "estimated from a sample of judgments; 1 is the best order possible",
    "P": "precision: the share of relevant ones among the first k results",
    "R": "recall: the share of a topic's relevant results that are among the first k",
    "RR": "reciprocal rank: 1 / the rank of the first relevant result",
    "Success": "1 if a relevant result is among the first k, otherwise 0",
    "MdR": "the median rank of each topic's best relevant result; less is better",
    "MnR": "the mean rank of each topic's best relevant result; less is better",
}


def explained(measures: Iterable[str]) -> list[str]:
    """Say in a line for each measure, by its canonical name, what it is."""
    return [f"{measure} is {_EXPLAINED[measure.partition('@')[0]]}." for measure in measures]


def effect(compared: Mapping[str, Any]) -> str:
    """Say whether a comparison shows that reranking helps.

    It is the corrected p that says so, and where gains are skewed and topics few also the bootstrap interval.
    """
    p, gain = compared["holm_p"], compared["gain"]
    if p is None or p >= SIGNIFICANT or not gain:
        return OPEN
    if compared["is_doubtful"]:
        low, high = compared["bootstrap_low"], compared["bootstrap_high"]
        if low is None or low <= 0 <= high:
            return OPEN
    return HELPS if gain > 0 else HURTS


def comparison(measure: str, compared: Mapping[str, Any], what: str = "Reranking") -> str:
    """Say in a sentence what a comparison in ``measure`` means; ``what`` was compared with the engine's run."""
    topics = compared["topics"]
    mean = measure if measure in RANKS else f"mean {measure}"
    move = f"{mean} goes from {compared['before']:.4f} to {compared['after']:.4f} ({compared['gain']:+.4f}"
    if compared["gain_low"] is not None:
        move += f", {compared['confidence']:.0%} interval {compared['gain_low']:+.4f} to {compared['gain_high']:+.4f}"
    move += f") over {topics:,} topic{'s' * (topics != 1)}; {compared['wins']:,} gain and {compared['losses']:,} lose"
    said = effect(compared)
    if said == HELPS:
        return f"{what} helps: {move}."
    if said == HURTS:
        return f"{what} hurts: {move}."
    return f"It is not shown whether {_lower(what)} helps or hurts: {move}."


def advice(measures: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    """Yield what to do after a comparison by several measures, the first of which decides."""
    first, *others = measures
    said = effect(measures[first])
    if said == HELPS:
        yield "Try it on your own queries next: streamer pilot reports what changes for them, and decides."
    elif said == HURTS:
        yield (
            "Keep the engine's order, or let it weigh more: streamer sweep measures each alpha, and says which one "
            "gains on unseen topics."
        )
    else:
        yield (
            "Judge more topics: the interval halves with four times as many. streamer sweep says how large a gain so "
            "many topics can show."
        )
    if measures[first]["losses"]:
        yield "Look at the topics that lose: their first results stand below, and streamer sweep bounds how many may."
    against = [name for name in others if {said, effect(measures[name])} == {HELPS, HURTS}]
    if against:
        yield f"{', '.join(against)} says the opposite of {first}: decide which measure is nearer to what users want."


def variables(method: Mapping[str, Any]) -> dict[str, str]:
    """Return the environment variables that set a method's parameters, given by their names."""
    return {f"STREAMER_{name.upper()}": str(method[name]) for name in _METHOD if name in method}


_METHOD = ("alpha", "depth", "normalization", "missing", "pooling")


def _lower(what: str) -> str:
    return what[:1].lower() + what[1:] if what == "Reranking" else what
