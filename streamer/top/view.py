"""Renders a frame as tables for a terminal of any width."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple

from rich.console import Group
from rich.table import Table
from rich.text import Text

from streamer.terminal import plain

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from rich.console import Console, ConsoleOptions, RenderableType, RenderResult

    from streamer.top.watch import Answer, Frame, Instance, Letter, Load

_FRESH_MOVE_S = 10.0
_LEAST_ROWS = 3


class _Column(NamedTuple):
    """A column of figures; omitted where the terminal is narrower than ``from_width``."""

    title: str
    attribute: str
    form: str
    from_width: int = 0


_COLUMNS = (
    _Column("in/s", "consumed", "rate"),
    _Column("out/s", "produced", "rate"),
    _Column("lag", "lag", "count"),
    _Column("lag (s)", "lag_seconds", "seconds", 70),
    _Column("p50", "p50", "seconds", 80),
    _Column("p95", "p95", "seconds"),
    _Column("degraded/s", "degraded", "rate", 100),
    _Column("dead/s", "dead", "rate", 90),
)


class View:
    """Renders one frame, by :class:`rich.live.Live` or by printing it."""

    def __init__(self, frame: Frame, *, height: int | None = None) -> None:
        """``height``: the number of lines available, None for no limit."""
        self._frame = frame
        self._height = height

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Render it at the console's width."""
        width = options.max_width
        frame = self._frame
        parts: list[RenderableType] = [_headline(frame)]
        if frame.problem is not None:
            parts.append(plain(frame.problem, "yellow"))
        parts.append(_instances(frame, width))
        if partitions := _partitions(frame.instances):
            parts.append(partitions)
        rows = 10
        if self._height is not None:
            used = sum(len(console.render_lines(part, options)) for part in parts)
            # Two titles and two lines of column names, and one line that stays free.
            rows = max(_LEAST_ROWS, (self._height - used - 5) // 2)
        letters = frame.letters[:rows]
        parts += [
            _answers(frame, frame.answers[: max(rows, 2 * rows - max(1, len(letters)))], width),
            _letters(frame, letters, width),
        ]
        yield Group(*parts)


def _headline(frame: Frame) -> Text:
    answering = sum(instance.problem is None for instance in frame.instances)
    text = Text(no_wrap=True, overflow="ellipsis")
    text.append("streamer top", style="bold")
    whole = answering == len(frame.instances)
    text.append(f"  {answering} of {len(frame.instances)} targets reachable", style="green" if whole else "bold red")
    text.append(f"  {frame.at:%H:%M:%S} UTC, every {frame.interval:g} s")
    return text


def _table(title: str) -> Table:
    return Table(title=Text(title, "bold"), title_justify="left", box=None, pad_edge=False, expand=True)


def _instances(frame: Frame, width: int) -> Table:
    table = _table("instances")
    table.add_column("target", no_wrap=True, overflow="ellipsis", ratio=3)
    table.add_column("command", no_wrap=True)
    table.add_column("state", no_wrap=True, overflow="ellipsis", ratio=5)
    columns = [column for column in _COLUMNS if width >= column.from_width]
    for column in columns:
        table.add_column(column.title, justify="right", no_wrap=True)
    # Services with another group suffix share the topics, but each group processes all of them.
    groups = {instance.group for instance in frame.instances if instance.command}
    commands = {instance.command for instance in frame.instances if instance.command}
    several = len(groups) > len(commands)

    def named(command: str, group: str) -> Text:
        return plain(f"{command} ({group})" if several and group else command)

    for instance in frame.instances:
        figures = _figures(instance.load, columns) if instance.problem is None else [""] * len(columns)
        table.add_row(plain(instance.target), named(instance.command, instance.group), _state(instance), *figures)
    for (command, group), load in frame.totals.items():
        table.add_row("all", named(command, group), "", *_figures(load, columns), style="bold")
    return table


def _state(instance: Instance) -> Text:
    if instance.problem is not None:
        return plain(f"unreachable: {instance.problem}", "red")
    if instance.not_ready:
        return plain(f"not ready: {', '.join(instance.not_ready)}", "yellow")
    return Text("ready", "green")


def _figures(load: Load | None, columns: Sequence[_Column]) -> list[str]:
    if load is None:
        return ["…"] * len(columns)
    return [_FORMS[column.form](getattr(load, column.attribute)) for column in columns]


def _partitions(instances: Sequence[Instance]) -> Table | None:
    """Show which instance owns which partitions, and what the last rebalance moved."""
    known = [instance for instance in instances if instance.problem is None and (instance.lags or instance.rebalances)]
    if not known:
        return None
    table = _table("partitions")
    table.add_column("target", no_wrap=True, overflow="ellipsis", ratio=3)
    table.add_column("owns", no_wrap=True, overflow="ellipsis", ratio=2)
    table.add_column("rebalances", justify="right", no_wrap=True)
    table.add_column("last", no_wrap=True, overflow="ellipsis", ratio=4)
    for instance in known:
        owned = ranges(instance.lags) or "none"
        table.add_row(plain(instance.target), owned, str(instance.rebalances), _move(instance))
    return table


def _move(instance: Instance) -> Text:
    move = instance.move
    if move is None:
        return Text()
    moved = [f"+{ranges(move.came)}"] * bool(move.came) + [f"-{ranges(move.went)}"] * bool(move.went)
    style = "bold yellow" if move.ago < _FRESH_MOVE_S else "dim"
    return Text(f"rebalance {move.ago:.0f} s ago{': ' * bool(moved)}{' '.join(moved)}", style)


def ranges(numbers: Collection[int]) -> str:
    """Abbreviate runs of whole numbers: ``0-3,7``."""
    parts: list[list[int]] = []
    for number in sorted(numbers):
        if parts and parts[-1][-1] == number - 1:
            parts[-1][1:] = [number]
        else:
            parts.append([number])
    return ",".join("-".join(map(str, part)) for part in parts)


def _answers(frame: Frame, answers: Sequence[Answer], width: int) -> Table:
    table = _table("recent queries")
    table.add_column("ago", justify="right", no_wrap=True)
    table.add_column("query", no_wrap=True, overflow="ellipsis", ratio=2)
    # Several groups answer each query; where they are not known, their models tell the answers apart.
    by_group = len({each.group for each in frame.answers}) > 1
    several = by_group or len({each.event.model_id for each in frame.answers}) > 1
    if several:
        table.add_column("group" if by_group else "model", no_wrap=True, overflow="ellipsis", ratio=1)
    table.add_column("first result", no_wrap=True, overflow="ellipsis", ratio=1)
    table.add_column("was", justify="right", no_wrap=True)
    if wide := width >= _COLUMNS[4].from_width:
        table.add_column("moment", justify="right", no_wrap=True)
        table.add_column("took", justify="right", no_wrap=True)
    for answer in answers:
        event = answer.event
        first = event.results[0] if event.results else None
        best = first.clip_id if first is not None else "no candidates"
        row: list[str | Text] = [
            _seconds(max(0.0, (frame.at - answer.at).total_seconds())),
            plain(event.query),
            *([plain(answer.group if by_group else event.model_id)] if several else []),
            plain(event.degraded, "yellow") if event.degraded else plain(best),
            "" if first is None else str(first.initial_rank),
        ]
        if wide:
            moment = first.moment_ms if first is not None else None
            row += [
                "" if moment is None else f"{moment / 1000:.1f} s",
                _seconds(max(0.0, (event.reranked_at - event.issued_at).total_seconds())),
            ]
        table.add_row(*row)
    if not answers:
        table.add_row("", Text("none yet", "dim"))
    return table


def _letters(frame: Frame, letters: Sequence[Letter], width: int) -> Table:
    table = _table("recent dead letters")
    table.add_column("ago", justify="right", no_wrap=True)
    several = len({letter.group for letter in frame.letters}) > 1
    table.add_column("topic", no_wrap=True, overflow="ellipsis", ratio=1)
    if several:
        table.add_column("group", no_wrap=True, overflow="ellipsis", ratio=1)
    table.add_column("reason", no_wrap=True, overflow="ellipsis", ratio=1)
    table.add_column("key", no_wrap=True, overflow="ellipsis", ratio=1)
    if wide := width >= _COLUMNS[4].from_width:
        table.add_column("error", no_wrap=True, overflow="ellipsis", ratio=3)
    for letter in letters:
        ago = _seconds(max(0.0, (frame.at - letter.at).total_seconds()))
        group = [letter.group] if several else []
        row = [ago, letter.topic, *group, letter.reason, letter.key, *([letter.error] if wide else [])]
        table.add_row(*(plain(" ".join(each.split())) for each in row))
    if not letters:
        table.add_row("", Text("none", "dim"))
    return table


def _rate(value: float) -> str:
    return f"{value:.1f}" if 0 < value < 10 else f"{value:,.0f}"  # noqa: PLR2004 - two digits that matter


def _count(value: float) -> str:
    return f"{value:,.0f}"


def _seconds(value: float) -> str:
    if math.isnan(value):
        return "-"
    if 0 < value < 1:
        return f"{1000 * value:.0f} ms"
    if value < 60:  # noqa: PLR2004 - a minute
        return f"{value:.1f} s"
    return f"{value / 60:.0f} min" if value < 3600 else f"{value / 3600:.0f} h"  # noqa: PLR2004 - an hour


_FORMS = {"rate": _rate, "count": _count, "seconds": _seconds}
