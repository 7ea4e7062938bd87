"""What ``streamer sweep`` finds: as JSON, as tables for a terminal, as an HTML page."""

from __future__ import annotations

import itertools
from dataclasses import asdict
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
from rich import box
from rich.table import Table as TerminalTable

from streamer.evaluation import choice, plots
from streamer.evaluation.page import Headline, Page, Section, Table, Text, show

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from matplotlib.axes import Axes

    from streamer.evaluation.choice import Caution, CrossValidation, Rule
    from streamer.evaluation.page import Picture, Shown
    from streamer.evaluation.sweep_run import Column, Sweep
    from streamer.scoring import FloatArray

Data = dict[str, Any]

COSTS = {
    "ms": "milliseconds a query",
    "bytes_a_clip": "stored bytes a clip",
    "frames_a_clip": "encoded frames a clip",
}
"""What gain is weighed against."""
_STORED = "stored"


def data(found: Sweep, caution: Caution, folds: int) -> Data:
    """Return everything as JSON, numbers unrounded; ``folds`` of the cross-validation, 0 for none."""
    gains = found.values - found.base[:, None]
    points = [
        {
            **_setting(column),
            "infAP": float(found.values[:, number].mean()),
            "gain": float(gains[:, number].mean()),
            "losing": float(caution.losing(gains[:, number : number + 1])[0]),
            **{cost: getattr(column, cost) for cost in COSTS},
        }
        for number, column in enumerate(found.columns)
    ]
    rules: dict[str, Rule] = {"best": choice.best, "conservative": partial(choice.conservative, caution=caution)}
    picked = {name: rule(gains) for name, rule in rules.items()}
    return {
        "topics": len(found.topics),
        "base": float(found.base.mean()),
        "caution": {"loss": caution.loss, "share": caution.share},
        **{name: None if number is None else points[number] for name, number in picked.items()},
        "cross_validation": {
            name: _cross_validation(choice.cross_validate(gains, rule, caution, folds=folds), points, folds)
            for name, rule in rules.items()
            if folds
        },
        "trade_off": _trade_off(points, found.columns, gains),
        "points": points,
    }


def _setting(column: Column) -> Data:
    interval, precision = column.variant
    return {
        "model": column.model,
        "frame_interval": _STORED if interval is None else interval / 1000,
        "precision": precision or _STORED,
        **asdict(column.method),
    }


def _cross_validation(result: CrossValidation, points: Sequence[Data], folds: int) -> Data:
    chosen = [None if point is None else points[point] for point in result.chosen]
    alphas = [each["alpha"] for each in chosen if each is not None]
    return {
        "folds": folds,
        "gain": result.gain,
        "losing": result.losing,
        "alpha_low": min(alphas, default=None),
        "alpha_high": max(alphas, default=None),
    }


def _trade_off(points: Sequence[Data], columns: Sequence[Column], gains: FloatArray) -> list[Data]:
    """Return the best point of each model, variant and depth, and by which costs no other of them beats it."""
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
    ("every", "frame_interval", "g"),
    ("precision", "precision", ""),
    ("depth", "depth", ""),
    ("normalised", "normalization", ""),
    ("alpha", "alpha", "g"),
    ("infAP", "infAP", ".4f"),
    ("gain", "gain", "+.4f"),
    ("losing", "losing", ".3f"),
    ("ms", "ms", ".3g"),
    ("bytes a clip", "bytes_a_clip", ".0f"),
    ("frames a clip", "frames_a_clip", ".1f"),
)
"""What a table calls each field of a point, and its format."""
_TERMINAL_COLUMNS = 10


def _row(found: Data, *path: str | int) -> list[Shown | str]:
    return [show(found, *path, key, form=form) for _, key, form in _COLUMNS]


def _choices(found: Data) -> Iterator[tuple[str, list[Shown | str]]]:
    for name, title in (("best", "best"), ("conservative", "conservative")):
        if found[name] is not None:
            yield title, _row(found, name)


def terminal(found: Data) -> Iterator[TerminalTable]:
    """Make tables of what to choose, what it promises, and what it costs."""
    # The page and the JSON have all columns; a terminal is narrow, and mostly there is one model.
    first = 0 if len({point["model"] for point in found["points"]}) > 1 else 1
    columns = [name for name, _, _ in _COLUMNS[first:_TERMINAL_COLUMNS]]
    chosen = [[title, *row[first:_TERMINAL_COLUMNS]] for title, row in _choices(found)]
    yield _terminal("What to choose", ["", *columns], chosen)
    if found["cross_validation"]:
        yield _terminal("On topics that the choice has not seen", _UNSEEN, _unseen(found))
    rows = [_row(found, "trade_off", number) for number in range(len(found["trade_off"]))]
    best = [row[first:_TERMINAL_COLUMNS] for row in rows]
    yield _terminal("The best of each model, interval, precision and depth", columns, best)


_UNSEEN = ("choice", "gain where chosen", "gain unseen", "losing unseen", "alphas from", "to")


def _unseen(found: Data) -> list[list[Shown | str]]:
    return [
        [
            name,
            show(found, name, "gain", form="+.4f") if found[name] is not None else "-",
            show(found, "cross_validation", name, "gain", form="+.4f"),
            show(found, "cross_validation", name, "losing", form=".3f"),
            show(found, "cross_validation", name, "alpha_low", form="g"),
            show(found, "cross_validation", name, "alpha_high", form="g"),
        ]
        for name in found["cross_validation"]
    ]


def _terminal(title: str, columns: Sequence[str], rows: Any) -> TerminalTable:
    table = TerminalTable(
        *columns, title=title, title_justify="left", box=box.SIMPLE_HEAD, collapse_padding=True, pad_edge=False
    )
    for row in rows:
        table.add_row(*(str(cell) for cell in row))
    return table


def page(found: Data, run: str, qrels: str) -> Page:
    """Make the page; ``run`` and ``qrels`` are what to call the files."""
    caution = found["caution"]
    bound = f"at most {100 * caution['share']:g} % of the topics lose more than {caution['loss']:g}"
    headline = [
        Headline(show(found, "base"), "mean infAP of the run"),
        Headline(show(found, "best", "infAP"), "at best"),
    ]
    if found["conservative"] is None:
        advice: list[Text | Table] = [Text(f"No setting is conservative: {bound}.")]
    else:
        headline.append(
            Headline(show(found, "conservative", "gain", form="+.4f"), "gain, conservative setting", "gain")
        )
        advice = [Text(f"Conservative: the largest gain where {bound}.")]
    numeric = frozenset(range(3, len(_COLUMNS)))
    rows = [[title, *row] for title, row in _choices(found)]
    advice.append(Table(["", *(name for name, _, _ in _COLUMNS)], rows, frozenset(each + 1 for each in numeric)))
    if found["cross_validation"]:
        advice += [Text(_WHY_UNSEEN), Table(_UNSEEN, _unseen(found), frozenset(range(1, len(_UNSEEN))))]
    trade_off = [_row(found, "trade_off", number) for number in range(len(found["trade_off"]))]
    pictures = [_curve(found, cost) for cost in COSTS]
    return Page(
        title="Which setting, and what it costs",
        lead=f"{run} reranked in {len(found['points']):,} ways, judged by {qrels}",
        data=found,
        headline=headline,
        sections=[
            Section("What to choose", advice),
            Section("Alpha", [_alphas(found)]),
            Section(
                "Gain and cost",
                [*pictures, Text(_COSTS), Table([name for name, _, _ in _COLUMNS], trade_off, numeric)],
            ),
        ],
    )


_WHY_UNSEEN = (
    "Losing is the share of topics that lose more than the bound; every is the seconds between frames. The largest of "
    "many gains is partly luck. So the choice is made anew without each part of the topics, and measured on that part "
    "alone: what a setting promises for queries to come is the gain on unseen topics."
)
_COSTS = (
    "Milliseconds are one query's on this machine, in one thread: its text encoded, its candidates read and scored. Of "
    "intervals and precisions other than the stored ones, reading is taken to be in proportion to the bytes."
)


def _alphas(found: Data) -> Picture:
    """Draw the gain by alpha, for each normalisation, with all else as in the best setting."""
    chosen = found["best"]

    def draw(axes: Axes) -> None:
        fixed = ("model", "frame_interval", "precision", "depth")
        like = [point for point in found["points"] if all(point[name] == chosen[name] for name in fixed)]
        for normalization in dict.fromkeys(point["normalization"] for point in like):
            line = sorted((each["alpha"], each["gain"]) for each in like if each["normalization"] == normalization)
            axes.plot(*zip(*line, strict=True), marker="o", markersize=3, label=normalization)
        axes.axhline(0, color="black", linewidth=0.8)
        axes.set_xlabel("alpha: the weight of the engine's own score")
        axes.set_ylabel("mean gain in infAP")
        axes.legend(frameon=False)

    return plots.picture(draw, name="alpha", caption="Mean gain by alpha, with all else as in the best setting.")


def _curve(found: Data, cost: str) -> Picture:
    def draw(axes: Axes) -> None:
        points = found["trade_off"]
        dots = axes.scatter([each[cost] for each in points], [each["gain"] for each in points], s=14, color=plots.OLD)
        dots.set_gid("choices")
        on = sorted((each[cost], each["gain"]) for each in points if each["on_frontier"][cost])
        axes.plot(*zip(*on, strict=True), color=plots.NEW, marker="o", markersize=4)
        axes.set_xlabel(COSTS[cost])
        axes.set_ylabel("mean gain in infAP")

    return plots.picture(draw, name=f"cost-{cost}", caption=f"Gain against {COSTS[cost]}; blue: what no other beats.")
