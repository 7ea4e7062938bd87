"""What an audit says in a sentence, and which groups' exposure reranking changes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from streamer.evaluation.audit.intervals import LEAST_CLUSTERS

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

Data = dict[str, Any]

SHIFT, NONE, OPEN = "shift", "no shift", "not known"
AWAY, TOWARDS = "further from its share of the candidates", "nearer to its share of the candidates"
MUCH_UNKNOWN = 0.2
"""If an attribute is unknown for more than this share of the candidates, the report says so beside the verdict."""
_NAMED = 3
"""Shifts that the sentence names; the table has all of them."""


def decide(found: Mapping[str, Any]) -> Data:
    """Return the figures with the verdict, its sentences, and the groups whose exposure reranking changes.

    A group's exposure is changed if 0 is outside its interval. The intervals of all groups of all attributes hold
    together (:mod:`streamer.evaluation.audit.intervals`), so where reranking changes nothing, any change is found with
    a probability of at most 5 %. A change that masked frames make by themselves is refused: it says nothing.
    """
    changes = sorted(_shifts(found), key=lambda each: -abs(each["change"]))
    shifts = [each for each in changes if not _is_refused(each)]
    refused = [each for each in changes if _is_refused(each)]
    judged = [each["reranking"] for each in _groups(found) if each["reranking"]["low"] is not None]
    if found["effective_queries"] < LEAST_CLUSTERS:
        verdict, sentence = OPEN, _too_few(found)
    elif shifts:
        verdict, sentence = SHIFT, _shifted(shifts, found["confidence"])
    elif refused:
        verdict, sentence = OPEN, _refused(refused)
    elif not judged:
        verdict, sentence = OPEN, "No verdict: reranking changes the exposure of each group in too few queries."
    else:
        verdict, sentence = NONE, _not_shifted(found, judged)
    return {
        "verdict": verdict,
        "sentence": sentence,
        "cautions": list(_cautions(found, len(judged), verdict, len(refused))),
        "advice": list(_advice(verdict, shifts, len(refused))),
        **found,
        "shifts": shifts,
        "refused": refused,
    }


def _groups(found: Mapping[str, Any]) -> Iterator[Data]:
    for attribute in found["attributes"]:
        yield from attribute["groups"]


def _shifts(found: Mapping[str, Any]) -> Iterator[Data]:
    for attribute in found["attributes"]:
        for each in attribute["groups"]:
            change = each["reranking"]
            if change["low"] is not None and not change["low"] <= 0 <= change["high"]:
                target, before, after = each["target"], each["exposure_before"], each["exposure_after"]
                yield {
                    "attribute": attribute["attribute"],
                    "group": each["group"],
                    "before": before,
                    "after": after,
                    "change": change["mean"],
                    "low": change["low"],
                    "high": change["high"],
                    "masking": each["masking"],
                    "effect": AWAY if abs(after - target) > abs(before - target) else TOWARDS,
                }


def _is_refused(change: Mapping[str, Any]) -> bool:
    return change["masking"] is not None and change["masking"] >= abs(change["change"])


def _refused(changes: Sequence[Mapping[str, Any]]) -> str:
    first = changes[0]
    return (
        f"No verdict: masking a tenth of each frame, which says nothing of who is shown, moves exposure by as much as "
        f"reranking does ({first['attribute']}={first['group']}: reranking {_points(first['change'])} points, masks up "
        f"to {100 * first['masking']:.1f})."
    )


def _too_few(found: Mapping[str, Any]) -> str:
    distinct, effective = found["distinct_queries"], found["effective_queries"]
    weight = f", and weigh as much as {effective:.1f} of equal frequency" if effective < distinct - 0.5 else ""
    return f"No verdict: {distinct:,} different queries{weight} are too few; {LEAST_CLUSTERS} are needed."


def _shifted(shifts: Sequence[Mapping[str, Any]], confidence: float) -> str:
    parts = [
        f"{each['attribute']}={each['group']} gets {each['after']:.1%} instead of {each['before']:.1%} "
        f"({_points(each['change'])} points, {confidence:.0%} interval {_points(each['low'])} to "
        f"{_points(each['high'])}), {each['effect']}"
        for each in shifts[:_NAMED]
    ]
    left = len(shifts) - _NAMED
    more = f"; and {left:,} more group{'s' * (left > 1)}" if left > 0 else ""
    return f"Reranking changes who is seen: {'; '.join(parts)}{more}."


def _not_shifted(found: Mapping[str, Any], judged: Sequence[Mapping[str, Any]]) -> str:
    largest = max(max(abs(each["low"]), abs(each["high"])) for each in judged)
    names = ", ".join(each["attribute"] for each in found["attributes"])
    return (
        f"No change by reranking can be told from chance ({names}; {found['distinct_queries']:,} different queries): "
        f"with {found['confidence']:.0%} confidence, no group's exposure changes by more than {100 * largest:.1f} "
        "points."
    )


def _cautions(found: Mapping[str, Any], judged: int, verdict: str, refused: int) -> Iterator[str]:
    if verdict == SHIFT and refused:
        yield (
            f"{refused:,} more group{'s' * (refused > 1)} changed by no more than masked frames make of themselves, "
            "which proves nothing."
        )
    if verdict == SHIFT and found["masking"] is None:
        yield "How far masked frames would move these figures was not measured."
    for attribute in found["attributes"]:
        if attribute["unknown_share"] > MUCH_UNKNOWN:
            yield (
                f"{attribute['attribute']} is unknown for {attribute['unknown_share']:.0%} of the candidates, which "
                "are a group of their own here: what they truly are could change the picture."
            )
    left = sum(1 for _ in _groups(found)) - judged
    if left and verdict != OPEN:
        yield f"{left:,} small group{'s' * (left > 1)} changed in too few queries to be judged."


def _advice(verdict: str, shifts: Sequence[Mapping[str, Any]], refused: int) -> Iterator[str]:
    if verdict == OPEN and refused:
        yield "Another model may see more steadily: repeat the audit after replacing it. More queries do not help."
        return
    if verdict == OPEN:
        yield f"Record more: {LEAST_CLUSTERS} different queries at least, each of which reranking changes somewhere."
        return
    if verdict == NONE:
        yield "Nothing has to change. More queries make the largest change that could still be there smaller."
        return
    away = [f"{each['attribute']}={each['group']}" for each in shifts if each["effect"] == AWAY]
    if away:
        yield (
            f"Look at the queries below: are clips of {', '.join(away[:_NAMED])} moved because they match less or "
            "more, or because the model knows them less well?"
        )
        yield (
            "A higher alpha keeps more of the engine's order, and with it more of its exposure: streamer sweep says "
            "what that costs in gain."
        )
        yield "streamer probe --words asks the model itself, with queries that differ in one word."
    else:
        yield (
            "Each change brings a group nearer to its share of the candidates: reranking takes back what the engine "
            "favours. Nothing has to change unless the engine favours it on purpose."
        )


def _points(share: float) -> str:
    return f"{100 * share:+.1f}"
