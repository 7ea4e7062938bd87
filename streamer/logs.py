"""Logging to stderr, for this project and its libraries: JSON lines, or colours on a terminal.

There is one line for each change of state and for each failed record, and none for records that succeed. Secrets are
masked wherever they come from: an error of a library may quote the URL that it was given. Control characters are
escaped, since a line quotes ids, URIs and errors from outside and is read in a terminal; lengths are bounded.
"""

from __future__ import annotations

import logging
import re
import sys
import textwrap
from typing import TYPE_CHECKING, Any

import orjson
import structlog

from streamer.printable import printable
from streamer.terminal import LogHandler

if TYPE_CHECKING:
    from streamer.settings import LogSettings


_MASK = "***"
_MAX_CHARS = 20_000
"""Longest text in a line; of a longer one, the beginning and the end are logged."""
_MAX_ITEMS, _MAX_DEPTH = 100, 5
"""Largest collection that is logged item by item."""
_MAX_NUMBER = 2**63 - 1
"""Largest whole number that JSON lines have; a larger one is text."""
_NAMES = "password|passwd|secret|token|authorization"
# Each of these consumes what it has looked at, masked or not, and so takes time in proportion to the text.
_QUERY = re.compile(r"(://[^\s?#\"'<>]*+)(\?[^\s#\"'<>]*+)?")
"""Everything after the question mark, because signatures have many names."""
_USER = re.compile(r"(://[^\s/:@]*+)(:[^\s/@]*+@)?")
_VALUE = re.compile(rf"((?:{_NAMES})[\"']?\s*+[=:]\s*+)(?:\w++ )?+[^\s,;]++", re.IGNORECASE)
_SECRET_NAME = re.compile(_NAMES, re.IGNORECASE)


def mask(text: str) -> str:
    """Mask the secrets in a text: queries of URLs, passwords in URLs, and values whose names mark them as secret."""
    if "://" in text:
        text = _QUERY.sub(lambda found: found[1] + (f"?{_MASK}" if found[2] else ""), text)
        text = _USER.sub(lambda found: found[1] + (f":{_MASK}@" if found[2] else ""), text)
    if "=" in text or ":" in text:
        text = _VALUE.sub(rf"\1{_MASK}", text)
    return text


def _safe(_logger: object, _method: str, line: structlog.typing.EventDict) -> structlog.typing.EventDict:
    """Mask secrets, bound lengths, and escape what is not seen as itself."""
    return {printable(name): _entry(name, value, lines=name in _IN_LINES) for name, value in line.items()}


_IN_LINES = ("exception", "stack")
"""Parts of a log line that have lines of their own on the console."""


def _entry(name: str, value: Any, *, lines: bool = False, depth: int = 0) -> Any:
    return _MASK if _SECRET_NAME.search(name) and value else _shown(value, lines=lines, depth=depth)


def _shown(value: Any, *, lines: bool = False, depth: int = 0) -> Any:
    if isinstance(value, bool | float | None) or (isinstance(value, int) and abs(value) <= _MAX_NUMBER):
        return value
    if isinstance(value, dict | list | tuple | set) and len(value) <= _MAX_ITEMS and depth < _MAX_DEPTH:
        if isinstance(value, dict):
            return {_text(name): _entry(str(name), each, depth=depth + 1) for name, each in value.items()}
        return [_shown(each, depth=depth + 1) for each in value]
    return _text(value, lines=lines)


def _text(value: object, *, lines: bool = False) -> str:
    text = value if isinstance(value, str) else str(value)
    if len(text) > _MAX_CHARS:
        half = _MAX_CHARS // 2
        text = f"{text[:half]} ... {len(text) - 2 * half:,} more characters ... {text[-half:]}"
    return printable(mask(text), lines=lines)


def _indented(_logger: object, _method: str, line: structlog.typing.EventDict) -> structlog.typing.EventDict:
    """Indent what has lines of its own, so that none of them looks like another log line."""
    return {name: textwrap.indent(value, "    ") if name in _IN_LINES else value for name, value in line.items()}


def _to_json(line: Any, **_: object) -> str:
    return orjson.dumps(line, default=str).decode()


def configure(settings: LogSettings) -> None:
    """Set up logging for this process."""
    shared: list[Any] = [
        structlog.stdlib.add_logger_name,
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    human = settings.log_format == "console" or (settings.log_format == "auto" and sys.stderr.isatty())
    renderer: Any = (
        structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty())
        if human
        else structlog.processors.JSONRenderer(serializer=_to_json)
    )
    # The console renderer's default prints exceptions with all locals, which blocks the logging thread for seconds.
    last: list[Any] = [structlog.processors.format_exc_info, _safe, *([_indented] if human else []), renderer]
    structlog.configure(
        processors=[*shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        logger_factory=structlog.stdlib.LoggerFactory(),
    )
    handler = LogHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *last],
        )
    )
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(settings.log_level.upper())
    handler.addFilter(_is_news)


def _is_news(record: logging.LogRecord) -> bool:
    """Log only warnings of libraries; their progress is not a change of state."""
    return record.levelno >= logging.WARNING or record.name.startswith("streamer")
