"""The pilot's report: as tables for a terminal and as an HTML page."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rich.table import Table as TerminalTable

from streamer.evaluation import first_results
from streamer.evaluation.meaning import variables
from streamer.evaluation.page import Advice, Headline, Page, Section, Settings, Table, Text, show
from streamer.evaluation.pilot.decision import READY
from streamer.terminal import plain

if TYPE_CHECKING:
    from collections.abc import Iterator

    from streamer.evaluation.page import Part, Shown

Data = dict[str, Any]

BIAS = (
    "Users saw the engine's order and clicked first results most, in any order (position bias). So a click counts the "
    "more, the less likely its rank is examined, under each bias that is assumed here; where a query showed the same "
    "clip at different ranks, one is estimated too. The figures are the mean of DCG's discount, 1 / log2(1 + rank), of "
    "the results that users would click if they looked at all: 1 if all stood first. Intervals are for sessions. The "
    "true bias is not known, so a decision holds only if all of these agree, and an experiment has the last word."
)


def _decisions(found: Data) -> Iterator[list[Shown | str]]:
    for number in range(len(found["criteria"])):
        at = ("criteria", number)
        kind = found["criteria"][number]["kind"]
        name, met = show(found, *at, "name"), show(found, *at, "met")
        advice = show(found, *at, "advice")
        yield [name, show(found, *at, "figure", form=".4g"), kind, show(found, *at, "limit", form="g"), met, advice]


_Figures = tuple[tuple[str, tuple[str, ...], str], ...]
_DECISION = ("criterion", "figure", "must be", "limit", "met", "otherwise")
_CLICKS = ("position bias", "engine", "reranked", "change", "95 % CI from", "to", "effective clicks", "says")
_CLICK_FORMS = {
    "bias": "",
    "before": ".4f",
    "after": ".4f",
    "gain": "+.4f",
    "low": "+.4f",
    "high": "+.4f",
    "effective_clicks": ",.0f",
    "says": "",
}
_FIGURES = (
    ("queries", ("queries",), ""),
    ("queries left out: of replays", ("left_out", "replayed"), ""),
    ("queries left out: repeated ids", ("left_out", "repeated"), ""),
    ("lists that could not change, left out of the next five", ("order", "unchangeable"), ""),
    ("rank-biased overlap with the engine's order", ("order", "overlap"), ".3f"),
    ("Kendall's tau vs. engine order", ("order", "tau"), ".3f"),
    ("share of top-10 results that are new", ("order", "new_in_first"), ".3f"),
    ("share of top-10 results that moved", ("order", "moved_in_first"), ".3f"),
    ("share of top-10 moments after the first second", ("order", "later_moments"), ".3f"),
    ("share of candidates without frames", ("coverage", "not_embedded_share"), ".3f"),
    ("share of degraded queries", ("service", "degraded_share"), ".4f"),
    ("live answers", ("service", "live"), ""),
    ("answers later than a minute (backlog or outage)", ("service", "late"), ""),
    ("answers dated before their query (clock skew)", ("service", "negative"), ""),
    ("latency p50 (ms)", ("service", "p50_ms"), ".1f"),
    ("latency p95 (ms)", ("service", "p95_ms"), ".1f"),
    ("latency p99 (ms)", ("service", "p99_ms"), ".1f"),
)


def _figures(found: Data, figures: _Figures) -> list[list[Shown | str]]:
    return [[name, show(found, *path, form=form)] for name, path, form in figures]


_COUNTED = (
    ("clicks", ("clicks", "clicks"), ""),
    ("queries with clicks", ("clicks", "queries"), ""),
    ("of these with a session", ("clicks", "queries_in_sessions"), ""),
    ("sessions", ("clicks", "sessions"), ""),
    ("clicks on clips that were not among the results", ("clicks", "unknown"), ""),
    ("queries with clicks that would decide", ("clicks", "needed_queries"), ""),
)


def _click_rows(found: Data) -> list[list[Shown | str]]:
    return [
        [show(found, "clicks", "estimates", number, key, form=form) for key, form in _CLICK_FORMS.items()]
        for number in range(len(found["clicks"]["estimates"]))
    ]


def _missing(found: Data) -> list[list[Shown | str]]:
    return [[show(found, "missing", number)] for number in range(len(found["missing"]))]


def terminal(found: Data) -> Iterator[TerminalTable]:
    """Make the terminal tables: figures, clicks, decision, and what is missing for one."""
    tables: list[tuple[str, tuple[str, ...], list[list[Shown | str]]]] = [
        (f"The first {found['top']} results", ("figure", ""), _figures(found, _FIGURES))
    ]
    if found["clicks"] is not None:
        tables.append(("Clicks", ("figure", ""), _figures(found, _COUNTED)))
        tables.append(("Where relevant results stand, by the clicks", _CLICKS, _click_rows(found)))
    tables.append((f"Decision: {found['decision']}", _DECISION, list(_decisions(found))))
    if found["missing"]:
        tables.append(("Missing for a decision", ("",), _missing(found)))
    for title, columns, rows in tables:
        table = TerminalTable(*columns, title=title, title_justify="left")
        for row in rows:
            table.add_row(*(plain(str(cell)) for cell in row))
        yield table


def page(found: Data) -> Page:
    """Make the HTML page."""
    headline = [
        Headline(show(found, "decision"), "decision", "gain" if found["decision"] == READY else ""),
        Headline(show(found, "queries"), "queries"),
        Headline(show(found, "order", "overlap", form=".3f"), "rank-biased overlap with the engine's order"),
        Headline(show(found, "order", "new_in_first", form=".3f"), "share of top-10 results that are new"),
    ]
    decision: list[Part] = [Table("Criteria", _DECISION, list(_decisions(found)), frozenset({1, 3}))]
    if found["missing"]:
        decision += [Text("Missing for a decision:"), Advice([each for row in _missing(found) for each in row])]
    sections = [
        Section("Decision", decision),
        *_settings(found),
        Section(
            "Changes",
            [
                Text(_OVERLAP_MEANING),
                Table(
                    f"The first {found['top']} results", ("figure", "value"), _figures(found, _FIGURES), frozenset({1})
                ),
            ],
        ),
    ]
    if found["examples"]:
        note = Text(
            f"The first {first_results.FIRST} results of the queries whose order changes most. Nobody has judged them: "
            "look whether the reranked ones match better."
        )
        sections.append(Section("Where it applies", [note, *first_results.tables(found)]))
    if found["clicks"] is not None:
        estimates = Table(
            "Where relevant results stand, by the clicks",
            _CLICKS,
            _click_rows(found),
            frozenset(range(1, len(_CLICKS) - 1)),
        )
        counted = Table("Clicks", ("figure", "value"), _figures(found, _COUNTED), frozenset({1}))
        sections.append(Section("Clicks", [Text(BIAS), estimates, counted]))
    lead = f"The first {found['top']} results of each query, in the engine's order and reranked."
    return Page("Effect of reranking on recorded queries", show(found, "sentence"), lead, found, headline, sections)


def _settings(found: Data) -> list[Section]:
    """Make the section with the settings that gave the answers, and those that failed criteria ask for."""
    parts: list[Part] = []
    for number, each in enumerate(found["criteria"]):
        if each["settings"]:
            changed = {name: show(found, "criteria", number, "settings", name) for name in each["settings"]}
            parts.append(Settings(f"To try, since {each['name']} is not met ({each['advice']}):", changed))
    for number, method in enumerate(found["methods"][:_MOST_METHODS]):
        used = {
            name: show(found, "methods", number, name.removeprefix("STREAMER_").lower(), form="")
            for name in variables(method)
        }
        parts.append(Settings(f"Of {method['queries']:,} queries, answered by {method['model_id']}:", used))
    return [Section("Settings", parts)] if parts else []


_MOST_METHODS = 3
"""Most methods whose settings the page shows; the JSON has more."""
_OVERLAP_MEANING = (
    "Rank-biased overlap is how similar both orders are to a user, who looks at first results most: 1 means identical, "
    "0 nothing in common."
)
