"""The pilot's report: what the figures decide, as JSON, tables for a terminal, and an HTML page."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from rich.table import Table as TerminalTable

from streamer.evaluation.page import Headline, Page, Section, Table, Text, show

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from streamer.evaluation.page import Shown

Data = dict[str, Any]

YES, NO, UNKNOWN = "yes", "no", "not known"
GO, STOP, COLLECT = "go", "stop", "collect more"
BIAS = (
    "Clicks carry position bias: people saw the engine's order and click on what stands first, whatever it is. So its "
    "own order looks better than it is, and what reranking brought up was hardly seen. A gain here is worth more than "
    "its number, a loss less; only showing both orders (an A/B test or interleaving) settles it."
)


@dataclass(frozen=True, slots=True)
class Limits:
    """What the figures must reach; docs/pilot.md says why these."""

    queries: int = 1_000
    clicked: int = 200
    not_embedded: float = 0.1
    degraded: float = 0.01
    latency_ms: float = 500.0
    overlap: float = 0.98
    mrr_loss: float = 0.01


def decide(found: Mapping[str, Any], limits: Limits) -> Data:
    """Return ``figures`` with the decision: each criterion's figure, limit and answer, and what follows."""
    clicks = found["clicks"] or {}
    mrr = clicks.get("measures", {}).get("MRR", {})
    service, order = found["service"], found["order"]
    criteria = [
        _criterion("enough queries", found["queries"], "at least", limits.queries),
        _criterion(
            "candidates without frames", found["coverage"]["not_embedded_share"], "at most", limits.not_embedded
        ),
        _criterion("the order changes: overlap of the first ranks", order["overlap"], "at most", limits.overlap),
        _criterion("degraded answers", service["degraded_share"], "at most", limits.degraded),
        _criterion("latency, 95 of 100, ms", service["p95_ms"], "at most", limits.latency_ms),
        _criterion("enough queries with clicks", clicks.get("queries"), "at least", limits.clicked),
        _criterion("clicks: MRR's gain is at least, 95 %", mrr.get("gain_low"), "at least", -limits.mrr_loss),
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
_CLICKS = ("measure", "before", "after", "gain", "95 % from", "to", "p")
_FIGURES = (
    ("queries", ("queries",), ""),
    ("rank-biased overlap with the engine's order", ("order", "overlap"), ".3f"),
    ("Kendall's tau to it", ("order", "tau"), ".3f"),
    ("of the first ten, new there", ("order", "new_in_first"), ".3f"),
    ("of the first ten, moved", ("order", "moved_in_first"), ".3f"),
    ("of the first ten, moment later than the first second", ("order", "later_moments"), ".3f"),
    ("candidates without frames", ("coverage", "not_embedded_share"), ".3f"),
    ("degraded answers", ("service", "degraded_share"), ".4f"),
    ("latency, median, ms", ("service", "p50_ms"), ".1f"),
    ("latency, 95 of 100, ms", ("service", "p95_ms"), ".1f"),
    ("latency, 99 of 100, ms", ("service", "p99_ms"), ".1f"),
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
    """Make the tables: figures, clicks, decision."""
    tables: list[tuple[str, tuple[str, ...], list[list[Shown | str]]]] = [
        (f"The first {found['top']} results", ("figure", ""), _figures(found))
    ]
    if found["clicks"] is not None:
        tables.append(("Clicks, of which position bias favours the engine's order", _CLICKS, _click_rows(found)))
    tables.append((f"Decision: {found['decision']}", _DECISION, list(_decisions(found))))
    for title, columns, rows in tables:
        table = TerminalTable(*columns, title=title, title_justify="left")
        for row in rows:
            table.add_row(*(str(cell) for cell in row))
        yield table


def page(found: Data) -> Page:
    """Make the page."""
    headline = [
        Headline(show(found, "decision"), "what the figures say", "gain" if found["decision"] == GO else ""),
        Headline(show(found, "queries"), "queries"),
        Headline(show(found, "order", "overlap", form=".3f"), "overlap with the engine's order"),
        Headline(show(found, "order", "new_in_first", form=".3f"), "of the first ten are new there"),
    ]
    sections = [
        Section("Decision", [Table(_DECISION, list(_decisions(found)), frozenset({1, 3}))]),
        Section("What changes", [Table(("figure", ""), _figures(found), frozenset({1}))]),
    ]
    if found["clicks"] is not None:
        numeric = frozenset(range(1, len(_CLICKS)))
        sections.append(Section("Clicks", [Text(BIAS), Table(_CLICKS, _click_rows(found), numeric)]))
    lead = f"The first {found['top']} results of each query, as the engine gave them and reranked."
    return Page("What reranking would change here", lead, found, headline, sections)
