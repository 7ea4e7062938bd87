"""The results of ``streamer sweep``: as JSON, as tables for a terminal, as an HTML page."""

from __future__ import annotations

import itertools
from dataclasses import asdict, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
from rich import box
from rich.table import Table as TerminalTable

from streamer.evaluation import choice, plots, sweep_meaning
from streamer.evaluation.alternatives import alternatives
from streamer.evaluation.meaning import explained
from streamer.evaluation.page import Advice, Headline, Page, Section, Settings, Table, Text, show
from streamer.evaluation.report import example_section
from streamer.evaluation.sweep_meaning import STORED
from streamer.terminal import plain

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from matplotlib.axes import Axes

    from streamer.evaluation.choice import Caution, CrossValidation, Rule
    from streamer.evaluation.page import Part, Picture, Shown
    from streamer.evaluation.sweep_run import Column, Sweep
    from streamer.scoring import FloatArray, IntArray

Data = dict[str, Any]

COSTS = {
    "ms": "milliseconds per query",
    "bytes_a_clip": "stored bytes per clip",
    "frames_a_clip": "encoded frames per clip",
}
"""The costs that are compared with the gain."""

_MULTIPLES = (1, 2, 5, 10)
"""The numbers of topics, relative to these, for which the report says what could be seen."""


def data(found: Sweep, caution: Caution, folds: int) -> Data:
    """Return all results as JSON, numbers unrounded; ``folds``: number of cross-validation folds, 0 for none.

    The first measure chooses the settings; the others are in ``other_measures``, each with its own choice. What is
    claimed of all of them at once is corrected for their number.
    """
    chains = _chains(found.columns)
    first = _of_measure(found, 0, caution, folds, chains)
    points: list[Data] = first.pop("points")
    validated = first["cross_validation"]
    decided: Data = {
        "topics": len(found.topics),
        "measure": found.measures[0],
        **first,
        **alternatives(found, folds),
        "visible": [
            asdict(
                choice.visible(
                    multiple * len(found.topics),
                    validated["best"]["deviation"],
                    caution,
                    folds=folds,
                    chains=len(chains),
                    tests=len(found.measures),
                )
            )
            for multiple in (_MULTIPLES if folds else ())
        ],
        "caution": asdict(caution),
        "trade_off": _trade_off(points, found.columns, found.gains(0)),
        "points": points,
        "other_measures": {
            name: {
                key: value
                for key, value in _of_measure(found, number, caution, folds, chains).items()
                if key != "points"
            }
            for number, name in enumerate(found.measures)
            if number
        },
    }
    return {**sweep_meaning.decide(decided), **decided}


def _of_measure(found: Sweep, number: int, caution: Caution, folds: int, chains: Sequence[IntArray]) -> Data:
    gains = found.gains(number)
    tests = len(found.measures)
    losing = caution.losing(gains)
    high = caution.upper(losing, len(gains), len(chains) * tests)
    points = [
        {
            **_setting(column),
            found.measures[number]: float(found.values[number, :, each].mean()),
            "gain": float(gains[:, each].mean()),
            "losing": float(losing[each]),
            "losing_high": float(high[each]),
            **{cost: getattr(column, cost) for cost in COSTS},
        }
        for each, column in enumerate(found.columns)
    ]
    rules: dict[str, Rule] = {
        "best": choice.best,
        "conservative": partial(choice.conservative, caution=caution, chains=chains, tests=tests),
    }
    picked = {name: rule(gains) for name, rule in rules.items()}
    validated = {
        name: choice.cross_validate(gains, rule, caution, folds=folds, tests=tests)
        for name, rule in rules.items()
        if folds
    }
    return {
        "base": float(found.base[number].mean()),
        **{name: None if point is None else points[point] for name, point in picked.items()},
        "cross_validation": {name: _cross_validation(each, points, folds) for name, each in validated.items()},
        "points": points,
    }


def _chains(columns: Sequence[Column]) -> list[IntArray]:
    """Return the points that differ in alpha alone, by falling alpha: from the engine's order to CLIP's."""
    chains: dict[Any, list[int]] = {}
    for number, column in enumerate(columns):
        method = column.method
        chains.setdefault((column.model, column.variant, replace(method, alpha=0.0)), []).append(number)
    return [
        np.array(sorted(numbers, key=lambda number: -columns[number].method.alpha), np.intp)
        for numbers in chains.values()
    ]


def _setting(column: Column) -> Data:
    interval, precision = column.variant
    return {
        "model": column.model,
        "frame_interval": STORED if interval is None else interval / 1000,
        "precision": precision or STORED,
        **asdict(column.method),
    }


def _cross_validation(result: CrossValidation, points: Sequence[Data], folds: int) -> Data:
    chosen = [None if point is None else points[point] for point in result.chosen]
    alphas = [each["alpha"] for each in chosen if each is not None]
    return {
        "folds": folds,
        "gain": result.gain,
        "low": result.low,
        "high": result.high,
        "confidence": result.confidence,
        "says": choice.says(result),
        "deviation": result.deviation,
        "losing": result.losing,
        "alpha_low": min(alphas, default=None),
        "alpha_high": max(alphas, default=None),
    }


def _trade_off(points: Sequence[Data], columns: Sequence[Column], gains: FloatArray) -> list[Data]:
    """Return the best point of each model, variant and depth, and for which costs it is Pareto-optimal."""
    means = gains.mean(axis=0)
    best = [
        max(numbers, key=lambda number: (means[number], -number))
        for _, numbers in itertools.groupby(
            range(len(columns)),
            lambda number: (columns[number].model, columns[number].variant, columns[number].method.depth),
        )
    ]
    on = {
        cost: choice.frontier(np.array([points[each][cost] for each in best]), means[best]).tolist() for cost in COSTS
    }
    return [
        {**points[number], "on_frontier": {cost: on[cost][position] for cost in COSTS}}
        for position, number in enumerate(best)
    ]


_COLUMNS = (
    ("model", "model", ""),
    ("frame interval (s)", "frame_interval", "g"),
    ("precision", "precision", ""),
    ("depth", "depth", ""),
    ("normalization", "normalization", ""),
    ("no record", "missing", ""),
    ("pooling", "pooling", ""),
    ("alpha", "alpha", "g"),
    ("value", "", ".4f"),
    ("gain", "gain", "+.4f"),
    ("topics worse", "losing", ".3f"),
    ("at most", "losing_high", ".3f"),
    ("ms/query", "ms", ".3g"),
    ("bytes/clip", "bytes_a_clip", ".0f"),
    ("frames/clip", "frames_a_clip", ".1f"),
)
"""The column title and format of each field of a point; the value's field is named after the measure."""
_TERMINAL_COLUMNS = 13
_OFTEN_ALIKE = ("model", "missing", "pooling")
"""Fields that a terminal shows only where the points differ in them: it is narrow; the page and the JSON have all."""


def _titles(found: Data) -> list[str]:
    return [title if key else found["measure"] for title, key, _ in _COLUMNS]


def _row(found: Data, *path: str | int) -> list[Shown | str]:
    return [show(found, *path, key or found["measure"], form=form) for _, key, form in _COLUMNS]


def _choices(found: Data) -> Iterator[tuple[str, list[Shown | str]]]:
    for name, title in (("best", "best"), ("conservative", "conservative")):
        if found[name] is not None:
            yield title, _row(found, name)


def terminal(found: Data) -> Iterator[TerminalTable]:
    """Make tables of the recommended settings, their gain on unseen topics, and their costs."""
    alike = {name for name in _OFTEN_ALIKE if len({point[name] for point in found["points"]}) == 1}
    shown = [number for number, (_, key, _) in enumerate(_COLUMNS[:_TERMINAL_COLUMNS]) if key not in alike]

    def narrow(row: Sequence[Any]) -> list[Any]:
        return [row[number] for number in shown]

    columns = narrow(_titles(found))
    yield _terminal("Recommended settings", ["", *columns], [[title, *narrow(row)] for title, row in _choices(found)])
    if found["cross_validation"]:
        yield _terminal(f"Cross-validation on unseen topics, {found['measure']}", _UNSEEN, _unseen(found))
        if found["alternatives"]:
            yield _terminal("Other ways, compared on unseen topics", _ALTERNATIVES, _other_ways(found))
        if found["other_measures"]:
            yield _terminal("Other measures on unseen topics", _OTHERS, _others(found))
        yield _terminal("What so many topics can show", _VISIBLE, _visible(found))
    rows = [narrow(_row(found, "trade_off", number)) for number in range(len(found["trade_off"]))]
    yield _terminal(_TRADE_OFF, columns, rows)


_ALTERNATIVES = ("parameter", "value", "compared with", "gains more", "CI from", "to", "says", "recommended")


def _other_ways(found: Data) -> list[list[Shown | str]]:
    forms = {"parameter": "", "value": "", "than": "", "gain": "+.4f", "low": "+.4f", "high": "+.4f", "says": ""}
    return [
        [
            *(show(found, "alternatives", number, key, form=form) for key, form in forms.items()),
            show(found, "recommended", each["parameter"]),
        ]
        for number, each in enumerate(found["alternatives"])
    ]


_UNSEEN = (
    "setting",
    "gain, all topics",
    "gain, unseen topics",
    "CI from",
    "to",
    "says",
    "worse, unseen",
    "alphas",
    "to",
)


def _unseen(found: Data, *path: str) -> list[list[Shown | str]]:
    at = found
    for key in path:
        at = at[key]
    return [
        [
            name,
            show(found, *path, name, "gain", form="+.4f") if at[name] is not None else "-",
            *(
                show(found, *path, "cross_validation", name, key, form=form)
                for key, form in (
                    ("gain", "+.4f"),
                    ("low", "+.4f"),
                    ("high", "+.4f"),
                    ("says", ""),
                    ("losing", ".3f"),
                    ("alpha_low", "g"),
                    ("alpha_high", "g"),
                )
            ),
        ]
        for name in at["cross_validation"]
    ]


_OTHERS = ("measure", *_UNSEEN)


def _others(found: Data) -> list[list[Shown | str]]:
    return [[name, *row] for name in found["other_measures"] for row in _unseen(found, "other_measures", name)]


_VISIBLE = ("topics", "smallest mean gain", "topics that may lose, conservative")


def _visible(found: Data) -> list[list[Shown | str]]:
    forms = {"topics": "", "gain": ".4f", "losing": ""}
    return [
        [show(found, "visible", number, key, form=form) for key, form in forms.items()]
        for number in range(len(found["visible"]))
    ]


def _terminal(title: str, columns: Sequence[str], rows: Any) -> TerminalTable:
    table = TerminalTable(
        *columns, title=title, title_justify="left", box=box.SIMPLE_HEAD, collapse_padding=True, pad_edge=False
    )
    for row in rows:
        table.add_row(*(plain(str(cell)) for cell in row))
    return table


def page(found: Data, run: str, qrels: str) -> Page:
    """Make the page; ``run`` and ``qrels`` are the displayed names of the files."""
    caution = found["caution"]
    bound = f"at most {100 * caution['share']:g} % of all topics get worse by more than {caution['loss']:g}"
    measure = found["measure"]
    headline = [
        Headline(show(found, "base"), f"mean {measure} of the run"),
        Headline(show(found, "best", measure), f"mean {measure}, best setting"),
    ]
    if found["conservative"] is None:
        advice: list[Part] = [Text(f"Of no setting do these topics confirm that {bound} (conservative).")]
    else:
        headline.append(
            Headline(show(found, "conservative", "gain", form="+.4f"), "gain of the conservative setting", "gain")
        )
        advice = [
            Text(
                f"Conservative: the largest gain among the settings of which it is confirmed that {bound}. Of the "
                f"sweeps that say so, at least {100 * caution['confidence']:g} % are right about unseen topics."
            )
        ]
    numeric = frozenset(range(3, len(_COLUMNS)))
    rows = [[title, *row] for title, row in _choices(found)]
    columns = ["setting", *_titles(found)]
    advice.append(Table("Recommended settings", columns, rows, frozenset(each + 1 for each in numeric)))
    if found["cross_validation"]:
        unseen = Table(f"Gain in {measure} on unseen topics", _UNSEEN, _unseen(found), _numbers(_UNSEEN))
        advice += [Text(_WHY_UNSEEN), unseen]
        if found["alternatives"]:
            others = Table("Other ways, on unseen topics", _ALTERNATIVES, _other_ways(found), frozenset(range(3, 6)))
            advice += [Text(_WHY_ALTERNATIVES), others]
        if found["other_measures"]:
            other = "Other measures, on unseen topics"
            advice.append(Table(other, _OTHERS, _others(found), _numbers(_OTHERS) - {1}))
        visible = Table("What so many topics can show", _VISIBLE, _visible(found), frozenset(range(3)))
        advice += [Text(_WHAT_IS_VISIBLE), visible]
    trade_off = [_row(found, "trade_off", number) for number in range(len(found["trade_off"]))]
    pictures = [_curve(found, cost) for cost in COSTS]
    return Page(
        title="Settings of reranking: gain and cost",
        verdict=show(found, "sentence"),
        lead=f"{run} reranked with {len(found['points']):,} settings, judged by {qrels}",
        data=found,
        headline=headline,
        sections=[
            Section("What to do", _to_do(found)),
            Section("Recommended settings", [*map(Text, explained([measure, *found["other_measures"]])), *advice]),
            *example_section(found, run, f"the {found['use'] or 'best'} setting"),
            Section("Alpha", [_alphas(found)]),
            Section(
                "Gain and cost",
                [*pictures, Text(_COSTS), Table(_TRADE_OFF, _titles(found), trade_off, numeric)],
            ),
        ],
    )


def _to_do(found: Data) -> list[Part]:
    parts: list[Part] = [Advice([show(found, "advice", number) for number in range(len(found["advice"]))])]
    if found["settings"]:
        variables = {name: show(found, "settings", name) for name in found["settings"]}
        whose = (
            "streamer embed and streamer rerank"
            if found[found["use"]]["frame_interval"] != STORED or found[found["use"]]["precision"] != STORED
            else "streamer rerank"
        )
        parts.append(Settings(f"The {found['use']} setting, for the environment of {whose}:", variables))
    return parts


def _numbers(columns: Sequence[str]) -> frozenset[int]:
    """Return the columns of numbers: all but the first, and those that say something."""
    return frozenset(number for number, column in enumerate(columns) if number and column != "says")


_TRADE_OFF = "Best setting for each model, interval, precision and depth"
_WHY_UNSEEN = (
    "Topics worse is the share of topics that lose more than the bound. The largest of many gains is partly chance. "
    "Therefore the choice is cross-validated: it is repeated without each fold of topics and measured on that fold. "
    "The gain on unseen topics is the estimate for future queries. Its 95 % interval allows for the choice and for the "
    "number of measures; only an interval above 0 shows a gain."
)
_WHY_ALTERNATIVES = (
    "Another way of pooling, or of treating candidates without a record, is recommended only where its interval is "
    "above 0: both ways are compared topic by topic, each with its own best setting, chosen without these topics."
)
_WHAT_IS_VISIBLE = (
    "With so many topics, a mean gain on unseen topics of this size is shown with a probability of 80 %, if gains "
    "differ between topics as here; and a setting can be conservative if no more topics than this lose (-: none may)."
)
_COSTS = (
    "Milliseconds are for one query on this machine, in one thread: encoding its text, reading and scoring its "
    "candidates. For intervals and precisions other than the stored ones, the reading time is assumed to be "
    "proportional to the number of bytes."
)


def _alphas(found: Data) -> Picture:
    """Draw the gain by alpha for each normalisation, with all other settings as in the best one."""
    chosen = found["best"]

    def draw(axes: Axes) -> None:
        fixed = ("model", "frame_interval", "precision", "depth", "missing", "pooling")
        like = [point for point in found["points"] if all(point[name] == chosen[name] for name in fixed)]
        for normalization in dict.fromkeys(point["normalization"] for point in like):
            line = sorted((each["alpha"], each["gain"]) for each in like if each["normalization"] == normalization)
            style = plots.STYLES[len(axes.lines) % len(plots.STYLES)]
            axes.plot(*zip(*line, strict=True), marker="o", markersize=3, label=normalization, **style)
        axes.axhline(0, color=plots.LINE, linewidth=0.8)
        axes.set_xlabel("alpha (weight of the engine's score)")
        axes.set_ylabel(f"mean gain in {found['measure']}")
        axes.legend(frameon=False)

    return plots.picture(draw, name="alpha", caption="Mean gain by alpha; all other settings as in the best one.")


def _curve(found: Data, cost: str) -> Picture:
    def draw(axes: Axes) -> None:
        points = found["trade_off"]
        dots = axes.scatter([each[cost] for each in points], [each["gain"] for each in points], s=14, color=plots.OLD)
        dots.set_gid("choices")
        on = sorted((each[cost], each["gain"]) for each in points if each["on_frontier"][cost])
        axes.plot(*zip(*on, strict=True), color=plots.NEW, marker="o", markersize=4)
        axes.set_xlabel(COSTS[cost])
        axes.set_ylabel(f"mean gain in {found['measure']}")

    return plots.picture(draw, name=f"cost-{cost}", caption=f"Gain against {COSTS[cost]}; blue: Pareto-optimal.")
