"""Whole stores checked and compared, and models surveyed and dropped."""

from __future__ import annotations

import datetime as dt
from typing import TYPE_CHECKING

import pytest

from streamer.store import record_format
from streamer.store.transfer import copy
from streamer.store.upkeep import compare, drop, survey, verify
from tests.support.store_records import (
    FIRST,
    MODEL,
    PREFIX,
    KilledAt,
    damaged,
    everything,
    fill,
    many,
    misplaced,
    put_unchecked,
    upload,
)  # fmt: skip

if TYPE_CHECKING:
    from streamer.store.lmdb.admin import LmdbAdmin


def test_verify_counts_clips_tombstones_and_kinds_of_each_model_and_what_is_damaged(source: LmdbAdmin) -> None:
    fill(source, many(40))
    source.register({record_format.model_prefix("model-b"): "model-b"})
    source.put([upload(1, prefix=record_format.model_prefix("model-b"))])
    put_unchecked(source, upload(1, prefix=record_format.model_prefix("without a name")))
    put_unchecked(source, damaged(upload(1, clip_id="broken")))
    put_unchecked(source, misplaced())
    report = verify(source)
    first, second = report.models[MODEL], report.models["model-b"]
    assert (first.clips, first.tombstones, second.clips) == (36, 4, 1)
    assert sum(first.kinds.values()) == 36
    assert second.kinds == {"float16 x 8": 1}
    assert first.bytes == sum(len(raw.value) for raw in many(40))
    assert report.damage.count == 3
    assert len(report.damage.examples) == 3


def test_reports_name_a_bounded_number_of_damaged_records(source: LmdbAdmin) -> None:
    for number in range(30):
        put_unchecked(source, damaged(upload(1, clip_id=f"c{number}")))
    report = verify(source)
    assert (report.damage.count, len(report.damage.examples)) == (30, 20)


def test_compare_tells_what_is_missing_older_damaged_and_newer(source: LmdbAdmin, target: LmdbAdmin) -> None:
    fill(source, many(10))
    copy(source, target)
    assert compare(source, target).same == 10
    source.put([upload(1, clip_id="missing"), upload(2, clip_id="older"), upload(1, clip_id="newer")])
    source.put([upload(1, clip_id="damaged there")])
    target.put([upload(1, clip_id="older"), upload(2, clip_id="newer"), upload(1, clip_id="only there")])
    put_unchecked(target, damaged(upload(1, clip_id="damaged there")))
    report = compare(source, target)
    assert (report.same, report.ahead, report.behind, report.missing, report.damaged) == (10, 1, 1, 1, 1)
    assert report.examples == ["'damaged there'", "'missing'", "'older'"]
    assert not report.is_good
    copy(source, target)
    assert compare(source, target).is_good
    put_unchecked(source, damaged(upload(1, clip_id="d")))
    assert not compare(source, target).is_good


def test_a_dropped_model_is_gone_in_pages_and_the_others_are_untouched(source: LmdbAdmin) -> None:
    other = record_format.model_prefix("model-b")
    fill(source, many(1_200))
    source.register({other: "model-b"})
    source.put([upload(7, clip_id="stays", prefix=other)])
    found = survey(source, PREFIX)
    assert (found.clips, found.tombstones) == (1_080, 120)
    assert found.newest == FIRST + dt.timedelta(microseconds=1_199)
    pages: list[int] = []

    def count(stage: str, done: int, total: int) -> None:  # noqa: ARG001 - by name, as Advance says
        pages.append(done)

    assert drop(source, PREFIX, count) == (1_200, True)
    assert pages == [512, 1_024, 1_200]
    assert source.models() == {other: "model-b"}
    assert list(everything(source)) == [record_format.key(other, "stays")]


def test_a_drop_that_is_interrupted_leaves_the_rest_and_the_name(source: LmdbAdmin) -> None:
    fill(source, many(1_200))

    def interrupted(stage: str, done: int, total: int) -> None:  # noqa: ARG001 - by name, as Advance says
        if done > 600:
            raise KilledAt

    with pytest.raises(KilledAt):
        drop(source, PREFIX, interrupted)
    assert source.models() == {PREFIX: MODEL}
    assert drop(source, PREFIX) == (1_200 - 1_024, True)


def test_a_model_that_is_written_while_it_is_dropped_keeps_its_name(source: LmdbAdmin) -> None:
    fill(source, many(600))
    arriving = upload(1, clip_id="a")  # its place is before that of the last page

    def written(stage: str, done: int, total: int) -> None:  # noqa: ARG001 - by name, as Advance says
        source.put([arriving])

    removed, is_gone = drop(source, PREFIX, written)
    assert (removed, is_gone) == (600, False)
    assert source.models() == {PREFIX: MODEL}


def test_damaged_records_are_surveyed_and_dropped_too(source: LmdbAdmin) -> None:
    fill(source, iter(()))
    broken = upload(1, clip_id="b")
    put_unchecked(source, broken._replace(value=broken.value[:10]))
    put_unchecked(source, upload(1, clip_id="time")._replace(value=b"\x7f" * 100))
    found = survey(source, PREFIX)
    assert (found.clips, found.newest) == (2, None)
    assert drop(source, PREFIX) == (2, True)
