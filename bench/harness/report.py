"""Results as text: figures with their spread, the table of targets, and the machine."""

from __future__ import annotations

import statistics
import sys
from typing import TYPE_CHECKING, Any

from bench.harness.targets import TARGETS, Figure

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping


def spread(values: Iterable[float]) -> dict[str, float]:
    """Return the median of several runs with the smallest and the largest."""
    ordered = sorted(values)
    return {"median": statistics.median(ordered), "min": ordered[0], "max": ordered[-1]}


def print_figures(figures: Mapping[str, Any]) -> None:
    """Print each figure on a line."""
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
    """Return, in Markdown, the machine, the versions and the table of targets."""
    machine, versions = results["machine"], results["versions"]
    with_flags = f" ({', '.join(machine['flags'])})" if machine["flags"] else ""
    accelerator = f", {machine['accelerator']}" if machine["accelerator"] else ""
    measured = (
        f"Measured on {results['date'][:10]} at commit {results['commit']}: {machine['cores']} cores of "
        f"{machine['processor']}{with_flags}{accelerator}, {machine['memory_gib']:g} GiB, {machine['kernel']}; "
        f"{', '.join(f'{name} {version}' for name, version in versions.items())}. The broker shares the cores. "
        "Each result is the median of the repetitions, with the smallest and the largest in brackets."
    )
    if results.get("quick"):
        measured = f"**Tiny sizes: the figures mean nothing.** {measured}"
    lines = [
        measured,
        "",
        "| measurement | result | target | met |",
        "| --- | --- | --- | --- |",
    ]
    for target in TARGETS:
        if target.benchmark not in results["benchmarks"]:
            continue
        figure = target.figure(results)
        met = {True: "yes", False: "**no**", None: ""}[target.is_met(results)]
        shown = "not measured" if figure is None else figure.text()
        lines.append(f"| {target.what} | {shown} | {target.limit()} | {met} |")
    return "\n".join([*lines, *_hot_path(results)]) + "\n"


def _hot_path(results: Mapping[str, Any]) -> list[str]:
    """Return the time of each step of one query, as lines of a table."""
    steps = results["benchmarks"].get("hot_path", {}).get("figures", {}).get("us_a_query")
    if not steps:
        return []
    told = (
        "Duration of each step of one query with 100 candidates in a backlog. The pipeline's thread does the steps "
        "down to *encode*; the loop's thread does *produce* and *commit* at the same time:"
    )
    lines = [
        "",
        told,
        "",
        "| step | microseconds per query |",
        "| --- | --- |",
    ]
    return lines + [f"| {name} | {Figure.of(figure).text()} |" for name, figure in steps.items()]


def document(results: Mapping[str, Any]) -> str:
    """Return the whole report in Markdown: the summary and then every figure."""
    parts = ["# Benchmarks\n", summary(results)]
    for name, result in results["benchmarks"].items():
        parts.append(f"## {name} ({result['seconds']:.0f} s)\n")
        if "error" in result:
            parts.append(f"Failed: {result['error']}\n")
        else:
            rows = "".join(f"| {key} | {value} |\n" for key, value in _flat(result["figures"]))
            parts.append(f"| figure | |\n| --- | --- |\n{rows}")
    return "\n".join(parts)
