"""What the demo prints: queries before and after, and the figures of the run."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.markup import escape
from rich.table import Table

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from streamer.demo.report import Judged

_TABLE_ROWS, _TABLE_QUERIES = 5, 3


def mean(values: Sequence[float | None]) -> float | None:
    """Return the mean of the values that are known, None where none is."""
    numbers = [value for value in values if value is not None]
    return sum(numbers) / len(numbers) if numbers else None


def most_telling(judged: Sequence[Judged]) -> list[Judged]:
    """Choose the queries that gained most, or without judgments those whose first result climbed highest."""

    def told(each: Judged) -> float:
        if each.before is not None and each.after is not None:
            return each.after - each.before
        return float(each.event.results[0].initial_rank) if each.event.results else 0.0

    return sorted(judged, key=told, reverse=True)[:_TABLE_QUERIES]


def before_and_after(judged: Judged) -> Table:
    """Show a query's first results before and after."""
    title = f"[b]{escape(judged.event.query)}"
    if judged.before is not None:
        title += f"[/b]  average precision {judged.before:.2f} -> {judged.after:.2f}"
    table = Table(title=title, title_justify="left", expand=False)
    table.add_column("before: clip")
    for name in ("rank", "after: clip", "moment", "score", "old rank"):
        table.add_column(name, justify="left" if "clip" in name else "right")
    before = sorted(judged.event.results, key=lambda result: result.initial_rank)
    for old, new in list(zip(before, judged.event.results, strict=True))[:_TABLE_ROWS]:
        table.add_row(
            _marked(old.clip_id, judged),
            str(new.rank),
            _marked(new.clip_id, judged),
            "" if new.moment_ms is None else f"{new.moment_ms / 1000:.1f} s",
            "" if new.score is None else f"{new.score:.3f}",
            str(new.initial_rank),
        )
    return table


def _marked(clip_id: str, judged: Judged) -> str:
    shown = escape(clip_id)
    return f"[green]{shown} ✓" if judged.relevant and clip_id in judged.relevant else shown


def figures(summary: Mapping[str, object]) -> Table:
    """Show the summary."""
    table = Table(title="[b]Figures of this run", title_justify="left", show_header=False)
    for name, value in summary.items():
        table.add_row(name, f"{value:.3f}" if isinstance(value, float) else "-" if value is None else str(value))
    return table
