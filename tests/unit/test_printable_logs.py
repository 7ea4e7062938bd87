"""What comes from outside and is logged: no byte of it comes out raw, and no line is forged."""

from __future__ import annotations

import datetime as dt
import json
import logging
import sys
from typing import TYPE_CHECKING

import pytest
import structlog

from streamer import logs
from streamer.events import Reason
from streamer.kafka.dead_letters import dead_letter, log_dead_letter
from streamer.kafka.records import Record
from streamer.settings import load
from tests.support.escapes import forged, hostile, raw

if TYPE_CHECKING:
    from collections.abc import Iterator

AT = dt.datetime(2026, 11, 24, tzinfo=dt.UTC)
HOSTILE = hostile(500)


@pytest.fixture(params=["json", "console"])
def log_format(request: pytest.FixtureRequest) -> Iterator[str]:
    root = logging.getLogger()
    before = root.handlers, root.level
    logs.configure(load({"log_format": request.param}))
    yield request.param
    root.handlers, root.level = before
    structlog.reset_defaults()


def test_no_field_of_a_log_line_comes_out_raw(log_format: str, capfd: pytest.CaptureFixture[str]) -> None:
    ours = structlog.stdlib.ProcessorFormatter
    [handler] = [each for each in logging.getLogger().handlers if isinstance(each.formatter, ours)]
    handler.setStream(sys.stderr)  # type: ignore[attr-defined]
    # pytest's own handlers would put the texts into its report, as they are.
    logging.getLogger().handlers = [handler]
    log = structlog.get_logger("streamer.test")
    for text in HOSTILE:
        log.info(text, value=text, items=[text, {text: text}], number=10**30, error=ValueError(text))
        logging.getLogger("aiohttp").warning("failed: %s", text)
        encoded = text.encode(errors="replace")
        record = Record("clips.uploaded", 0, 1, encoded, encoded, ((text, encoded),), AT)
        log_dead_letter(record, dead_letter(record, Reason.NOT_JSON, text).headers)
        log.error(text, exc_info=ValueError(text))
    printed = capfd.readouterr().err
    assert (raw(printed), forged(printed)) == (set(), [])
    if log_format == "json":
        lines = [json.loads(line) for line in printed.splitlines()]
        assert len(lines) == 4 * len(HOSTILE)
        # What reads the values puts them on a terminal, too.
        assert not {each for line in lines for value in line.values() if isinstance(value, str) for each in raw(value)}
