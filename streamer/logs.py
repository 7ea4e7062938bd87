"""Logging to stderr, for this project and its libraries: JSON lines, or colours on a terminal.

There is one line for each change of state and for each failed record, and none for records that succeed. Secrets are
masked wherever they come from: an error of a library may quote the URL that it was given.
"""

from __future__ import annotations

import logging
import re
import sys
from typing import TYPE_CHECKING, Any

import orjson
import structlog

if TYPE_CHECKING:
    from streamer.settings import LogSettings


_MASK = "***"
_NAMES = "password|passwd|secret|token|authorization"
_SECRETS = (
    # Everything after the question mark, because signatures have many names.
    (re.compile(r"(\b[a-z][a-z0-9+.-]*://[^\s?#\"'<>]*)\?[^\s#\"'<>]*", re.IGNORECASE), rf"\1?{_MASK}"),
    (re.compile(r"(\b[a-z][a-z0-9+.-]*://[^\s/:@]*):[^\s/@]*@", re.IGNORECASE), rf"\1:{_MASK}@"),
    (
        re.compile(rf"(\b[\w.-]*(?:{_NAMES})[\"']?\s*[=:]\s*)(?:\w+ )?[^\s,;]+", re.IGNORECASE),
        rf"\1{_MASK}",
    ),
)
_SECRET_NAME = re.compile(_NAMES, re.IGNORECASE)


def mask(text: str) -> str:
    """Mask the secrets in a text: queries of URLs, passwords in URLs, and values whose names mark them as secret."""
    for pattern, instead in _SECRETS:
        text = pattern.sub(instead, text)
    return text


def _mask_all(_logger: object, _method: str, line: structlog.typing.EventDict) -> structlog.typing.EventDict:
    return {name: _MASK if _SECRET_NAME.search(name) and value else _masked(value) for name, value in line.items()}


def _masked(value: Any) -> Any:
    if isinstance(value, str):
        return mask(value)
    if isinstance(value, dict):
        return {name: _masked(each) for name, each in value.items()}
    if isinstance(value, list | tuple | set):
        return [_masked(each) for each in value]
    return value if isinstance(value, bool | int | float | None) else mask(str(value))


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
    last: list[Any] = [structlog.processors.format_exc_info, _mask_all, renderer]
    structlog.configure(
        processors=[*shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        logger_factory=structlog.stdlib.LoggerFactory(),
    )
    handler = logging.StreamHandler(sys.stderr)
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
