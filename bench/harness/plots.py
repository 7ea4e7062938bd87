"""Plots of a run, as SVG."""

from __future__ import annotations

from functools import reduce
from typing import TYPE_CHECKING, Any

import matplotlib as mpl
from matplotlib.figure import Figure as Canvas

from bench.harness.targets import TARGETS

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from matplotlib.axes import Axes

_GOOD, _BAD, _PLAIN = "#2f7d4f", "#b5432e", "#5b7083"
_TICKS = (0.1, 0.2, 0.5, 0.7, 1, 1.5, 2, 3, 5, 10, 20, 50)
_STYLE: dict[Any, Any] = {"svg.hashsalt": "bench", "font.size": 9, "axes.spines.top": False, "axes.spines.right": False}


def draw(results: Mapping[str, Any], folder: Path) -> list[Path]:
    """Draw the plots for which the run has figures; return the files."""
    with mpl.rc_context(_STYLE):
        drawn = []
        for name, picture in (("targets", _targets), ("throughput", _throughput), ("latency", _latency)):
            canvas = picture(results)
            if canvas is not None:
                path = folder / f"{name}.svg"
                canvas.savefig(path, bbox_inches="tight", metadata={"Date": None})
                drawn.append(path)
    return drawn


def _canvas(height: float) -> tuple[Canvas, Axes]:
    canvas = Canvas(figsize=(8, height))
    return canvas, canvas.subplots()


def _targets(results: Mapping[str, Any]) -> Canvas | None:
    """Draw each figure relative to its target, such that more than 1 meets it."""
    rows = []
    for target in reversed(TARGETS):
        figure = target.figure(results)
        limit = target.at_most if target.at_most is not None else target.at_least
        if figure is None or limit is None:
            continue
        values = [limit / each if target.at_most is not None else each / limit for each in figure if each]
        if not values:  # a figure of 0 has no place on a logarithmic axis
            continue
        rows.append((target.what, values[0], min(values), max(values)))
    if not rows:
        return None
    canvas, axes = _canvas(0.6 + 0.27 * len(rows))
    errors = [[value - low for _, value, low, _ in rows], [high - value for _, value, _, high in rows]]
    shares = [value for _, value, _, _ in rows]
    names = [name for name, *_ in rows]
    axes.errorbar(shares, names, xerr=errors, fmt="none", ecolor="#999999")
    axes.scatter(shares, names, color=[_GOOD if share >= 1 else _BAD for share in shares], zorder=3)
    axes.axvline(1, color="black", linewidth=1)
    axes.grid(axis="y", color="#eeeeee")
    axes.set_axisbelow(True)
    axes.set_xscale("log")
    ticks = [tick for tick in _TICKS if min(0.9, *(low for _, _, low, _ in rows)) <= tick]
    ticks = [tick for tick in ticks if tick <= max(1.1, *(high for *_, high in rows))]
    axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    axes.minorticks_off()
    axes.set_xlabel("figure relative to its target: right of the line is better than the target")
    return canvas


def _named(results: Mapping[str, Any], benchmark: str, names: Mapping[str, str]) -> dict[str, dict[str, float]]:
    """Return the figures that the run has, by their labels; a dot in a name separates the keys of nested figures."""
    figures = results["benchmarks"].get(benchmark, {}).get("figures", {})
    found = {shown: reduce(lambda at, key: at.get(key, {}), name.split("."), figures) for shown, name in names.items()}
    return {shown: figure for shown, figure in found.items() if figure}


def _throughput(results: Mapping[str, Any]) -> Canvas | None:
    """Draw the events per second of each process with a backlog."""
    one = {
        "hand-written loop, no frames": "loop_events_per_s",
        "ideal: 1 / (loop + scoring)": "ideal_events_per_s",
        "streamer rerank": "events_per_s",
    }
    peers = {
        f"{peer}, settings for {kind}": f"{key}.{peer}.events_per_s"
        for peer in ("quixstreams", "faststream")
        for kind, key in (("backlog", "known"), ("latency", "committed_each"))
    }
    found = _named(results, "reranking_throughput", one) | _named(results, "reranking_peers", peers)
    return _horizontal(found, "events per second, one process, 100 candidates") if found else None


def _latency(results: Mapping[str, Any]) -> Canvas | None:
    """Draw the median and the 99th percentile of the latency at 100 events per second."""
    found: dict[str, dict[str, float]] = {}
    for percentile in ("p99", "p50"):
        loop = {
            f"hand-written loop, no frames, {percentile}": f"loop_{percentile}_ms",
            f"streamer rerank, {percentile}": f"service_{percentile}_ms",
        }
        peers = {f"{peer}, {percentile}": f"known.{peer}.{percentile}_ms" for peer in ("quixstreams", "faststream")}
        found |= _named(results, "reranking_latency", loop) | _named(results, "reranking_peers", peers)
    return _horizontal(found, "ms from query to readable result at 100 events/s, cached texts") if found else None


def _horizontal(found: Mapping[str, Mapping[str, float]], label: str) -> Canvas:
    canvas, axes = _canvas(0.6 + 0.27 * len(found))
    rows = list(found.items())[::-1]
    medians = [figure["median"] for _, figure in rows]
    errors = [
        [figure["median"] - figure["min"] for _, figure in rows],
        [figure["max"] - figure["median"] for _, figure in rows],
    ]
    drawn = axes.barh([name for name, _ in rows], medians, xerr=errors, color=_PLAIN, ecolor="#999999")
    axes.bar_label(drawn, [f"{value:,.3g}" if value < 100 else f"{value:,.0f}" for value in medians], padding=12)  # noqa: PLR2004
    axes.set_xlabel(label)
    return canvas
