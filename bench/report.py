"""Results as text: figures with their spread, the table of bars, and what they were measured on."""

from __future__ import annotations

import statistics
import sys
from typing import TYPE_CHECKING, Any

from bench.bars import BARS

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping


def spread(values: Iterable[float]) -> dict[str, float]:
    """Return the median of several runs with the smallest and the largest."""
    ordered = sorted(values)
    return {"median": statistics.median(ordered), "min": ordered[0], "max": ordered[-1]}


def print_figures(figures: Mapping[str, Any]) -> None:
    """Print one figure a line."""
    for name, value in _flat(figures):
        sys.stdout.write(f"{name:44} {value}\n")


def _flat(figures: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    for name, value in figures.items():
        if isinstance(value, dict) and value.keys() == {"median", "min", "max"}:
            yield prefix + name, f"{value['median']:.4g} [{value['min']:.4g} .. {value['max']:.4g}]"
        elif isinstance(value, dict):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield prefix + name, f"{value:.5g}" if isinstance(value, float) else str(value)


def summary(results: Mapping[str, Any]) -> str:
    """Return, in Markdown, what was run on what, and the table of bars."""
    machine, versions = results["machine"], results["versions"]
    with_flags = f" ({', '.join(machine['flags'])})" if machine["flags"] else ""
    accelerator = f", {machine['accelerator']}" if machine["accelerator"] else ""
    measured = (
        f"Measured on {results['date'][:10]} at commit {results['commit']}: {machine['cores']} cores of "
        f"{machine['processor']}{with_flags}{accelerator}, {machine['memory_gib']:g} GiB, {machine['kernel']}; "
        f"{', '.join(f'{name} {version}' for name, version in versions.items())}. The broker shares the cores. "
        "Figures are medians, with the smallest and largest of the run's repetitions."
    )
    lines = [
        measured,
        "",
        "| bar | | figure | target | met |",
        "| --- | --- | --- | --- | --- |",
    ]
    for bar in BARS:
        figure = bar.figure(results)
        met = {True: "yes", False: "**no**", None: ""}[bar.is_met(results)]
        shown = "not measured" if figure is None else figure.text()
        lines.append(f"| {bar.number} | {bar.what} | {shown} | {bar.target()} | {met} |")
    return "\n".join(lines) + "\n"


def document(results: Mapping[str, Any]) -> str:
    """Return the whole report in Markdown: the summary and then every figure."""
    parts = ["# Benchmarks\n", summary(results)]
    for name, result in results["benchmarks"].items():
        parts.append(f"## {name} ({result['seconds']:.0f} s)\n")
        if "error" in result:
            parts.append(f"Failed: {result['error']}\n\n")
            continue
        parts.append("| figure | |\n| --- | --- |\n")
        parts.append("".join(f"| {key} | {value} |\n" for key, value in _flat(result["figures"])))
        parts.append("")
    return "\n".join(part.rstrip("\n") + "\n" for part in parts if part).replace("\n\n| figure", "\n| figure")
