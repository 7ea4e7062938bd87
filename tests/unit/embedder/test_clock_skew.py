"""An upload dated after its record would win against every later one: how far it may be, and what else is untouched."""

from __future__ import annotations

import datetime as dt
from typing import TYPE_CHECKING

import pytest

from streamer.codec import JSON
from streamer.events import ClipUploaded, now
from streamer.kafka import InFlightRecord, Record
from tests.support.embedding import T0, Harness, dominant, reason

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from streamer.kafka import Output
    from streamer.store import Store

SKEW = dt.timedelta(seconds=60)
LAST_DAY = dt.datetime(9999, 12, 31, 23, 59, 59, tzinfo=dt.UTC)


def run(harness: Harness, path: Path, uploaded_at: dt.datetime, timestamp_ms: int, kind: str) -> Sequence[Output]:
    """Run one upload of a record with this time in the log; -1 and no kind where it has none."""
    harness.offset += 1
    value = JSON.encode(ClipUploaded(clip_id="c1", uri=path.as_uri(), uploaded_at=uploaded_at))
    clamped = dt.datetime.fromtimestamp(min(max(0, timestamp_ms / 1000), now().timestamp()), dt.UTC)
    record = Record(
        "clips.uploaded", 0, harness.offset, b"c1", value, (), clamped, log="l", timestamp_ms=timestamp_ms,
        timestamp_type=kind,
    )  # fmt: skip
    (outputs,) = harness.run(InFlightRecord(record, harness.done.release))
    return outputs


def milliseconds(moment: dt.datetime) -> int:
    return round(moment.timestamp() * 1000)


def is_embedded(outputs: Sequence[Output]) -> bool:
    return [output.topic for output in outputs] == ["clips.embedded"]


@pytest.mark.parametrize("kind", ["CreateTime", "LogAppendTime"])
def test_an_upload_dated_beyond_the_tolerance_after_its_record_is_dead_lettered(
    tmp_path: Path, store: Store, red: Path, kind: str
) -> None:
    harness = Harness(tmp_path, store, max_clock_skew=SKEW.total_seconds())
    at = milliseconds(T0)
    assert is_embedded(run(harness, red, T0 + SKEW, at, kind))
    late = run(harness, red, T0 + SKEW + dt.timedelta(microseconds=1), at, kind)
    assert reason(late) == "from_the_future"
    # Whether it is refused depends on the record and not on when it is read, or a replay would end otherwise.
    assert reason(run(harness, red, T0 + dt.timedelta(days=1), at, kind)) == "from_the_future"


def test_a_clip_with_an_upload_from_the_future_can_still_be_replaced(
    tmp_path: Path, store: Store, red: Path, blue: Path
) -> None:
    harness = Harness(tmp_path, store)
    at = milliseconds(T0)
    assert reason(run(harness, red, LAST_DAY, at, "CreateTime")) == "from_the_future"
    assert is_embedded(run(harness, blue, T0, at, "CreateTime"))
    assert dominant(store, "c1") == 2


@pytest.mark.parametrize("stamp", [LAST_DAY, LAST_DAY.replace(year=2200)])
def test_a_producer_that_stamps_the_record_too_gains_nothing(
    tmp_path: Path, store: Store, red: Path, stamp: dt.datetime
) -> None:
    harness = Harness(tmp_path, store)
    assert reason(run(harness, red, stamp, milliseconds(stamp), "CreateTime")) == "from_the_future"
    assert reason(run(harness, red, stamp, milliseconds(stamp) * 1000, "CreateTime")) == "from_the_future"  # µs


@pytest.mark.parametrize(("timestamp_ms", "kind"), [(-1, ""), (0, "CreateTime"), (round(T0.timestamp()), "CreateTime")])
def test_a_record_without_a_time_or_with_one_in_seconds_is_compared_with_the_current_time(
    tmp_path: Path, store: Store, red: Path, timestamp_ms: int, kind: str
) -> None:
    harness = Harness(tmp_path, store)
    assert is_embedded(run(harness, red, now(), timestamp_ms, kind))
    assert reason(run(harness, red, LAST_DAY, timestamp_ms, kind)) == "from_the_future"


def test_a_service_whose_clock_is_hours_slow_refuses_no_upload(tmp_path: Path, store: Store, red: Path) -> None:
    harness = Harness(tmp_path, store)
    true = now() + dt.timedelta(hours=6)
    assert is_embedded(run(harness, red, true, milliseconds(true), "CreateTime"))
