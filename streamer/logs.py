"""Logging to stderr: JSON lines for machines, colours on a terminal; ours and the libraries' alike."""

from __future__ import annotations

import logging
import sys
from typing import TYPE_CHECKING, Any

import orjson
import structlog

if TYPE_CHECKING:
    from streamer.settings import Settings


def _to_json(line: Any, **_: object) -> str:
    return orjson.dumps(line, default=str).decode()


def configure(settings: Settings) -> None:
    """Set up logging for this process."""
    shared: list[Any] = [
        structlog.stdlib.add_logger_name,
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    human = settings.log_format == "console" or (settings.log_format == "auto" and sys.stderr.isatty())
    last: list[Any] = (
        # The default draws a traceback with all locals, which takes seconds, in the thread that logs.
        [structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty(), exception_formatter=structlog.dev.plain_traceback)]
        if human
        else [structlog.processors.format_exc_info, structlog.processors.JSONRenderer(serializer=_to_json)]
    )
    structlog.configure(
        processors=[*shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        logger_factory=structlog.stdlib.LoggerFactory(),
        cache_logger_on_first_use=True,
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
    """Let libraries warn, but not tell how they work, which is nobody's state change."""
    return record.levelno >= logging.WARNING or record.name.startswith("streamer")
