"""The dashboard's main panels, drawn from what Prometheus answers to their queries."""

from __future__ import annotations

import re
import time
from typing import TYPE_CHECKING

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter

if TYPE_CHECKING:
    from pathlib import Path

    from tests.support.dashboards import BoardPanel
    from tests.support.monitored import Prometheus

MAIN = (
    "Events in", "Latency from issued_at to the reranked result", "Freshness: uploaded_at to searchable",
    "Lag in seconds", "Candidates", "Dead letters",
    "Batch time, mean", "Transaction time", "Store latency",
)  # fmt: skip
"""Three rows of three."""
_SECONDS = 90
_STEP_S = 1


def _name(legend: str, labels: dict[str, str]) -> str:
    """Return a legend as Grafana writes it, with each label in place of its ``{{name}}``."""
    return re.sub(r"{{(\w+)}}", lambda found: labels.get(found[1], ""), legend)


def draw(prometheus: Prometheus, panels: list[BoardPanel], path: Path) -> None:
    """Write a PNG of the last minute and a half."""
    by_title = {panel.title: panel for panel in panels}
    mpl.rcParams["font.size"] = 8
    figure = Figure(figsize=(13, 8), layout="constrained")
    end = time.time()
    for axes, title in zip(figure.subplots(3, 3).flat, MAIN, strict=True):
        panel = by_title[title]
        for query, legend in zip(panel.resolved("10s"), panel.legends, strict=True):
            answer = prometheus.ask("query_range", query=query, start=end - _SECONDS, end=end, step=_STEP_S)
            for series in answer["result"]:
                times, values = np.array(series["values"], dtype=float).T
                if not np.nan_to_num(values).any():
                    continue  # nothing of that kind has happened
                name = _name(legend, series["metric"])
                axes.plot(times - end, values, label=name, linewidth=1.2)
        axes.set_title(title, fontsize=10, fontweight="bold")
        axes.set_ylim(bottom=0)
        axes.yaxis.set_major_formatter(EngFormatter(unit="s" if panel.unit == "s" else ""))
        axes.grid(alpha=0.3)
        axes.legend(fontsize=6, loc="upper left").set_in_layout(False)
    figure.supxlabel("seconds before now", fontsize=8)
    figure.savefig(path, dpi=110)
