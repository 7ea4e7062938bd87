"""The demo's output: progress, the view of ``streamer top``, queries before and after, figures."""

from __future__ import annotations

import contextlib
import threading
from typing import TYPE_CHECKING, Self

from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from streamer.terminal import plain
from streamer.top.view import View

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from rich.console import Console, ConsoleOptions, RenderResult

    from streamer.demo.report import Judged
    from streamer.terminal import Terminal
    from streamer.top.watch import Frame, Watch

_TABLE_ROWS, _TABLE_QUERIES = 5, 3


_LINES_BESIDE = 3
"""Terminal lines that the view leaves for the progress below it and the output above it."""


class Stage:
    """Shows progress: on a terminal below the view of ``streamer top``, otherwise alone, as plain lines."""

    def __init__(self, console: Terminal, watch: Watch) -> None:
        """``watch`` is closed by this object."""
        self._console = console
        self._watch = watch
        self._frame: Frame | None = None
        self._progress: Progress | None = None
        self._live = Live(self, console=console, refresh_per_second=4, transient=True)
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._look, name="top", daemon=True)

    def __enter__(self) -> Self:
        if self._console.is_terminal:
            self._live.start()
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        if self._console.is_terminal:
            self._thread.join()
            self._live.stop()
        self._watch.close()

    @contextlib.contextmanager
    def progress(self) -> Iterator[Progress]:
        """Show the progress of the work in this context."""
        columns = (TextColumn("{task.description:<44}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        progress = Progress(*columns, console=self._console)
        if not self._console.is_terminal:
            with progress:
                yield progress
            return
        self._progress = progress
        try:
            yield progress
        finally:
            self._progress = None
            self._console.print(progress)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Draw the last frame, and the progress below it."""
        if self._frame is not None:
            yield View(self._frame, height=console.height - _LINES_BESIDE)
        if self._progress is not None:
            yield self._progress

    def _look(self) -> None:
        while not self._ended.is_set():
            self._frame = self._watch.frame()
            self._ended.wait(self._watch.interval)


def mean(values: Sequence[float | None]) -> float | None:
    """Return the mean of the known values, None if there are none."""
    numbers = [value for value in values if value is not None]
    return sum(numbers) / len(numbers) if numbers else None


def most_telling(judged: Sequence[Judged]) -> list[Judged]:
    """Choose the queries with the largest gain, or without judgments those whose first result rose most."""

    def told(each: Judged) -> float:
        if each.before is not None and each.after is not None:
            return each.after - each.before
        return float(each.event.results[0].initial_rank) if each.event.results else 0.0

    return sorted(judged, key=told, reverse=True)[:_TABLE_QUERIES]


def before_and_after(judged: Judged) -> Table:
    """Show a query's first results before and after."""
    title = plain(judged.event.query, "bold")
    if judged.before is not None:
        title = title + Text(f"  average precision {judged.before:.2f} -> {judged.after:.2f}")
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


def _marked(clip_id: str, judged: Judged) -> Text:
    return plain(f"{clip_id} ✓", "green") if judged.relevant and clip_id in judged.relevant else plain(clip_id)


def figures(summary: Mapping[str, object]) -> Table:
    """Show the summary."""
    table = Table(title=Text("Figures of this run", "bold"), title_justify="left", show_header=False)
    for name, value in summary.items():
        table.add_row(name, f"{value:.3f}" if isinstance(value, float) else "-" if value is None else str(value))
    return table
