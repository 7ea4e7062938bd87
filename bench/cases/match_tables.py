"""The table on matches, written from docs/bench/match.json."""

from __future__ import annotations

import json
from functools import partial
from typing import TYPE_CHECKING, Any

from bench.cases.method_tables import SIGNIFICANT, counts, gain

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path


def tables(path: Path) -> dict[str, Callable[[], str]]:
    """Return, for each table of the page, the function that writes it from the file of figures."""
    return {"match": lambda: match_table(json.loads(path.read_bytes()))}


def match_table(results: Mapping[str, Any]) -> str:
    """Write the areas under the ROC of the plain signal, what the others gain, and how often percentiles are high."""
    figures = results["figures"]
    cells, high = figures["cells"], figures["high"]
    engines = list(dict.fromkeys(cell["engine"] for cell in cells))
    ways = list(dict.fromkeys(cell["way"] for cell in cells))
    lines = [
        f"| signal | | {' | '.join(f'engine {engine}' for engine in engines)} | cells better / worse |",
        "| --- | --- |" + " --- |" * (len(engines) + 1),
    ]
    plain = [cell for cell in cells if cell["way"] == ways[0]]
    areas = " | ".join(_joined(plain, engine, lambda cell: f"{cell['before']:.3f}") for engine in engines)
    lines.append(f"| best frame score | area | {areas} | |")
    for way in ways:
        of = [cell for cell in cells if cell["way"] == way]
        gains = " | ".join(_joined(of, engine, gain) for engine in engines)
        lines.append(f"| {way} | gain in area | {gains} | {counts(of)} |")
    for way in dict.fromkeys(each["way"] for each in high):
        rows = [each for each in high if each["way"] == way]
        for side, name in (("there", "relevant ones listed"), ("gone", "none listed")):
            shares = " | ".join(_joined(rows, engine, partial(_percent, side)) for engine in engines)
            lines.append(f"| {way} | 0.9 or more, {name} | {shares} | |")
    seeds = list(figures["clips"])
    relevant = " / ".join(f"{100 * each:.1f} %" for each in figures["relevant_in_bank"].values())
    measured = (
        f"Area under the ROC with seeds {' / '.join(seeds)}, each at most {figures['topics'][seeds[0]]} topics on "
        f"{figures['clips'][seeds[0]]} clips at depth {figures['depth']}, with a bank of {figures['bank'][seeds[0]]} "
        f"clips, of which {relevant} are relevant to a topic on average. An asterisk and the last column: significant "
        f"(paired randomization test, p < {SIGNIFICANT}, corrected for {len(cells)} cells). Measured on "
        f"{results['date'][:10]} at commit {results['commit']}."
    )
    return "\n".join([*lines, "", measured]) + "\n"


def _joined(rows: list[Mapping[str, Any]], engine: str, text: Callable[[Mapping[str, Any]], str]) -> str:
    return " / ".join(text(row) for row in rows if row["engine"] == engine)


def _percent(side: str, row: Mapping[str, Any]) -> str:
    return f"{100 * row[side]:.0f} %"
