"""Log lines: one object each, complete for a record that failed, and without secrets."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import pytest

from streamer.logs import _safe, mask

SAY = """
import datetime as dt, logging, sys
import structlog
from streamer import logs
from streamer.events import Reason
from streamer.kafka.dead_letters import dead_letter, log_dead_letter
from streamer.kafka.records import Record
from streamer.settings import load

logs.configure(load({"log_format": sys.argv[1]}))
log = structlog.get_logger("streamer.test")
record = Record("clips.uploaded", 3, 17, b"c1", b"{}", (), dt.datetime(2026, 11, 24, tzinfo=dt.UTC))
url = "https://u:hunter2@cdn.example.com/c1.mp4?X-Sig=hunter2"
failed = dead_letter(record, Reason.FETCH_FAILED, "503 from " + url, attempts=4)
log_dead_letter(record, failed.headers)
log.info("connected", url="rediss://store:hunter2@redis:6379/0", kafka={"sasl.password": "sasl.password=hunter2"})
log.info("started", metrics_password="hunter2", token="hunter2", count=3, ready=True, none=None)
logging.getLogger("aiohttp.client").warning("GET %s failed", "https://host/a?token=hunter2")
logging.getLogger("botocore.hooks").info("a library tells how it works")
logging.getLogger("librdkafka").error("SASL with password=hunter2")
try:
    raise ValueError("cannot open https://bucket.s3.amazonaws.com/c1?X-Amz-Signature=hunter2#t")
except ValueError:
    log.exception("bug")
"""


def said(form: str) -> str:
    done = subprocess.run([sys.executable, "-c", SAY, form], capture_output=True, text=True, timeout=60, check=True)
    return done.stderr


def test_each_line_is_an_object_and_a_failed_record_is_one_line_with_its_place() -> None:
    lines: list[dict[str, Any]] = [json.loads(line) for line in said("json").splitlines()]
    assert [line["event"] for line in lines] == [
        "dead letter", "connected", "started", "GET https://host/a?*** failed",
        "SASL with password=***", "bug",
    ]  # fmt: skip
    first = lines[0]
    assert (first["topic"], first["partition"], first["offset"], first["key"]) == ("clips.uploaded", 3, 17, "c1")
    assert (first["reason"], first["attempts"], first["level"]) == ("fetch_failed", "4", "warning")
    assert first["error"] == "503 from https://u:***@cdn.example.com/c1.mp4?***"
    assert lines[1]["url"] == "rediss://store:***@redis:6379/0"
    assert (lines[2]["count"], lines[2]["ready"], lines[2]["none"]) == (3, True, None)
    assert "Traceback" in lines[5]["exception"]
    assert "c1?***#t" in lines[5]["exception"]


def test_the_console_masks_as_well() -> None:
    text = said("console")
    assert "cdn.example.com/c1.mp4?***" in text
    assert "Traceback" in text
    assert "hunter2" not in text


@pytest.mark.parametrize(
    ("text", "masked"),
    [
        ("s3://b/k?versionId=1 and https://h/p?q", "s3://b/k?*** and https://h/p?***"),
        ("redis+cluster://:pw@h:1,h:2/0", "redis+cluster://:***@h:1,h:2/0"),
        ("{'sasl.password': 'a', 'x': 1}", "{'sasl.password': ***, 'x': 1}"),
        ("Authorization: Basic dXNlcg==", "Authorization: ***"),
        ("store_password_file: /run/secrets/x", "store_password_file: /run/secrets/x"),
        ("what? http://host/path: no", "what? http://host/path: no"),
        ("Broker: Topic authorization failed", "Broker: Topic authorization failed"),
    ],
)
def test_what_is_secret_in_a_text_goes_and_the_rest_stays(text: str, masked: str) -> None:
    assert mask(text) == masked


@pytest.mark.parametrize(
    "part",
    [
        "a",
        "a.",
        "a-",
        "a+",
        "password",
        "password=",
        "password ",
        "token:a ",
        "://",
        "a://",
        "://:",
        "://a:",
        "?",
        "a://b?",
    ],
)
@pytest.mark.timeout(60)
def test_masking_takes_time_in_proportion_to_the_text(part: str) -> None:
    """A million characters would take hours in proportion to their square, and be ended by the limit."""
    text = part * (1_000_000 // len(part))
    assert len(mask(text)) <= 1.5 * len(text)


def test_a_long_text_is_logged_by_its_beginning_and_its_end_and_a_deep_or_large_one_as_text() -> None:
    line = _safe(
        None,
        "info",
        {
            "event": "e" * 30_000 + "end",
            "deep": [[[[[[["x"]]]]]]],
            "many": ["m"] * 101,
            "big": 2**70,
            "kafka": {"sasl.password": "hunter2", "client.id": "c"},
        },
    )
    assert len(line["event"]) < 20_100
    assert line["event"].endswith("e" * 100 + "end")
    assert "10,003 more characters" in line["event"]
    assert line["deep"] == [[[[["[['x']]"]]]]]
    assert line["many"].startswith("['m', 'm'")
    assert line["big"] == str(2**70)
    assert line["kafka"] == {"sasl.password": "***", "client.id": "c"}
