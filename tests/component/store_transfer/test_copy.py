"""Whole stores copied: through kills, damage and writers that go on. LMDB on both sides."""

from __future__ import annotations

import multiprocessing
import signal
import threading
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streamer.store import Position, StoreError, StoreUnavailableError, record_format
from streamer.store.admin import Merged
from streamer.store.lmdb.admin import LmdbAdmin
from streamer.store.lmdb.store import LmdbStore
from streamer.store.transfer import copy
from streamer.store.upkeep import compare, verify
from tests.support.store_records import (
    FIRST,
    MODEL,
    PREFIX,
    KilledAt,
    clip,
    copy_and_die,
    damaged,
    delete,
    everything,
    fill,
    many,
    misplaced,
    put_unchecked,
    upload,
)  # fmt: skip

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from streamer.store.admin import Page

WAIT_S = 120
spawn = multiprocessing.get_context("spawn")


def test_a_copy_is_the_same_to_the_byte_with_models_and_tombstones(source: LmdbAdmin, target: LmdbAdmin) -> None:
    fill(source, many(1_500))
    seen: list[tuple[str, int, int]] = []
    report = copy(source, target, advance=lambda *step: seen.append(step))
    assert everything(target) == everything(source)
    assert target.models() == {PREFIX: MODEL}
    assert (report.read, report.written, report.compared, report.mended, report.resumed) == (1_500, 1_500, 1_500, 0, 0)
    assert report.bytes == sum(map(len, everything(source).values()))
    assert [stage for stage, *_ in seen] == ["copy"] * 3 + ["verify"] * 3
    assert seen[-1][1] == 1_500
    assert target.note() is None
    again = copy(source, target)
    assert (again.written, again.present, again.bytes) == (0, 1_500, 0)


def test_an_empty_store_is_copied(source: LmdbAdmin, target: LmdbAdmin) -> None:
    assert copy(source, target).read == 0
    assert verify(target).models == {}


def test_what_the_target_has_that_is_newer_stays(source: LmdbAdmin, target: LmdbAdmin) -> None:
    source.put([upload(1, clip_id="a"), upload(5, clip_id="b"), delete(1, 1, clip_id="c")])
    source.register({PREFIX: MODEL})
    newer = [upload(2, clip_id="a"), delete(5, 9, clip_id="b"), upload(2, 9, clip_id="c"), upload(1, clip_id="d")]
    target.put(newer)
    report = copy(source, target)
    assert (report.written, report.kept) == (0, 3)
    assert everything(target) == dict(newer)


@pytest.mark.parametrize("restart", [False, True])
def test_a_copy_that_is_killed_in_either_pass_goes_on_where_it_was(tmp_path: Path, restart: bool) -> None:
    source = LmdbAdmin(tmp_path / "source", create=True)
    fill(source, many(4_000))
    urls = f"lmdb:{tmp_path / 'source'}", f"lmdb:{tmp_path / 'target'}"
    for pages, stage in ((3, "copy"), (2, "copy"), (4, "verify")):
        process = spawn.Process(target=copy_and_die, args=(*urls, pages, stage))
        process.start()
        process.join(WAIT_S)
        process.kill()
        assert process.exitcode == -signal.SIGKILL
    target = LmdbAdmin(tmp_path / "target")
    steps: list[tuple[str, int]] = []
    report = copy(source, target, restart=restart, advance=lambda stage, done, _: steps.append((stage, done)))
    if restart:
        assert (report.resumed, report.read, steps[0]) == (0, 4_000, ("copy", 512))
    else:
        assert (report.resumed, report.read, report.written, report.compared) == (3, 4_000, 4_000, 4_000)
        assert steps[0] == ("verify", 5 * 512)
    assert everything(target) == everything(source)
    assert target.note() is None
    source.close()
    target.close()


@settings(max_examples=20, deadline=None)
@given(kills=st.lists(st.tuples(st.sampled_from(["put", "get", "scan"]), st.integers(1, 4)), max_size=5))
def test_wherever_it_is_interrupted_a_copy_ends_whole_and_counts_what_it_did_once(
    small: tuple[LmdbAdmin, LmdbAdmin], kills: list[tuple[str, int]]
) -> None:
    source, target = small
    target.remove(list(everything(target)))
    target.clear_note()
    for where, count in kills:
        with pytest.MonkeyPatch.context() as patch:
            calls = iter(range(1, 100))

            def dying(*arguments: Any, work: Any, last: int = count, calls: Iterator[int] = calls, **named: Any) -> Any:
                found = work(*arguments, **named)
                if next(calls) == last:
                    raise KilledAt
                return found

            admin = source if where == "scan" else target
            original = getattr(admin, where)
            patch.setattr(admin, where, lambda *a, original=original, dying=dying, **k: dying(*a, work=original, **k))
            try:
                copy(source, target)
            except KilledAt:
                continue
    report = copy(source, target)
    assert everything(target) == everything(source)
    # A run that ended well leaves the next one nothing to write.
    assert report.written + report.present == report.read == report.compared == 23
    assert report.mended == 0


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[LmdbAdmin, LmdbAdmin]]:
    folder = tmp_path_factory.mktemp("small")
    source = LmdbAdmin(folder / "source", create=True, page_records=5)
    fill(source, many(23))
    target = LmdbAdmin(folder / "target", create=True)
    yield source, target
    source.close()
    target.close()


def noted(note: bytes, _merged: object) -> bytes:
    return note


def test_a_copy_of_another_source_starts_from_the_beginning(source: LmdbAdmin, target: LmdbAdmin) -> None:
    fill(source, many(20))
    target.put([], lambda _: b'{"source": "another", "begun_at": "2026-01-01T00:00:00Z", "damage": {}, "cursor": "ff"}')
    assert copy(source, target).read == 20
    for note in (b"", b"nothing", b"[]", b'{"source": 1}', b"{}"):
        target.put([], partial(noted, note))
        assert copy(source, target).resumed == 0


def test_damaged_records_are_left_out_counted_and_named_and_those_of_the_target_healed(
    source: LmdbAdmin, target: LmdbAdmin
) -> None:
    fill(source, many(50))
    broken = upload(1, clip_id="broken")
    put_unchecked(source, damaged(broken))
    put_unchecked(source, misplaced())
    records = everything(source)
    healed = next(key for key in records if key not in {broken.key, misplaced().key})
    target.register({PREFIX: MODEL})
    put_unchecked(target, damaged(next(raw for raw in many(50) if raw.key == healed)))
    report = copy(source, target)
    assert report.damage.count == 2
    assert any("'broken'" in example for example in report.damage.examples)
    expected = {key: value for key, value in records.items() if key not in {broken.key, misplaced().key}}
    assert everything(target) == expected


def test_what_the_target_has_lost_since_it_acknowledged_it_is_mended(source: LmdbAdmin, target: LmdbAdmin) -> None:
    fill(source, many(1_000))
    lost = list(everything(source))[:7]

    def losing(stage: str, done: int, total: int) -> None:  # noqa: ARG001 - by name, as Advance says
        if (stage, done) == ("copy", 1_000):
            target.remove(lost)

    assert copy(source, target, advance=losing).mended == 7
    assert everything(target) == everything(source)


def test_a_target_that_does_not_keep_what_it_takes_ends_the_copy(
    source: LmdbAdmin, target: LmdbAdmin, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(source, many(5))
    monkeypatch.setattr(target, "put", lambda records, _: [Merged.WRITTEN] * len(records))
    with pytest.raises(StoreError, match="has not kept"):
        copy(source, target)


def test_an_unreachable_store_is_waited_for_up_to_a_limit(
    source: LmdbAdmin, target: LmdbAdmin, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(source, many(1_500))
    scan = source.scan
    faults = iter([True, False, True, True, False, False])

    def failing(cursor: str = "", **named: Any) -> Iterator[Page]:
        for page in scan(cursor, **named):
            if next(faults, False):
                raise StoreUnavailableError("away")
            yield page

    monkeypatch.setattr(source, "scan", failing)
    assert copy(source, target).written == 1_500
    assert everything(target) == dict(record for page in scan() for record in page.records)

    faults = iter([True] * 1_000)
    with pytest.raises(StoreUnavailableError):
        copy(source, target, patience_s=0)


def test_a_store_is_not_copied_to_itself(source: LmdbAdmin) -> None:
    with pytest.raises(StoreError, match="to itself"):
        copy(source, source)


def follow(store: LmdbStore, ids: list[str], stop: threading.Event) -> None:
    """Apply a log, the same for every store, until it is said to be enough: at least some of it."""
    random = np.random.default_rng(3)
    for offset in range(1_000, 1_000_000):
        clip_id = ids[random.integers(len(ids))]
        if random.integers(4):
            store.put([clip(clip_id, offset, offset)])
        else:
            store.delete(clip_id, FIRST, Position.of("log", offset))
        if stop.is_set() and offset > 1_100:
            return


def test_with_writers_on_both_sides_nothing_newer_is_lost_and_a_copy_more_brings_the_rest(
    tmp_path: Path, source: LmdbAdmin, target: LmdbAdmin
) -> None:
    ids = [f"c{number}" for number in range(300)]
    stop = threading.Event()
    stores = [LmdbStore(tmp_path / name, model_id=MODEL, dim=8) for name in ("source", "target")]
    # The two follow one log, as services of two groups do, each at its own pace.
    for store in stores:
        store.put([clip(clip_id, 1, number) for number, clip_id in enumerate(ids)])
    writers = [threading.Thread(target=follow, args=(store, ids, stop)) for store in stores]
    for writer in writers:
        writer.start()
    try:
        for _ in range(20):
            before = everything(target)
            copy(source, target)
            after = everything(target)
            for key, value in before.items():
                was, now = (record_format.checked(key, memoryview(each)) for each in (value, after[key]))
                assert now == was or record_format.outranks(now, was)
    finally:
        stop.set()
        for writer in writers:
            writer.join(WAIT_S)
    copy(source, target)
    assert compare(source, target).is_good
    copy(target, source)
    assert everything(source) == everything(target)
    for store in stores:
        store.close()
