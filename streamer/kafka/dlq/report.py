r"""Dead letters as output: tables and text for people, JSON for scripts.

Control characters in keys, headers and values are escaped as in JSON (``\u001b``), so that they cannot control the
terminal, and escaped JSON is still the same JSON.
"""

from __future__ import annotations

import base64
import textwrap
from typing import TYPE_CHECKING, Any

import orjson
from rich.table import Table

from streamer.kafka.dlq.letters import State, Summary
from streamer.terminal import Terminal, echo, plain

if TYPE_CHECKING:
    import datetime as dt
    from collections.abc import Iterable

    from rich.text import Text

    from streamer.kafka.dlq.letters import DeadLetter
    from streamer.kafka.dlq.redrive import Report


def decoded(raw: bytes | None) -> str | None:
    r"""Return text in UTF-8; bytes that are not become ``\xNN``."""
    return None if raw is None else raw.decode(errors="backslashreplace")


def described(letter: DeadLetter) -> dict[str, Any]:
    """Return a dead letter without its headers and value, ready for JSON."""
    return {
        "partition": letter.record.partition,
        "offset": letter.record.offset,
        "key": decoded(letter.record.key),
        "group": letter.group,
        "reason": letter.reason,
        "error": letter.error,
        "attempts": letter.attempts,
        "at": letter.at,
        "state": letter.state,
    }


def described_in_full(letter: DeadLetter) -> dict[str, Any]:
    """Return the whole dead letter, ready for JSON.

    The value is ``value`` where it is JSON (or null) that can be written again, else ``value_text``, else, not being
    UTF-8, ``value_base64``.
    """
    headers = [[name, decoded(value)] for name, value in letter.record.headers]
    name, value = _value(letter.record.value)
    return {**described(letter), "headers": headers, name: value}


def _value(raw: bytes | None) -> tuple[str, Any]:
    if raw is None:
        return "value", None
    try:
        value = orjson.loads(raw)
        _json({"value": value})  # orjson reads what nests deeper than it writes
    except (orjson.JSONDecodeError, orjson.JSONEncodeError):
        pass
    else:
        return "value", value
    try:
        return "value_text", raw.decode()
    except UnicodeDecodeError:
        return "value_base64", base64.b64encode(raw).decode()


def summary(letters: Iterable[DeadLetter], *, title: str, as_json: bool) -> None:
    """Print counts by reason and state, with the oldest and newest time."""
    found = Summary(letters)
    kinds = sorted(found.counts, key=lambda kind: -found.counts[kind].total())
    if as_json:
        rows = [
            {
                "group": group,
                "reason": reason,
                "count": found.counts[group, reason].total(),
                **{state.value: found.counts[group, reason][state] for state in State},
                "oldest": found.oldest[group, reason],
                "newest": found.newest[group, reason],
            }
            for group, reason in kinds
        ]
        _print_json({"topic": title, "count": sum(counts.total() for counts in found.counts.values()), "reasons": rows})
        return
    occurring = [state for state in State if any(found.counts[kind][state] for kind in kinds)]
    several = len({group for group, _ in kinds}) > 1
    table = _table(title, *_columns("reason", "count", *occurring, "oldest", "newest", group=several))
    for group, reason in kinds:
        counts = found.counts[group, reason]
        states = [f"{counts[state]:,}" for state in occurring]
        times = [_time(found.oldest[group, reason]), _time(found.newest[group, reason])]
        cells = (reason, f"{counts.total():,}", *states, *times)
        table.add_row(*_cells(*((group, *cells) if several else cells)))
    Terminal().print(table)


def records(letters: Iterable[DeadLetter], *, title: str, as_json: bool) -> None:
    """Print the single dead letters, one line of JSON each, or as a table; a place is partition and offset."""
    if as_json:
        for letter in letters:
            _print_json(described(letter))
        return
    rows = []
    for letter in letters:
        record = letter.record
        place, key = f"{record.partition} {record.offset}", decoded(record.key) or ""
        cells = (place, key, letter.reason, letter.error, str(letter.attempts), _time(letter.at), letter.state)
        rows.append((letter.group, cells))
    several = len({group for group, _ in rows}) > 1
    table = _table(title, *_columns("place", "key", "reason", "error", "tries", "at", "state", group=several))
    for group, cells in rows:
        table.add_row(*_cells(*((group, *cells) if several else cells)))
    Terminal().print(table)


def details(letters: Iterable[DeadLetter], *, as_json: bool) -> int:
    """Print dead letters in full and return how many there were."""
    count = 0
    for letter in letters:
        count += 1
        if as_json:
            _print_json(described_in_full(letter))
            continue
        record = letter.record
        echo(f"{record.place}  {letter.state}  key {decoded(record.key) or '(none)'}")
        for name, value in record.headers:
            echo(f"  {name}: {decoded(value) or ''}")
        name, value = _value(record.value)
        # Text's lines are indented, so that none of them looks like one of ours.
        text = textwrap.indent(value, "  ") if name != "value" else _json(value, indent=True)
        echo(f"{name} ({len(record.value or b''):,} bytes):\n{text}\n", lines=True)
    return count


def redriven(report: Report, *, topic: str, dry_run: bool, as_json: bool) -> None:
    """Print what a redrive did."""
    if as_json:
        counts = {
            "topic": topic,
            "dry_run": dry_run,
            "redriven": report.redriven.total(),
            "redriven_by_reason": report.redriven,
            "already_redriven": report.left[State.REDRIVEN],
            "truncated": report.left[State.TRUNCATED],
            "foreign": report.left[State.FOREIGN],
            "too_large": report.refused.total(),
        }
        _print_json(counts)
        return
    by_reason = ", ".join(f"{count:,} {reason}" for reason, count in report.redriven.most_common())
    done = "would be redriven" if dry_run else "redriven"
    echo(f"{report.redriven.total():,} {done} to {topic}{f': {by_reason}' if by_reason else ''}")
    for count, why in (
        (report.left[State.REDRIVEN], "redriven before"),
        (report.left[State.TRUNCATED], "not redriven: truncated, their values are lost"),
        (report.left[State.FOREIGN], f"not redriven: not dead letters of {topic}"),
        (report.refused.total(), f"not redriven: larger than the max.message.bytes of {topic}"),
    ):
        if count:
            echo(f"{count:,} {why}")


_WRAPPED = frozenset({"group", "key", "reason", "error", "at", "oldest", "newest"})
"""Columns that become narrower on a narrow terminal."""


def _columns(*names: str, group: bool) -> tuple[str, ...]:
    """Return the columns of a table; that of the group is there where it tells rows apart."""
    return ("group", *names) if group else names


def _table(title: str, *columns: str) -> Table:
    """Make a table in which, on a narrow terminal, only some columns become narrower, down to a least width."""
    table = Table(title=title)
    for column in columns:
        if column in _WRAPPED:
            table.add_column(column, overflow="fold", min_width=8 if column == "key" else 10)
        else:
            table.add_column(column, no_wrap=True)
    return table


def _cells(*texts: str) -> list[Text]:
    return [plain(text) for text in texts]


def _time(moment: dt.datetime) -> str:
    return moment.strftime("%Y-%m-%d %H:%M:%SZ")


def _json(value: Any, *, indent: bool = False) -> str:
    return orjson.dumps(value, option=orjson.OPT_UTC_Z | (orjson.OPT_INDENT_2 if indent else 0)).decode()


def _print_json(value: Any) -> None:
    echo(_json(value))
