"""The results of ``streamer evaluate``: as JSON, as tables for a terminal, as an HTML page.

Those of more than two runs are in :mod:`streamer.evaluation.runs_report`.
"""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from rich.table import Table as TerminalTable

from streamer.evaluation import first_results, meaning, plots
from streamer.evaluation.measures import RANKS, gain
from streamer.evaluation.page import Advice, Headline, Page, Section, Shown, Table, Text, show
from streamer.terminal import plain

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from matplotlib.axes import Axes

    from streamer.evaluation.comparison import Comparison
    from streamer.evaluation.measures import Evaluation
    from streamer.evaluation.page import Part, Picture
    from streamer.evaluation.trec import Qrels, Run

Data = dict[str, Any]

TERMINAL_TOPICS = 40
"""Number of topics shown on a terminal, those that changed most; the page and the JSON have all."""
GAIN, P = "+.4f", ".2g"
_BARS = 60
"""The largest number of topics for which bars have labels."""


def data(
    base: Evaluation,
    reranked: Evaluation | None,
    comparison: Mapping[str, Comparison],
    texts: Mapping[str, str] | None = None,
) -> Data:
    """Return all results as JSON, numbers unrounded; ``texts``: those of the topics, as far as they are known."""
    found: Data = {
        "sentence": "",
        "advice": [],
        "texts": known(texts, base.topics, {} if reranked is None else reranked.topics),
        "run": {"topics": base.topics, "mean": base.mean},
    }
    first = next(iter(base.mean))
    if reranked is None:
        of, topics = f"{'' if first in RANKS else 'mean '}{first}", len(base.topics)
        found["sentence"] = f"The run reaches a {of} of {base.mean[first]:.4f} over {topics:,} topics."
        found["advice"] = ["Compare it with another run of the same topics: give that one with --reranked."]
        return found
    found["reranked"] = {"topics": reranked.topics, "mean": reranked.mean}
    found["comparison"] = compared(base, reranked, comparison)
    found["sentence"] = meaning.comparison(first, found["comparison"][first])
    found["advice"] = list(meaning.advice(found["comparison"]))
    return found


def known(texts: Mapping[str, str] | None, *topics: Iterable[str]) -> dict[str, str]:
    """Return the texts of those of the topics that have one."""
    return {topic: texts[topic] for each in topics for topic in each if topic in texts} if texts else {}


def examples(
    gains: Mapping[str, float], runs: tuple[Run, Run], qrels: Qrels, texts: Mapping[str, str], measure: str
) -> list[Data]:
    """Return the first results of the topics that gain most and lose most from the first of ``runs`` to the second."""
    found = []
    for topic in telling(gains):
        name = f"{texts[topic]} (topic {topic})" if topic in texts else f"topic {topic}"
        judgments = qrels.topics[topic]
        before, after = (list(each.topics[topic].ranked().shots) if topic in each.topics else [] for each in runs)
        found.append(
            first_results.example(
                f"{name}: {gains[topic]:+.4f} in {measure}",
                before,
                after,
                dict(zip(judgments.shots, judgments.rels.tolist(), strict=True)),
            )
        )
    return found


def telling(gains: Mapping[str, float]) -> list[str]:
    """Return the topics that gain most, and then those that lose most."""
    ordered = sorted(gains, key=lambda topic: -gains[topic])
    best = [topic for topic in ordered[: first_results.GAINING] if gains[topic] > 0]
    worst = [topic for topic in ordered[-first_results.LOSING :] if gains[topic] < 0]
    return [*best, *worst]


def topic_name(found: Data, topic: str) -> str:
    """Return a topic as readers know it: its number, and its text where that is known."""
    text = found["texts"].get(topic)
    return topic if text is None else f"{topic}: {text}"


def example_section(found: Data, engine: str, reranked: str) -> list[Section]:
    """Make the section with the first results of some topics, if there are any."""
    if not found.get("examples"):
        return []
    note = Text(
        f"The first {first_results.FIRST} results of the topics that gain most and lose most, as {engine} and "
        f"{reranked} have them. Relevant: as judged."
    )
    return [Section("Where it applies", [note, *first_results.tables(found)])]


def compared(base: Evaluation, other: Evaluation, comparison: Mapping[str, Comparison]) -> Data:
    """Return a comparison as JSON, with the gain of each topic."""
    return {
        measure: {
            **asdict(each),
            "gains": {
                topic: gain(measure, values[measure], other.topics[topic][measure])
                for topic, values in base.topics.items()
                if topic in other.topics
            },
        }
        for measure, each in comparison.items()
    }


def terminal(found: Data) -> Iterator[TerminalTable]:
    """Make a table of topics for each measure, and one of the means."""
    for measure in found["run"]["mean"]:
        topics = _by_change(found, measure)
        left_out = len(topics) - TERMINAL_TOPICS
        caption = f"and {left_out:,} more topics that changed less" if left_out > 0 else None
        table = terminal_table(f"{measure} of each topic", _TOPIC_COLUMNS[: _width(found)], caption)
        for topic in topics[:TERMINAL_TOPICS]:
            table.add_row(*(plain(str(cell)) for cell in _topic_row(found, measure, topic)))
        yield table
    table = terminal_table("Over all topics", ["", *found["run"]["mean"]], None)
    for row in _summary_rows(found):
        table.add_row(*(plain(str(cell)) for cell in row))
    yield table


def page(found: Data, run: str, qrels: str, reranked: str = "", *, warnings: Sequence[str] = ()) -> Page:
    """Make the page; ``run``, ``qrels`` and ``reranked`` are the displayed names of the files."""
    measures = list(found["run"]["mean"])
    first = measures[0]
    is_compared = "comparison" in found
    headline = [Headline(show(found, "run", "mean", first), f"{'' if first in RANKS else 'mean '}{first} of the run")]
    if is_compared:
        gained = "gain" if first in RANKS else "mean gain"
        tone = tone_of(found["comparison"][first]["gain"])
        headline += [
            Headline(show(found, "reranked", "mean", first), "after reranking"),
            Headline(show(found, "comparison", first, "gain", form=GAIN), gained, tone),
            Headline(show(found, "comparison", first, "wins"), "topics gained"),
            Headline(show(found, "comparison", first, "losses"), "topics lost"),
            Headline(show(found, "comparison", first, "randomization_p", form=P), "p, randomisation"),
        ]
    summary = Table(
        "Over all topics", ["figure", *measures], list(_summary_rows(found)), frozenset(range(1, len(measures) + 1))
    )
    lead = f"{run} before and {reranked} after, judged by {qrels}" if is_compared else f"{run} judged by {qrels}"
    notes = [*([_SIGNIFICANCE] if is_compared else []), *ranks_note(measures), *doubts(found), *warnings]
    return Page(
        title="What reranking changed" if is_compared else "How good the run is",
        verdict=show(found, "sentence"),
        lead=lead,
        data=found,
        headline=headline,
        sections=[
            advice_section(found),
            Section("Over all topics", [*map(Text, meaning.explained(measures)), summary, *map(Text, notes)]),
            *example_section(found, run, reranked),
            *(_measure_section(found, measure) for measure in measures),
        ],
    )


def advice_section(found: Data, *more: Part) -> Section:
    """Make the section that says what to do next."""
    return Section("What to do", [Advice([show(found, "advice", each) for each in range(len(found["advice"]))]), *more])


_TOPIC_COLUMNS = ("topic", "run", "reranked", "gain")
_SUMMARY = (
    ("before", "before", ".4f"),
    ("after", "after", ".4f"),
    ("gain", "gain", GAIN),
    ("gain, 95 % CI from", "gain_low", GAIN),
    ("gain, 95 % CI to", "gain_high", GAIN),
    ("topics gained", "wins", ""),
    ("topics lost", "losses", ""),
    ("topics unchanged", "ties", ""),
    ("p, randomisation", "randomization_p", P),
    ("p, randomisation, corrected", "holm_p", P),
    ("p, t-test", "t_p", P),
)
"""The summary's label and format for each field of a comparison."""
_BOOTSTRAP = (
    ("skewness of the gains", "skewness", "+.2f"),
    ("gain, bootstrap from", "bootstrap_low", GAIN),
    ("gain, bootstrap to", "bootstrap_high", GAIN),
)
"""Beside them where gains are skewed and topics few."""
_STRENGTH_COLUMNS = ("value of the run, from", "to", "topics", "mean gain", "wins", "losses")
_SIGNIFICANCE = (
    "Over the topics of both runs: p is the probability of a mean gain at least this far from 0 by a paired "
    "randomisation test, if before and after could be exchanged in each topic, and by a paired t-test, if the mean "
    "gain were 0. Both are two-sided; the corrected p allows for all measures of this table (Holm). The interval is "
    "the t-test's."
)
_RANKS_NOTE = (
    "MdR and MnR are the median and the mean rank of each topic's best relevant result. Less is better, and a gain is "
    "the number of places gained. MdR is tested by its own difference; its interval is a bootstrap's."
)
_DOUBTFUL = (
    "{}: the gains are skewed and the topics few, so that exchangeability is in doubt and the t-test's interval is not "
    "accurate. Read the bootstrap interval (BCa) beside it, and judge more topics."
)


def ranks_note(measures: Iterable[str]) -> list[str]:
    """Say how ranks are read, if any of the measures is one."""
    return [_RANKS_NOTE] if RANKS.intersection(measures) else []


def tone_of(value: float) -> str:
    """Return the tone of a headline that shows a gain."""
    return "gain" if value > 0 else "loss" if value < 0 else ""


def doubts(found: Data) -> list[str]:
    """Name the measures whose gains are too skewed for so few topics; empty where there are none."""
    of = dict(found.get("comparison", {}))
    of |= {
        f"{measure} of {run}": each
        for run, measures in found.get("comparisons", {}).items()
        for measure, each in measures.items()
    }
    names = [name for name, each in of.items() if each["is_doubtful"]]
    return [_DOUBTFUL.format(", ".join(names))] if names else []


def _numeric(columns: Sequence[str]) -> frozenset[int]:
    return frozenset(range(1, len(columns)))


def _width(found: Data) -> int:
    return len(_TOPIC_COLUMNS) if "comparison" in found else 2


def terminal_table(title: str, columns: Sequence[str], caption: str | None = None, *, texts: int = 1) -> TerminalTable:
    """Make a table whose first ``texts`` columns are text and the others numbers."""
    table = TerminalTable(title=plain(title, "bold"), title_justify="left", caption=caption, caption_justify="left")
    for number, column in enumerate(columns):
        table.add_column(column, justify="left" if number < texts else "right")
    return table


def _summary_rows(found: Data) -> Iterator[list[Shown | str]]:
    measures = list(found["run"]["mean"])
    if "comparison" not in found:
        yield ["mean", *(show(found, "run", "mean", measure) for measure in measures)]
        return
    for name, key, form in (*_SUMMARY, *(_BOOTSTRAP if doubts(found) else ())):
        yield [name, *(show(found, "comparison", measure, key, form=form) for measure in measures)]


def _by_change(found: Data, measure: str) -> list[str]:
    """Return the topics of either run, largest change first; without a comparison, in file order."""
    if "comparison" not in found:
        return list(found["run"]["topics"])
    gains = found["comparison"][measure]["gains"]
    only = [topic for topic in {**found["run"]["topics"], **found["reranked"]["topics"]} if topic not in gains]
    return [*sorted(gains, key=lambda topic: -abs(gains[topic])), *only]


def _topic_row(found: Data, measure: str, topic: str) -> list[Shown | str]:
    row: list[Shown | str] = [topic_name(found, topic)]
    for side in ("run", "reranked"):
        if side in found:
            there = topic in found[side]["topics"]
            row.append(show(found, side, "topics", topic, measure) if there else "missing")
    if "comparison" in found:
        there = topic in found["comparison"][measure]["gains"]
        row.append(show(found, "comparison", measure, "gains", topic, form=GAIN) if there else "")
    return row


def _measure_section(found: Data, measure: str) -> Section:
    columns = _TOPIC_COLUMNS[: _width(found)]
    rows = [_topic_row(found, measure, topic) for topic in _by_change(found, measure)]
    topics = Table(f"{measure} of each topic", columns, rows, _numeric(columns))
    if "comparison" not in found:
        return Section(measure, [_values_picture(found, measure), topics])
    at = ("comparison", measure, "by_strength")
    strength = Table(
        f"Gain in {measure} by the run's own value",
        _STRENGTH_COLUMNS,
        [
            [
                show(found, *at, group, "low"),
                show(found, *at, group, "high"),
                show(found, *at, group, "topics"),
                show(found, *at, group, "gain", form=GAIN),
                show(found, *at, group, "wins"),
                show(found, *at, group, "losses"),
            ]
            for group in range(len(found["comparison"][measure]["by_strength"]))
        ],
        frozenset(range(len(_STRENGTH_COLUMNS))),
    )
    return Section(measure, [_gains_picture(found, measure), _strength_picture(found, measure), strength, topics])


def _gains_picture(found: Data, measure: str) -> Picture:
    gains = found["comparison"][measure]["gains"]
    ordered = sorted(gains, key=lambda topic: -gains[topic])

    def draw(axes: Axes) -> None:
        _bars(axes, {topic: gains[topic] for topic in ordered})
        axes.set_ylabel(f"gain in {measure}")
        axes.set_xlabel(_topics_label(len(ordered)))
        axes.axhline(0, color=plots.LINE, linewidth=0.8)

    of = found["comparison"][measure]
    caption = f"Gain of each topic in {measure}, sorted: {of['wins']:,} gain (blue), {of['losses']:,} lose (red)."
    return plots.picture(draw, name=f"gains-{_id(measure)}", caption=caption)


def _values_picture(found: Data, measure: str) -> Picture:
    values = {topic: each[measure] for topic, each in found["run"]["topics"].items()}

    def draw(axes: Axes) -> None:
        _bars(axes, dict(sorted(values.items(), key=lambda item: -item[1])))
        axes.set_ylabel(measure)
        axes.set_xlabel(_topics_label(len(values)))

    return plots.picture(draw, name=f"values-{_id(measure)}", caption=f"{measure} of each topic, sorted.")


def _bars(axes: Axes, values: Mapping[str, float]) -> None:
    colours = [plots.NEW if value >= 0 else plots.LOSS for value in values.values()]
    bars = axes.bar(range(len(values)), list(values.values()), color=colours)
    for number, bar in enumerate(bars):
        bar.set_gid(f"bar-{number}")
    axes.grid(visible=False, axis="x")
    if len(values) <= _BARS:
        axes.set_xticks(
            range(len(values)), [plots.short(topic) for topic in values], rotation=90, fontsize=7, parse_math=False
        )
    else:
        axes.set_xticks([])


def _topics_label(count: int) -> str:
    return f"topics, sorted ({count:,})"


def _strength_picture(found: Data, measure: str) -> Picture:
    gains = found["comparison"][measure]["gains"]
    groups = found["comparison"][measure]["by_strength"]

    def draw(axes: Axes) -> None:
        before = [found["run"]["topics"][topic][measure] for topic in gains]
        points = axes.scatter(before, list(gains.values()), s=16, color=plots.OLD, label="a topic")
        points.set_gid("topics")
        centres = [(group["low"] + group["high"]) / 2 for group in groups]
        axes.plot(centres, [group["gain"] for group in groups], color=plots.NEW, marker="o", label="mean of a group")
        axes.axhline(0, color=plots.LINE, linewidth=0.8)
        axes.set_xlabel(f"{measure} of the run")
        axes.set_ylabel(f"gain in {measure}")
        axes.legend(frameon=False)

    caption = f"Gain by the run's own value on a topic ({measure}); groups of equal size."
    return plots.picture(draw, name=f"strength-{_id(measure)}", caption=caption)


def _id(measure: str) -> str:
    return measure.replace("@", "-")
