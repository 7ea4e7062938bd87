"""The tables on other ways of scoring, written from docs/bench/method.json and docs/bench/negation.json."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from streamer.synthetic import probe_report

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

SIGNIFICANT = 0.05


def tables(path: Path) -> dict[str, Callable[[], str]]:
    """Return, for each table of the page, the function that writes it from the file of figures."""

    def of(write: Callable[[Mapping[str, Any]], str]) -> Callable[[], str]:
        return lambda: write(json.loads(path.read_bytes()))

    return {
        "imputing": of(lambda results: _section(results, "missing", "clips without a record")),
        "pooling": of(lambda results: _section(results, "pooling", "pooling")),
    }


def negation_tables(path: Path) -> dict[str, Callable[[], str]]:
    """Return likewise the tables on negated queries."""

    def read() -> Mapping[str, Any]:
        found: Mapping[str, Any] = json.loads(path.read_bytes())
        return found

    return {
        "probes": lambda: probe_report.markdown(read()["probes"]),
        "negation": lambda: _section(read(), "negation", "topics: frames scored by"),
    }


def counts(cells: Sequence[Mapping[str, Any]]) -> str:
    """Count the cells that are significantly better and worse; where they differ, also the worse without correction."""
    better = sum(each["gain"] > 0 and each["bonferroni_p"] < SIGNIFICANT for each in cells)
    worse = sum(each["gain"] < 0 and each["bonferroni_p"] < SIGNIFICANT for each in cells)
    uncorrected = sum(each["gain"] < 0 and each["p"] < SIGNIFICANT for each in cells)
    apart = f" ({uncorrected} uncorrected)" if uncorrected > worse else ""
    return f"{better} / {worse}{apart}"


def _section(results: Mapping[str, Any], parameter: str, title: str) -> str:
    figures = results["figures"]
    cells = [cell for cell in figures["cells"] if cell["parameter"] == parameter]
    engines = list(dict.fromkeys(cell["engine"] for cell in cells))
    rows: dict[tuple[int, str], list[Mapping[str, Any]]] = {}
    for cell in cells:
        name = f"{100 * cell['share']:.0f} %" if "share" in cell else cell["value"]
        rows.setdefault((cell["depth"], name), []).append(cell)
    lines = [
        f"| {title} | depth | {' | '.join(f'engine {engine}' for engine in engines)} | cells better / worse |",
        "| --- | --- |" + " --- |" * (len(engines) + 1),
    ]
    for (depth, name), of in sorted(rows.items()):
        gains = [" / ".join(gain(cell) for cell in of if cell["engine"] == engine) for engine in engines]
        lines.append(f"| {name} | {depth} | {' | '.join(gains)} | {counts(of)} |")
    seeds = list(figures["clips"])
    measured = (
        f"Gain in AP with seeds {' / '.join(seeds)}, each {figures['topics'][seeds[0]]} topics on "
        f"{figures['clips'][seeds[0]]} clips; alpha {figures['alpha']:g}, {figures['normalization']}. An asterisk "
        f"and the last column: significant (paired randomization test, p < {SIGNIFICANT}, corrected for {len(cells)} "
        f"cells). Measured on {results['date'][:10]} at commit {results['commit']}."
    )
    return "\n".join([*lines, "", measured]) + "\n"


def gain(cell: Mapping[str, Any]) -> str:
    """Write a cell's gain, with an asterisk if it is significant."""
    mark = "\\*" if cell["bonferroni_p"] < SIGNIFICANT else ""
    return f"{cell['gain']:+.3f}{mark}"
