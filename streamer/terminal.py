"""The only way to a terminal: whatever is printed goes through :func:`~streamer.printable.printable`.

What a command prints holds text from outside: ids, queries, brokers' answers, a library's error. Whoever puts such text
into a line or a table makes it :func:`plain` or :func:`printable` there, which keeps it within its line or cell, and
free of rich's markup. :func:`echo` and :class:`Terminal` look at everything once more.
"""

from __future__ import annotations

import contextlib
import logging
import sys
import threading
import traceback
from typing import TYPE_CHECKING, Any, TextIO

import click
from rich.console import Console
from rich.segment import Segment
from rich.text import Text

from streamer.printable import printable

if TYPE_CHECKING:
    from collections.abc import Iterable
    from types import TracebackType

    from rich.console import ConsoleOptions, RenderableType
    from rich.style import Style

__all__ = ["LogHandler", "Terminal", "echo", "plain", "printable", "take_over_stderr"]


def echo(text: str, *, err: bool = False, lines: bool = False) -> None:
    """Print one line, or several with ``lines``."""
    click.echo(printable(text, lines=lines), err=err)


def plain(text: str, style: str | Style = "") -> Text:
    """Return text for a table's cell or title: one line, nothing of it markup."""
    return Text(printable(text), style=style)


class Terminal(Console):
    """A console that knows no markup, and lets no control character through but its own."""

    def __init__(self, **options: Any) -> None:
        """``options``: those of rich's console."""
        super().__init__(**{"markup": False, "emoji": False, **options})

    def render_str(self, text: str, **options: Any) -> Text:
        """Make text of a string, with the width that it will have."""
        return super().render_str(printable(text, lines=True), **options)

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """Render anything."""
        for segment in super().render(renderable, options):
            text = segment.text if segment.control else printable(segment.text, lines=True)
            yield Segment(text, segment.style, segment.control)


def take_over_stderr() -> None:
    """Let this module's way be that of what Python prints by itself, too: all of it may quote what came from outside.

    That is uncaught exceptions, those that nobody can catch (of a destructor, of a library's callback), and warnings
    and log records for which nothing is configured.
    """

    def hook(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        told = "".join(traceback.format_exception(kind, error, trace)).rstrip()
        # Indented, so that no line of a message looks like one of ours.
        echo(told.replace("\n", "\n  "), err=True, lines=True)

    def thread_hook(ended: threading.ExceptHookArgs) -> None:
        hook(ended.exc_type, ended.exc_value or ended.exc_type(), ended.exc_traceback)

    def unraisable_hook(ended: sys.UnraisableHookArgs) -> None:
        hook(ended.exc_type, ended.exc_value or ended.exc_type(), ended.exc_traceback)

    sys.excepthook, threading.excepthook, sys.unraisablehook = hook, thread_hook, unraisable_hook
    logging.captureWarnings(capture=True)
    logging.lastResort = LogHandler(sys.stderr)
    logging.lastResort.setLevel(logging.WARNING)


class LogHandler(logging.StreamHandler[TextIO]):
    """Writes log records; of those that cannot be formatted, it tells the reason in the same safe way."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the record's text, escaped unless a formatter of ours has made it."""
        text = super().format(record)
        return text if self.formatter is not None else printable(text, lines=True).replace("\n", "\n    ")

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 - the standard library's name
        """Print what went wrong with the record."""
        told = "".join(traceback.format_exc()).rstrip()
        with contextlib.suppress(OSError, ValueError):  # as where stderr itself is closed or full
            echo(f"a record of {record.name} cannot be logged: {told}".replace("\n", "\n  "), err=True, lines=True)
