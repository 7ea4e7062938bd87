"""The audit's report: as tables for a terminal and as an HTML page."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rich.table import Table as TerminalTable

from streamer.evaluation import first_results
from streamer.evaluation.page import Advice, Headline, Page, Section, Table, Text, show
from streamer.terminal import plain

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from streamer.evaluation.page import Part, Shown

Data = dict[str, Any]

_SHARE, _CHANGE = ".3f", "+.4f"
_COUNTS = (
    ("queries", ("queries",), ""),
    ("different queries (texts)", ("distinct_queries",), ""),
    ("of equal frequency, they would be", ("effective_queries",), ".1f"),
    ("queries whose first results changed", ("changed",), ""),
    ("candidates", ("candidates",), ""),
    ("candidates of which no upload is known", ("candidates_without_upload",), ""),
    ("clips with an upload", ("clips",), ""),
)
_LEFT_OUT = {
    "replayed": "left out: queries of streamer replay",
    "repeated": "left out: repeated ids",
    "degraded": "left out: passed on in the engine's order",
    "empty": "left out: without results",
    "different": "left out: another list than the engine's",
    "unanswered": "without an answer",
}
_GROUPS = (
    ("candidates", ("target",), _SHARE),
    ("exposure before", ("exposure_before",), _SHARE),
    ("after", ("exposure_after",), _SHARE),
    ("engine adds", ("engine", "mean"), _CHANGE),
    ("from", ("engine", "low"), _CHANGE),
    ("to", ("engine", "high"), _CHANGE),
    ("reranking adds", ("reranking", "mean"), _CHANGE),
    ("from", ("reranking", "low"), _CHANGE),
    ("to", ("reranking", "high"), _CHANGE),
    ("masks move it by", ("masking",), ".4f"),
    ("share before", ("share_before",), _SHARE),
    ("share after", ("share_after",), _SHARE),
)
_AWRF = (
    ("before", ("awrf", "before"), ".4f"),
    ("after", ("awrf", "after"), ".4f"),
    ("change", ("awrf", "gain", "mean"), _CHANGE),
    ("from", ("awrf", "gain", "low"), _CHANGE),
    ("to", ("awrf", "gain", "high"), _CHANGE),
    ("unknown", ("unknown_share",), _SHARE),
)
_SHIFT_COLUMNS = (
    "attribute",
    "group",
    "before",
    "after",
    "change",
    "from",
    "to",
    "masks move it by",
    "the group is now",
)
_SHIFT_FORMS = {
    "attribute": "",
    "group": "",
    "before": _SHARE,
    "after": _SHARE,
    "change": _CHANGE,
    "low": _CHANGE,
    "high": _CHANGE,
    "masking": ".4f",
    "effect": "",
}
_MEANING = (
    "Exposure is the share of users' attention that a group of clips gets: each of the first {top} ranks has the "
    "weight 1 / log2(max(rank, 2)), as in TREC's Fair Ranking track, and each query counts the same. A group's share "
    "of the candidates is the exposure that it would have if chance ordered each list. What the engine adds is its "
    "exposure in the engine's order less that share; what reranking adds is its exposure after less before. Shares are "
    "those of the first {top} results, all ranks alike. Clips of which the value is not known are a group of their own."
)
_AWRF_MEANING = (
    "AWRF (attention-weighted rank fairness) is 1 less the Jensen-Shannon divergence between the groups' exposure and "
    "their share of the candidates, in nats, as the mean over queries: 1 means equal, 0.307 nothing in common. A "
    "positive change means that reranking brings exposure nearer to the candidates. A few ranks cannot equal any "
    "shares, so AWRF is below 1 also where chance orders the lists; read the change."
)
_MASKED = (
    "Masks move it by: the most by which a group's exposure moves if a tenth of each frame is masked, in answers made "
    "once more from their clips' files. Masks say nothing of who is shown, so a change that is no larger is no finding."
)
_MASKING = (
    ("answers made once more", ("masking", "queries"), ""),
    ("clips decoded anew", ("masking", "clips"), ""),
    ("clips that could not be decoded", ("masking", "failed"), ""),
    ("part of those answers' candidates", ("masking", "share"), ".2f"),
)
_INTERVALS = (
    "Intervals are for other queries of the same kind: a bootstrap that draws different queries, of which repetitions "
    "are no evidence of their own. They hold for all groups of all attributes together with 95 % confidence, so that "
    "many groups do not make a chance finding likely. A change is no proof of unfairness: reranking brings up what "
    "matches, and takes back what the engine favours."
)


def terminal(found: Data) -> Iterator[TerminalTable]:
    """Make the terminal tables: counts, AWRF, and the groups of each attribute."""
    yield _table("Queries and clips", ("figure", ""), _counted(found))
    yield _table("AWRF: nearness of exposure to the candidates", ("attribute", *_labels(_AWRF)), _awrf_rows(found))
    for number, attribute in enumerate(found["attributes"]):
        columns = ("group", "of candidates", "exposure", "share", "engine adds", "reranking adds")
        yield _table(f"Groups by {attribute['attribute']}", columns, list(_narrow(found, number)))


def page(found: Data) -> Page:
    """Make the HTML page."""
    headline = [
        Headline(show(found, "verdict"), "of exposure by reranking"),
        Headline(show(found, "queries"), "queries"),
        Headline(show(found, "distinct_queries"), "different queries"),
    ]
    begin: list[Part] = [Text(caution) for caution in found["cautions"]]
    if found["shifts"]:
        rows = [
            [show(found, "shifts", number, key, form=form) for key, form in _SHIFT_FORMS.items()]
            for number in range(len(found["shifts"]))
        ]
        begin.append(Table("Groups whose exposure changes", _SHIFT_COLUMNS, rows, frozenset(range(2, 8))))
    begin += [Text(_INTERVALS), *_masking(found)]
    advice = Advice([show(found, "advice", number) for number in range(len(found["advice"]))])
    sections = [
        Section("What to do", [advice]),
        Section("Changes that are shown", begin),
        *_examples(found),
        Section(
            "Nearness to the candidates",
            [Table("AWRF", ("attribute", *_labels(_AWRF)), _awrf_rows(found), _numeric(_AWRF)), Text(_AWRF_MEANING)],
        ),
        *(
            Section(f"Groups by {each['attribute']}", [_group_table(found, number)])
            for number, each in enumerate(found["attributes"])
        ),
        Section("What the figures are", [Text(_MEANING.format(top=found["top"]))]),
        Section(
            "What was counted",
            [*_passed_over(found), Table("Queries and clips", ("figure", "number"), _counted(found), frozenset({1}))],
        ),
    ]
    return Page(
        title="Which clips users see, before and after reranking",
        lead=f"Exposure in the first {found['top']} results, by the attributes that clips were uploaded with.",
        data=found,
        headline=headline,
        sections=sections,
        verdict=show(found, "sentence"),
    )


def _masking(found: Data) -> list[Part]:
    if found["masking"] is None:
        return [
            Text("How far masked frames would move these figures was not measured: the clips' files were not given.")
        ]
    rows: list[list[Shown | str]] = [[name, show(found, *path, form=form)] for name, path, form in _MASKING]
    return [Text(_MASKED), Table("Masked frames", ("figure", "number"), rows, frozenset({1}))]


def _examples(found: Data) -> list[Section]:
    if not found["examples"]:
        return []
    note = Text(f"The first {first_results.FIRST} results of the queries whose order changes most.")
    return [Section("Where it applies", [note, *first_results.tables(found)])]


def _passed_over(found: Data) -> list[Text]:
    names = ", ".join(found["passed_over"])
    return [Text(f"Attributes with more values than groups, not audited: {names}.")] if names else []


def _labels(figures: Sequence[tuple[str, tuple[str, ...], str]]) -> tuple[str, ...]:
    return tuple(label for label, _, _ in figures)


def _numeric(figures: Sequence[Any]) -> frozenset[int]:
    return frozenset(range(1, len(figures) + 1))


def _counted(found: Data) -> list[list[Shown | str]]:
    rows: list[list[Shown | str]] = [[name, show(found, *path, form=form)] for name, path, form in _COUNTS]
    return rows + [[_LEFT_OUT[key], show(found, "left_out", key)] for key in found["left_out"]]


def _awrf_rows(found: Data) -> list[list[Shown | str]]:
    return [
        [
            show(found, "attributes", number, "attribute"),
            *(show(found, "attributes", number, *path, form=form) for _, path, form in _AWRF),
        ]
        for number in range(len(found["attributes"]))
    ]


def _group_table(found: Data, number: int) -> Table:
    rows = []
    for group in range(len(found["attributes"][number]["groups"])):
        at = ("attributes", number, "groups", group)
        rows.append([show(found, *at, "group"), *(show(found, *at, *path, form=form) for _, path, form in _GROUPS)])
    return Table(
        f"Groups by {found['attributes'][number]['attribute']}", ("group", *_labels(_GROUPS)), rows, _numeric(_GROUPS)
    )


def _narrow(found: Data, number: int) -> Iterator[list[Shown | str]]:
    """Yield the groups' rows with fewer columns than the page's."""
    for group in range(len(found["attributes"][number]["groups"])):
        at = ("attributes", number, "groups", group)

        def share(key: str, at: tuple[str | int, ...] = at) -> str:
            return str(show(found, *at, key, form=_SHARE))

        def change(key: str, at: tuple[str | int, ...] = at) -> str:
            mean, low, high = (show(found, *at, key, part, form=_CHANGE) for part in ("mean", "low", "high"))
            return f"{mean} ({low} to {high})"

        yield [
            show(found, *at, "group"),
            share("target"),
            f"{share('exposure_before')} > {share('exposure_after')}",
            f"{share('share_before')} > {share('share_after')}",
            change("engine"),
            change("reranking"),
        ]


def _table(title: str, columns: Sequence[str], rows: Sequence[Sequence[Shown | str]]) -> TerminalTable:
    table = TerminalTable(*columns, title=plain(title), title_justify="left")
    for row in rows:
        table.add_row(*(plain(str(cell)) for cell in row))
    return table
