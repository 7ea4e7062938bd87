"""What a sweep means, in words: which settings are shown to gain, what to do about it, and the settings to paste."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from streamer.evaluation import choice
from streamer.evaluation.meaning import variables

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

Data = dict[str, Any]

STORED = "stored"
"""The frame interval and the precision of records as they are."""
_BEST, _CONSERVATIVE = "best", "conservative"


def decide(found: Mapping[str, Any]) -> Data:
    """Return the verdict's sentence, the advice, and the setting to use with its environment variables.

    It is "best" or "conservative", and None where no setting is shown to gain.
    """
    rule = _rule(found)
    return {
        "sentence": _sentence(found, rule),
        "advice": list(_advice(found, rule)),
        "use": rule,
        "settings": {} if rule is None else _settings(found[rule]),
    }


def _rule(found: Mapping[str, Any]) -> str | None:
    """Return the rule whose setting is to be used.

    The best setting is tested first, and the conservative one, which is preferred, only if that gains: so two tests
    need no correction (fixed-sequence testing).
    """
    validated = found["cross_validation"]
    if not validated or validated[_BEST]["says"] != choice.GAIN:
        return None
    is_safe = found[_CONSERVATIVE] is not None and validated[_CONSERVATIVE]["says"] == choice.GAIN
    return _CONSERVATIVE if is_safe else _BEST


def _settings(point: Mapping[str, Any]) -> dict[str, str]:
    stored = {
        f"STREAMER_{name.upper()}": str(point[name])
        for name in ("frame_interval", "precision")
        if point[name] != STORED
    }
    return variables(point) | stored


def _sentence(found: Mapping[str, Any], rule: str | None) -> str:
    measure, topics = found["measure"], found["topics"]
    validated = found["cross_validation"]
    if not validated:
        return (
            f"No verdict: {topics:,} topic{'s are' if topics != 1 else ' is'} too few to check on unseen ones what "
            "was chosen."
        )
    of = validated[rule or _BEST]
    interval = f"{of['gain']:+.4f}, {of['confidence']:.0%} interval {of['low']:+.4f} to {of['high']:+.4f}"
    if rule is not None:
        point = found[rule]
        return (
            f"Reranking gains: with alpha {point['alpha']:g} and depth {point['depth']:,} (the {rule} setting), mean "
            f"{measure} rises on unseen topics ({interval}; {topics:,} topics)."
        )
    if of["says"] == choice.LOSS:
        return f"Reranking loses: even the best setting lowers mean {measure} on unseen topics ({interval})."
    return (
        f"It is not shown that any setting gains: the best one changes mean {measure} on unseen topics by a mean that "
        f"chance alone could give ({interval}; {topics:,} topics)."
    )


def _advice(found: Mapping[str, Any], rule: str | None) -> Iterator[str]:
    caution = found["caution"]
    if rule is None:
        yield "Keep the engine's order for now: no settings to paste follow from these topics."
        if found["visible"]:
            now = found["visible"][0]
            yield (
                f"Judge more topics: with these {now['topics']:,}, only a mean gain of at least {now['gain']:.4f} "
                "would be seen with a probability of 80 %; the table says how it falls with their number."
            )
        return
    point = found[rule]
    if found["conservative"] is None:
        yield (
            f"It is not confirmed of any setting that at most {100 * caution['share']:g} % of all topics get worse by "
            f"more than {caution['loss']:g}: judge more topics before all users see it, or allow more (--most-losing, "
            "--loss)."
        )
    for name, value in found["recommended"].items():
        if point[name] != value:
            yield (
                f"{name}={point[name]} is part of this setting, but not shown to gain more than {value}: sweep again "
                f"with {value} alone for the setting without it."
            )
    if any(point[name] != STORED for name in ("frame_interval", "precision")):
        yield "The frame interval or the precision is not that of the stored records: embed the clips again with it."
    if len({each["model"] for each in found["points"]}) > 1:
        yield f"These settings are for the model {point['model']}."
    yield (
        "streamer replay with these settings writes the reranked run, and streamer pilot says what they change for "
        "your own queries."
    )
