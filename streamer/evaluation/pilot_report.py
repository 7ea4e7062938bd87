"""The pilot's report and its decision: as JSON, as tables for a terminal and as an HTML page."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from rich.table import Table as TerminalTable

from streamer.evaluation.page import Headline, Page, Section, Table, Text, show
from streamer.terminal import plain

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from streamer.evaluation.page import Shown

Data = dict[str, Any]

YES, NO, UNKNOWN = "yes", "no", "not known"
GO, STOP, COLLECT = "go", "stop", "collect more"
BIAS = (
    "Clicks have position bias: users saw the engine's order, and the first results are clicked most in any order. "
    "This overrates the engine's order, because clips that reranking moved up were rarely seen. A gain here is "
    "therefore a lower estimate; only an A/B test or interleaving of both orders gives the true difference."
)


@dataclass(frozen=True, slots=True)
class Limits:
    """The limits of the criteria; docs/pilot.md explains them."""

    queries: int = 1_000
    clicked: int = 200
    not_embedded: float = 0.1
    degraded: float = 0.01
    latency_ms: float = 500.0
    overlap: float = 0.98
    mrr_loss: float = 0.01


def decide(found: Mapping[str, Any], limits: Limits) -> Data:
    """Return the figures with each criterion's figure, limit and result, and the decision."""
    clicks = found["clicks"] or {}
    mrr = clicks.get("measures", {}).get("MRR", {})
    service, order = found["service"], found["order"]
    criteria = [
        _criterion("enough queries", found["queries"], "at least", limits.queries),
        _criterion(
            "share of candidates without frames",
            found["coverage"]["not_embedded_share"],
            "at most",
            limits.not_embedded,
        ),
        _criterion("rank-biased overlap with the engine's order", order["overlap"], "at most", limits.overlap),
        _criterion("share of degraded queries", service["degraded_share"], "at most", limits.degraded),
        _criterion("latency p95 (ms)", service["p95_ms"], "at most", limits.latency_ms),
        _criterion("enough queries with clicks", clicks.get("queries"), "at least", limits.clicked),
        _criterion("MRR change, lower 95 % bound", mrr.get("gain_low"), "at least", -limits.mrr_loss),
    ]
    answers = {each["name"]: each["met"] for each in criteria}
    enough = all(answers[name] == YES for name in ("enough queries", "enough queries with clicks"))
    if not enough:
        decision = COLLECT
    else:
        decision = STOP if NO in answers.values() else COLLECT if UNKNOWN in answers.values() else GO
    return {**found, "limits": asdict(limits), "criteria": criteria, "decision": decision}


def _criterion(name: str, figure: float | None, kind: str, limit: float) -> Data:
    if figure is None:
        return {"name": name, "figure": None, "kind": kind, "limit": limit, "met": UNKNOWN}
    met = figure >= limit if kind == "at least" else figure <= limit
    return {"name": name, "figure": figure, "kind": kind, "limit": limit, "met": YES if met else NO}


def _decisions(found: Data) -> Iterator[list[Shown | str]]:
    for number in range(len(found["criteria"])):
        at = ("criteria", number)
        kind = found["criteria"][number]["kind"]
        name, met = show(found, *at, "name"), show(found, *at, "met")
        yield [name, show(found, *at, "figure", form=".4g"), kind, show(found, *at, "limit", form="g"), met]


_DECISION = ("criterion", "figure", "", "limit", "met")
_CLICKS = ("measure", "engine", "reranked", "change", "95 % CI from", "to", "p")
_FIGURES = (
    ("queries", ("queries",), ""),
    ("rank-biased overlap with the engine's order", ("order", "overlap"), ".3f"),
    ("Kendall's tau vs. engine order", ("order", "tau"), ".3f"),
    ("share of top-10 results that are new", ("order", "new_in_first"), ".3f"),
    ("share of top-10 results that moved", ("order", "moved_in_first"), ".3f"),
    ("share of top-10 moments after the first second", ("order", "later_moments"), ".3f"),
    ("share of candidates without frames", ("coverage", "not_embedded_share"), ".3f"),
    ("share of degraded queries", ("service", "degraded_share"), ".4f"),
    ("latency p50 (ms)", ("service", "p50_ms"), ".1f"),
    ("latency p95 (ms)", ("service", "p95_ms"), ".1f"),
    ("latency p99 (ms)", ("service", "p99_ms"), ".1f"),
)


def _figures(found: Data) -> list[list[Shown | str]]:
    return [[name, show(found, *path, form=form)] for name, path, form in _FIGURES]


def _click_rows(found: Data) -> list[list[Shown | str]]:
    rows: list[list[Shown | str]] = []
    for name in found["clicks"]["measures"]:
        at = ("clicks", "measures", name)
        forms = {"before": ".4f", "after": ".4f", "gain": "+.4f", "gain_low": "+.4f", "gain_high": "+.4f", "p": ".2g"}
        rows.append([name, *(show(found, *at, key, form=form) for key, form in forms.items())])
    return rows


def terminal(found: Data) -> Iterator[TerminalTable]:
    """Make the terminal tables: figures, clicks, decision."""
    tables: list[tuple[str, tuple[str, ...], list[list[Shown | str]]]] = [
        (f"The first {found['top']} results", ("figure", ""), _figures(found))
    ]
    if found["clicks"] is not None:
        tables.append(("Clicks (position bias favours the engine's order)", _CLICKS, _click_rows(found)))
    tables.append((f"Decision: {found['decision']}", _DECISION, list(_decisions(found))))
    for title, columns, rows in tables:
        table = TerminalTable(*columns, title=title, title_justify="left")
        for row in rows:
            table.add_row(*(plain(str(cell)) for cell in row))
        yield table


def page(found: Data) -> Page:
    """Make the HTML page."""
    headline = [
        Headline(show(found, "decision"), "decision", "gain" if found["decision"] == GO else ""),
        Headline(show(found, "queries"), "queries"),
        Headline(show(found, "order", "overlap", form=".3f"), "rank-biased overlap with the engine's order"),
        Headline(show(found, "order", "new_in_first", form=".3f"), "share of top-10 results that are new"),
    ]
    sections = [
        Section("Decision", [Table(_DECISION, list(_decisions(found)), frozenset({1, 3}))]),
        Section("Changes", [Table(("figure", ""), _figures(found), frozenset({1}))]),
    ]
    if found["clicks"] is not None:
        numeric = frozenset(range(1, len(_CLICKS)))
        sections.append(Section("Clicks", [Text(BIAS), Table(_CLICKS, _click_rows(found), numeric)]))
    lead = f"The first {found['top']} results of each query, in the engine's order and reranked."
    return Page("Effect of reranking on recorded queries", lead, found, headline, sections)
