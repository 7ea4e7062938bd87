"""Figures as text: medians with their spread."""

from __future__ import annotations

import statistics
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping


def spread(values: Iterable[float]) -> dict[str, float]:
    """Return the median of several runs with the smallest and the largest."""
    ordered = sorted(values)
    return {"median": statistics.median(ordered), "min": ordered[0], "max": ordered[-1]}


def print_figures(figures: Mapping[str, Any]) -> None:
    """Print one figure a line."""
    for name, value in figures.items():
        sys.stdout.write(f"{name:32} {value}\n")
