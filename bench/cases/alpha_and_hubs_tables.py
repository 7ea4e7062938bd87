"""The tables on rules for alpha and corrections of hubs, written from docs/bench/alpha-and-hubs.json."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from bench.cases.method_tables import SIGNIFICANT, counts, gain

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path


def tables(path: Path) -> dict[str, Callable[[], str]]:
    """Return, for each table of the page, the function that writes it from the file of figures."""
    return {
        "alpha-rules": lambda: rules_table(json.loads(path.read_bytes())),
        "hubs": lambda: hubs_table(json.loads(path.read_bytes())),
    }


def rules_table(results: Mapping[str, Any]) -> str:
    """Write the gains of rules for alpha over the best fixed alpha."""
    figures = results["figures"]["rules"]
    lines = _rows(figures["cells"], "rule for alpha", "than the best alpha of")
    for depth in dict.fromkeys(each["depth"] for each in figures["hindsight"]):
        of = [each for each in figures["hindsight"] if each["depth"] == depth]
        gains = " | ".join(" / ".join(f"{each['gain']:+.3f}" for each in same) for same in _by_engine(of))
        best = " | ".join(" / ".join(f"{each['alpha']:g}" for each in same) for same in _by_engine(of))
        lines.append(f"| in hindsight, each topic's best alpha | the engine | {depth} | {gains} | |")
        lines.append(f"| *the engine's best alpha* | | {depth} | {best} | |")
    return "\n".join([*lines, "", _measured(results, figures["cells"])]) + "\n"


def hubs_table(results: Mapping[str, Any]) -> str:
    """Write the gains of corrections of hubs over none."""
    figures = results["figures"]["hubs"]
    lines = _rows(figures["cells"], "correction", "both at")
    banks, skewness = (" / ".join(f"{each:.3g}" for each in figures[name].values()) for name in ("bank", "skewness"))
    bank = f"A bank has {banks} queries; the skewness of the numbers of lists that a clip is in is {skewness}."
    return "\n".join([*lines, "", f"{_measured(results, figures['cells'])} {bank}"]) + "\n"


def _rows(cells: Sequence[Mapping[str, Any]], way: str, than: str) -> list[str]:
    engines = list(dict.fromkeys(cell["engine"] for cell in cells))
    rows: dict[tuple[str, str, int], list[Mapping[str, Any]]] = {}
    for cell in cells:
        rows.setdefault((cell["way"], cell["than"], cell["depth"]), []).append(cell)
    lines = [
        f"| {way} | {than} | depth | {' | '.join(f'engine {engine}' for engine in engines)} | cells better / worse |",
        "| --- | --- | --- |" + " --- |" * (len(engines) + 1),
    ]
    ways = list(dict.fromkeys(cell["way"] for cell in cells))
    for key, of in sorted(rows.items(), key=lambda row: (row[0][2], ways.index(row[0][0]))):
        gains = " | ".join(" / ".join(map(gain, same)) for same in _by_engine(of))
        lines.append(f"| {key[0]} | {key[1]} | {key[2]} | {gains} | {counts(of)} |")
    return lines


def _by_engine(of: Sequence[Mapping[str, Any]]) -> list[list[Mapping[str, Any]]]:
    engines = list(dict.fromkeys(each["engine"] for each in of))
    return [[each for each in of if each["engine"] == engine] for engine in engines]


def _measured(results: Mapping[str, Any], cells: Sequence[Mapping[str, Any]]) -> str:
    figures = results["figures"]
    seeds = list(figures["clips"])
    return (
        f"Gain in AP on held-out topics with seeds {' / '.join(seeds)}, each {figures['topics'][seeds[0]]} topics on "
        f"{figures['clips'][seeds[0]]} clips. An asterisk and the last column: significant (paired randomization test, "
        f"p < {SIGNIFICANT}, corrected for {len(cells)} cells). Measured on {results['date'][:10]} at commit "
        f"{results['commit']}."
    )
