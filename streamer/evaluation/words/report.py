"""The report on pairs of queries that differ in one word: as tables for a terminal and as an HTML page."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from streamer.evaluation import first_results, plots
from streamer.evaluation.page import Advice, Headline, Page, Section, Table, Text, show
from streamer.evaluation.report import terminal_table
from streamer.evaluation.words.figures import DIFFERS, REFUSED
from streamer.terminal import plain

if TYPE_CHECKING:
    from collections.abc import Iterator

    from matplotlib.axes import Axes
    from rich.table import Table as TerminalTable

    from streamer.evaluation.page import Part, Picture, Shown

Data = dict[str, Any]

_COLUMNS = (
    ("words", "words", ""),
    ("kind", "kind", ""),
    ("shift", "shift", "+.4f"),
    ("masking moves it by", "shift_sensitivity", ".4f"),
    ("p, corrected", "holm_p", ".2g"),
    ("says", "says", ""),
    ("overlap", "overlap", ".3f"),
    ("overlap of the sample", "overlap_sample", ".3f"),
    ("masking moves that by", "overlap_sensitivity", ".3f"),
    ("overlap says", "overlap_says", ""),
    ("shift in standard deviations", "shift_in_deviations", "+.2f"),
    ("first query", "first", ""),
    ("second query", "second", ""),
)
_NARROW = 7
"""The first columns are shown on a terminal."""
_NUMERIC = frozenset({2, 3, 4, 6, 7, 8, 10})
_MEANING = (
    "The shift is the mean over clips of the second query's best-frame score less the first one's. p is the "
    "probability of a shift at least this far from 0, if a clip's two scores could be exchanged (a paired permutation "
    "test, two-sided), corrected for all pairs (Holm). The overlap is the rank-biased overlap of the first {top} "
    "results of both queries: 1 means identical lists."
)
_SENSITIVITY = (
    "Masking moves a figure by: the most by which it moves where a tenth of each frame is masked, in {sample} clips "
    "that were decoded anew. Such masks say nothing about who is shown, so a figure that they move by as much as it is "
    "large says nothing either, and has no verdict."
)
_UNMEASURED = "How far masked frames move these figures was not measured: the clips' files were not given."


def _rows(found: Data, count: int = len(_COLUMNS)) -> list[list[Shown | str]]:
    return [
        [show(found, "pairs", number, key, form=form) for _, key, form in _COLUMNS[:count]]
        for number in range(len(found["pairs"]))
    ]


def _labels(count: int = len(_COLUMNS)) -> list[str]:
    return [label for label, _, _ in _COLUMNS[:count]]


def terminal(found: Data) -> Iterator[TerminalTable]:
    """Make the table of the pairs."""
    table = terminal_table("Queries that differ in one word", _labels(_NARROW), texts=2)
    for row in _rows(found, _NARROW):
        table.add_row(*(plain(str(cell)) for cell in row))
    yield table


def page(found: Data, model_id: str) -> Page:
    """Make the page."""
    counts = {says: sum(each["says"] == says for each in found["pairs"]) for says in (DIFFERS, REFUSED)}
    measured = _UNMEASURED if found["sample"] is None else _SENSITIVITY.format(sample=f"{found['sample']:,}")
    pairs: list[Part] = [
        Text(_MEANING.format(top=found["top"])),
        Text(measured),
        _picture(found),
        Table("Pairs of queries that differ in one word", _labels(), _rows(found), _NUMERIC),
    ]
    sections = [
        Section("What to do", [Advice([show(found, "advice", number) for number in range(len(found["advice"]))])]),
        Section("What the word changes", pairs),
    ]
    if found["examples"]:
        note = Text("The first results of both queries, of the pairs whose lists overlap least.")
        names = {"engine": "first query", "reranked": "second query", "was": "rank for the first query"}
        sections.append(Section("Where it applies", [note, *first_results.tables(found, names=names)]))
    return Page(
        title="What one word changes",
        verdict=show(found, "sentence"),
        lead=f"{model_id}, asked with pairs of queries that differ in one word: "
        f"{counts[DIFFERS]:,} differ, {counts[REFUSED]:,} without a verdict.",
        data=found,
        headline=[
            Headline(show(found, "clips"), "clips"),
            Headline(show(found, "different_clips"), "different clips"),
            Headline(show(found, "sample"), "clips with masked frames"),
        ],
        sections=sections,
    )


def _picture(found: Data) -> Picture:
    rows = found["pairs"]

    def draw(axes: Axes) -> None:
        for number, each in enumerate(rows):
            colour = plots.NEW if each["says"] == DIFFERS else plots.OLD
            moved = each["shift_sensitivity"]
            if moved is not None:
                axes.plot([each["shift"] - moved, each["shift"] + moved], [number, number], color=colour, linewidth=2)
            axes.plot([each["shift"]], [number], color=colour, marker="o", gid=f"shift-{number}")
        axes.axvline(0, color=plots.LINE, linewidth=0.8)
        names = [f"{each['kind']}: {each['words']}" for each in rows]
        axes.set_yticks(range(len(rows)), names, parse_math=False)
        axes.set_ylim(len(rows) - 0.5, -0.5)
        axes.set_xlabel("shift of the best-frame score, and how far masks move it")
        axes.set_ylabel("pair")

    caption = "Shift of each pair, with what masks do to it; blue: shown to differ. A bar that reaches 0 says nothing."
    return plots.picture(draw, name="words", caption=caption, size=(8.5, 1.2 + 0.3 * len(rows)))
