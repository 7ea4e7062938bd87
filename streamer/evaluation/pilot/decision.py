"""The decision of a pilot: ready for interleaving, stop, or collect more and how much.

Clicks under the engine's order cannot prove that users prefer another order; they can only show that an experiment is
safe, or that it is not worth its risk. So an order is *ready* for an experiment if its estimated change lies above 0
under every assumed position bias, with its whole interval. It is to be *stopped* if the interval lies below the largest
loss that is tolerated, under every one. Each bias is one hypothesis and all must agree (an intersection-union test;
Berger, Technometrics 1982), so no correction for several biases is needed. Anything else means to collect more.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from streamer.evaluation.meaning import variables

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

Data = dict[str, Any]

YES, NO, UNKNOWN = "yes", "no", "not known"
READY, STOP, COLLECT = "ready for interleaving", "stop", "collect more"
GAIN, LOSS, OPEN = "gain", "loss", "open"
"""What the interval under one position bias says."""


@dataclass(frozen=True, slots=True)
class Limits:
    """The limits of the criteria; docs/pilot.md explains them.

    ``margin``: the largest loss of mean discount that is tolerated.
    """

    queries: int = 1_000
    clicked: int = 200
    effective: int = 30
    not_embedded: float = 0.1
    degraded: float = 0.01
    latency_ms: float = 500.0
    overlap: float = 0.98
    margin: float = 0.01


def decide(found: Mapping[str, Any], limits: Limits) -> Data:
    """Return the figures with each criterion, what each position bias says, the decision and what is missing for it."""
    clicks = found["clicks"] or {"queries": None, "estimates": []}
    estimates = [{**each, "says": _says(each, limits)} for each in clicks["estimates"]]
    smallest = min((each["effective_clicks"] for each in estimates), default=None)
    service, order = found["service"], found["order"]
    methods = found.get("methods", [])
    criteria = [
        _criterion("queries", found["queries"], "at least", limits.queries),
        _criterion("queries with clicks", clicks["queries"], "at least", limits.clicked),
        _criterion("effective clicks", smallest, "at least", limits.effective),
        _criterion(
            "share of candidates without frames",
            found["coverage"]["not_embedded_share"],
            "at most",
            limits.not_embedded,
        ),
        _criterion(_OVERLAP, order["overlap"], "at most", limits.overlap),
        _criterion("share of degraded queries", service["degraded_share"], "at most", limits.degraded),
        _criterion(_LATENCY, service["p95_ms"], "at most", limits.latency_ms),
    ]
    for each in criteria:
        each.update(_advice(each, methods[0] if methods else None))
    sides = {each["says"] for each in estimates}
    enough = all(each["met"] == YES for each in criteria[:_COUNTS])
    if enough and sides == {LOSS}:
        decision = STOP
    elif sides == {GAIN} and all(each["met"] == YES for each in criteria):
        decision = READY
    else:
        decision = COLLECT
    decided: Data = {**found, "limits": asdict(limits), "criteria": criteria, "decision": decision}
    if found["clicks"] is not None:
        needed = _needed(estimates, clicks["queries"], limits)
        decided["clicks"] = {**clicks, "estimates": estimates, "needed_queries": needed}
    decided["missing"] = list(_missing(decided)) if decision == COLLECT else []
    return {"sentence": _sentence(decided), **decided}


def _sentence(decided: Data) -> str:
    """Say what the decision means."""
    failed = [each["name"] for each in decided["criteria"] if each["met"] == NO]
    unknown = [each["name"] for each in decided["criteria"] if each["met"] == UNKNOWN]
    if decided["decision"] == READY:
        return (
            "Ready for interleaving: every criterion is met, and reranking brings up what users click on under each "
            "position bias that is assumed."
        )
    if decided["decision"] == STOP:
        return (
            "Stop: reranking pushes down what users click on by more than is tolerated, under each position bias that "
            "is assumed."
        )
    parts = []
    if failed:
        parts.append(f"not met: {', '.join(failed)}")
    if unknown:
        parts.append(f"not known: {', '.join(unknown)}")
    if not parts:
        parts.append("the position biases that are assumed do not agree that reranking gains, or that it loses")
    return f"Collect more before you decide; {'; '.join(parts)}."


_OVERLAP, _LATENCY = "rank-biased overlap with the engine's order", "latency p95 (ms)"
_COUNTS = 3
"""The first criteria say whether there is enough to decide at all."""


def _criterion(name: str, figure: float | None, kind: str, limit: float) -> Data:
    if figure is None:
        return {"name": name, "figure": None, "kind": kind, "limit": limit, "met": UNKNOWN}
    met = figure >= limit if kind == "at least" else figure <= limit
    return {"name": name, "figure": figure, "kind": kind, "limit": limit, "met": YES if met else NO}


def _advice(criterion: Data, method: Mapping[str, Any] | None) -> Data:
    """Return what to do where a criterion is not met or not known, and the settings that do it; ``method`` is in use.

    A lower alpha gives the frames more weight; half the depth about halves what is read and scored.
    """
    name = criterion["name"]
    if criterion["met"] == YES:
        return {"advice": "", "settings": {}}
    if criterion["met"] == UNKNOWN:
        return {"advice": _UNKNOWN_ACTIONS.get(name, _ACTIONS[name]), "settings": {}}
    changed: dict[str, Any] = {}
    if method is not None and name == _OVERLAP:
        changed = {"alpha": round(method["alpha"] / 2, 3)} if method["alpha"] else {}
    elif method is not None and name == _LATENCY:
        changed = {"depth": method["depth"] // 2} if method["depth"] > 1 else {}
    return {"advice": _ACTIONS[name], "settings": variables(changed)}


def _says(estimate: Mapping[str, Any], limits: Limits) -> str:
    if estimate["low"] is None:
        return OPEN
    return GAIN if estimate["low"] > 0 else LOSS if estimate["high"] < -limits.margin else OPEN


def _needed(estimates: Sequence[Mapping[str, Any]], queries: int, limits: Limits) -> int | None:
    """Return how many queries with clicks would decide if the estimates stayed; None if no number would.

    The half-width of an interval falls with the square root of their number.
    """
    if not estimates or any(each["low"] is None for each in estimates):
        return limits.clicked if queries < limits.clicked else None
    halves = [(each["high"] - each["low"]) / 2 for each in estimates]
    for distances in (
        [each["gain"] for each in estimates],
        [-limits.margin - each["gain"] for each in estimates],
    ):
        if min(distances) > 0:
            factor: float = max((half / distance) ** 2 for half, distance in zip(halves, distances, strict=True))
            if factor < _HOPELESS:
                return max(limits.clicked, math.ceil(round(queries * factor, 3)))
    return None


_HOPELESS = 1_000
"""More than so many times the clicks at hand is not a plan."""

_ACTIONS = {
    "queries": "record more queries",
    "queries with clicks": "record more clicks (--clicks or --clicks-topic)",
    "effective clicks": "record more clicks: a few on deep ranks have most of the weight",
    "share of candidates without frames": "wait for the backfill, and look at dead letters "
    "(streamer dlq list clips.uploaded)",
    _OVERLAP: "reranking changes nothing visible: use a lower alpha or a better model",
    "share of degraded queries": "look at the store and the deadline",
    _LATENCY: "use fewer candidates (depth) or more instances",
}
_UNKNOWN_ACTIONS = {
    "queries with clicks": "quality is not known without clicks (--clicks or --clicks-topic)",
    "effective clicks": "no click is on a result of these queries",
    "share of degraded queries": "only a running service knows (--answers or --answers-from-topic)",
    _LATENCY: "only live answers of a running service show it (--answers or --answers-from-topic)",
    _OVERLAP: "no list could change",
    "share of candidates without frames": "no query has candidates",
}


def _missing(decided: Data) -> Iterator[str]:
    """Yield what is missing for a decision, one sentence each."""
    for each in decided["criteria"]:
        if each["met"] == NO:
            yield f"{each['name']}: {_ACTIONS[each['name']]}"
        elif each["met"] == UNKNOWN:
            yield f"{each['name']}: {_UNKNOWN_ACTIONS[each['name']]}"
    clicks = decided["clicks"]
    if clicks is None or not clicks["estimates"]:
        return
    sides = {each["says"] for each in clicks["estimates"]}
    if sides in ({GAIN}, {LOSS}):
        return
    if clicks["needed_queries"] is not None:
        yield f"clicks: about {clicks['needed_queries']:,} queries with clicks would decide, if the estimates stay"
    elif {1, -1} <= {math.copysign(1, each["gain"]) for each in clicks["estimates"]}:
        yield (
            "clicks: gain or loss depends on the position bias that is assumed, and more clicks do not change that; "
            "judge a sample of queries by hand (streamer evaluate)"
        )
    else:
        yield (
            "clicks: the change is too close to none for any realistic number of clicks; judge a sample of queries by "
            "hand (streamer evaluate)"
        )
