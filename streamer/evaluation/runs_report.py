"""The results of ``streamer evaluate`` for several runs, each against the first: as JSON, tables and an HTML page."""

from __future__ import annotations

from typing import TYPE_CHECKING

from streamer.evaluation import meaning, plots
from streamer.evaluation.page import Headline, Page, Section, Shown, Table, Text, show
from streamer.evaluation.report import (
    GAIN,
    TERMINAL_TOPICS,
    Data,
    P,
    advice_section,
    compared,
    doubts,
    example_section,
    known,
    ranks_note,
    terminal_table,
    tone_of,
    topic_name,
)
from streamer.terminal import plain, printable

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from matplotlib.axes import Axes
    from rich.table import Table as TerminalTable

    from streamer.evaluation.comparison import Comparison
    from streamer.evaluation.measures import Evaluation
    from streamer.evaluation.page import Picture

_SUMMARY = (
    ("topics", "topics", ""),
    ("value", "after", ".4f"),
    ("first run", "before", ".4f"),
    ("gain", "gain", GAIN),
    ("95 % CI from", "gain_low", GAIN),
    ("to", "gain_high", GAIN),
    ("gained", "wins", ""),
    ("lost", "losses", ""),
    ("p", "randomization_p", P),
    ("corrected p", "holm_p", P),
)
"""The summary's columns: label, field of a comparison and format."""
_INTERVAL = "95 % CI"
_NARROW = ("run", "value", "gain", _INTERVAL, "gained\n/lost", "p", "p, cor-\nrected")
_COLUMNS = ("measure", "run", *(label for label, _, _ in _SUMMARY))
_TEXTS = 2
_NOTE = (
    "Each run is compared with the first over the topics that both have. p is the probability of a gain at least this "
    "far from 0 by a paired randomisation test, two-sided, if both runs could be exchanged in each topic. The "
    "corrected p allows for all comparisons of this table (Holm). The interval of a mean is Student's and allows for "
    "one comparison."
)


def data(
    base: Evaluation,
    others: Mapping[str, Evaluation],
    comparisons: Mapping[str, Mapping[str, Comparison]],
    texts: Mapping[str, str] | None = None,
) -> Data:
    """Return all results as JSON, numbers unrounded; the runs are known by their names.

    ``texts``: those of the topics, as far as they are known.
    """
    found: Data = {
        "texts": known(texts, base.topics, *(other.topics for other in others.values())),
        "run": {"topics": base.topics, "mean": base.mean},
        "runs": {name: {"topics": other.topics, "mean": other.mean} for name, other in others.items()},
        "comparisons": {name: compared(base, other, comparisons[name]) for name, other in others.items()},
    }
    first = next(iter(base.mean))
    best = best_run(found)
    helping = [name for name, each in found["comparisons"].items() if meaning.effect(each[first]) == meaning.HELPS]
    hurting = [name for name, each in found["comparisons"].items() if meaning.effect(each[first]) == meaning.HURTS]
    found["best"] = best
    are = "is" if len(helping) == 1 else "are"
    found["sentence"] = (
        f"{len(helping):,} of {len(others):,} runs {are} shown to be better than the first in {first}, and "
        f"{len(hurting):,} to be worse. {meaning.comparison(first, found['comparisons'][best][first], best)}"
    )
    found["advice"] = [f"{best}: {each}" for each in meaning.advice(found["comparisons"][best])]
    return found


def best_run(found: Data) -> str:
    """Return the name of the run that gains most in the first measure; the earlier one of equals."""
    first = next(iter(found["run"]["mean"]))
    of: Mapping[str, Data] = found["comparisons"]
    return max(of, key=lambda name: (of[name][first]["gain"], -list(of).index(name)))


def terminal(found: Data, run: str) -> Iterator[TerminalTable]:
    """Make a table of topics for each measure, and one of all runs; ``run`` is the first one's displayed name."""
    for measure in found["run"]["mean"]:
        topics = _by_change(found, measure)
        left_out = len(topics) - TERMINAL_TOPICS
        caption = f"and {left_out:,} more topics that changed less" if left_out > 0 else None
        table = terminal_table(
            f"{measure} of each topic", [printable(name) for name in ("topic", run, *found["runs"])], caption
        )
        for topic in topics[:TERMINAL_TOPICS]:
            table.add_row(*(plain(str(cell)) for cell in _topic_row(found, measure, topic)))
        yield table
    yield _terminal_summary(found, run)


def page(found: Data, run: str, qrels: str, *, warnings: Sequence[str] = ()) -> Page:
    """Make the page; ``run`` and ``qrels`` are the displayed names of the first run's file and of the judgments'."""
    measures = list(found["run"]["mean"])
    first = measures[0]
    headline = [Headline(show(found, "run", "mean", first), f"{first} of {run}")]
    headline += [
        Headline(
            show(found, "comparisons", name, first, "gain", form=GAIN),
            f"gain of {name}",
            tone_of(each[first]["gain"]),
        )
        for name, each in found["comparisons"].items()
    ]
    summary = Table(
        "Each run against the first", _COLUMNS, list(_summary_rows(found, run)), frozenset(range(_TEXTS, len(_COLUMNS)))
    )
    notes = [_NOTE, *ranks_note(measures), *doubts(found), *warnings]
    return Page(
        title="How the runs differ from the first",
        verdict=show(found, "sentence"),
        lead=f"{', '.join(found['runs'])} against {run}, judged by {qrels}",
        data=found,
        headline=headline,
        sections=[
            advice_section(found),
            Section(
                "Each run against the first", [*map(Text, meaning.explained(measures)), summary, *map(Text, notes)]
            ),
            *example_section(found, run, found["best"]),
            *(_measure_section(found, measure, run) for measure in measures),
        ],
    )


def _terminal_summary(found: Data, run: str) -> TerminalTable:
    """Make the summary with fewer columns than the page's, for a terminal of 80; numbers are never cut."""
    table = terminal_table(f"Each run against {run}", _NARROW)
    for number, column in enumerate(table.columns):
        column.overflow = "fold"
        column.no_wrap = number not in (0, _NARROW.index(_INTERVAL))
    for measure in found["run"]["mean"]:
        table.add_section()
        table.add_row(plain(f"{measure}: {run}"), plain(str(show(found, "run", "mean", measure))))
        for name in found["runs"]:
            at = ("comparisons", name, measure)
            low, high = (show(found, *at, key, form=GAIN) for key in ("gain_low", "gain_high"))
            row = (
                name,
                show(found, *at, "after"),
                show(found, *at, "gain", form=GAIN),
                f"{low} to {high}",
                f"{show(found, *at, 'wins')}/{show(found, *at, 'losses')}",
                show(found, *at, "randomization_p", form=P),
                show(found, *at, "holm_p", form=P),
            )
            table.add_row(*(plain(str(cell)) for cell in row))
    return table


def _summary_rows(found: Data, run: str) -> Iterator[list[Shown | str]]:
    for measure in found["run"]["mean"]:
        of_first = {"value": show(found, "run", "mean", measure)}
        yield [measure, run, *(of_first.get(label, "") for label, _, _ in _SUMMARY)]
        for name in found["runs"]:
            at = ("comparisons", name, measure)
            yield [measure, name, *(show(found, *at, key, form=form) for _, key, form in _SUMMARY)]


def _by_change(found: Data, measure: str) -> list[str]:
    """Return the topics of all runs, those of the largest gain or loss in any run first."""
    largest: dict[str, float] = {}
    for each in found["comparisons"].values():
        for topic, gain in each[measure]["gains"].items():
            largest[topic] = max(largest.get(topic, 0.0), abs(gain))
    every = {topic: None for side in (found["run"], *found["runs"].values()) for topic in side["topics"]}
    return sorted(every, key=lambda topic: -largest.get(topic, 0.0))


def _topic_row(found: Data, measure: str, topic: str) -> list[Shown | str]:
    def cell(*side: str) -> Shown | str:
        of = found
        for key in side:
            of = of[key]
        return show(found, *side, "topics", topic, measure) if topic in of["topics"] else "missing"

    return [topic_name(found, topic), cell("run"), *(cell("runs", name) for name in found["runs"])]


def _measure_section(found: Data, measure: str, run: str) -> Section:
    columns = ["topic", run, *found["runs"]]
    rows = [_topic_row(found, measure, topic) for topic in _by_change(found, measure)]
    topics = Table(f"{measure} of each topic", columns, rows, frozenset(range(1, len(columns))))
    return Section(measure, [_picture(found, measure), topics])


def _picture(found: Data, measure: str) -> Picture:
    names = list(found["runs"])

    def draw(axes: Axes) -> None:
        for number, name in enumerate(names):
            each = found["comparisons"][name][measure]
            low, high = (each["gain"] if each[key] is None else each[key] for key in ("gain_low", "gain_high"))
            colour = plots.NEW if each["gain"] >= 0 else plots.LOSS
            axes.plot([low, high], [number, number], color=colour, linewidth=2)
            axes.plot([each["gain"]], [number], color=colour, marker="o", gid=f"gain-{number}")
        axes.axvline(0, color=plots.LINE, linewidth=0.8)
        axes.set_yticks(range(len(names)), [plots.short(name) for name in names], parse_math=False)
        axes.set_ylim(len(names) - 0.5, -0.5)
        axes.set_xlabel(f"gain in {measure}, with its 95 % confidence interval")
        axes.set_ylabel("run")

    name = f"runs-{measure.replace('@', '-')}"
    caption = f"Gain of each run in {measure} over the first, with its 95 % confidence interval."
    return plots.picture(draw, name=name, caption=caption, size=(8.5, 1.2 + 0.35 * len(names)))
