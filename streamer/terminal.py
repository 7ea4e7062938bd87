"""The only way to a terminal: whatever is printed goes through :func:`~streamer.printable.printable`.

What a command prints holds text from outside: ids, queries, brokers' answers, a library's error. Whoever puts such text
into a line or a table makes it :func:`plain` or :func:`printable` there, which keeps it within its line or cell, and
free of rich's markup. :func:`echo` and :class:`Terminal` look at everything once more.
"""

from __future__ import annotations

import sys
import threading
import traceback
from typing import TYPE_CHECKING, Any

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

__all__ = ["Terminal", "echo", "plain", "print_tracebacks", "printable"]


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


def print_tracebacks() -> None:
    """Let this function's way be that of uncaught exceptions, too: their messages quote what came from outside."""

    def hook(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        if issubclass(kind, KeyboardInterrupt):
            sys.__excepthook__(kind, error, trace)
            return
        told = "".join(traceback.format_exception(kind, error, trace)).rstrip()
        # Indented, so that no line of a message looks like one of ours.
        echo(told.replace("\n", "\n  "), err=True, lines=True)

    def thread_hook(ended: threading.ExceptHookArgs) -> None:
        hook(ended.exc_type, ended.exc_value or ended.exc_type(), ended.exc_traceback)

    sys.excepthook, threading.excepthook = hook, thread_hook
