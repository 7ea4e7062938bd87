"""Whole stores copied, checked and compared: through kills, damage and writers that go on. LMDB on both sides."""

from __future__ import annotations

import datetime as dt
import json
import multiprocessing
import signal
import threading
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from click.testing import CliRunner, Result
from hypothesis import given, settings
from hypothesis import strategies as st

from streamer.cli import cli
from streamer.store import Clip, Position, StoreError, StoreUnavailableError, record_format
from streamer.store.admin import Merged
from streamer.store.lmdb.admin import LmdbAdmin
from streamer.store.lmdb.store import LmdbStore
from streamer.store.transfer import copy
from streamer.store.upkeep import compare, drop, survey, verify
from tests.support.store_records import (
    FIRST,
    MODEL,
    PREFIX,
    clip,
    copy_and_die,
    damaged,
    delete,
    everything,
    fill,
    many,
    put_unchecked,
    upload,
)  # fmt: skip

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from streamer.store.admin import Page, Raw

WAIT_S = 120
spawn = multiprocessing.get_context("spawn")


@pytest.fixture
def source(tmp_path: Path) -> Iterator[LmdbAdmin]:
    opened = LmdbAdmin(tmp_path / "source", create=True)
    yield opened
    opened.close()


@pytest.fixture
def target(tmp_path: Path) -> Iterator[LmdbAdmin]:
    opened = LmdbAdmin(tmp_path / "target", create=True)
    yield opened
    opened.close()


# Copies.


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


class KilledAt(Exception):  # noqa: N818 - stands for a death
    pass


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


# Checks.


def misplaced() -> Raw:
    """Return the record of a clip with a long id under the key of another."""
    return upload(1, clip_id="x" * 505)._replace(key=record_format.key(PREFIX, "d"))


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


# Commands.


def run(*arguments: str | Path, stdin: str = "") -> Result:
    return CliRunner().invoke(cli, ["store", *map(str, arguments)], input=stdin)


@pytest.fixture
def urls(tmp_path: Path, source: LmdbAdmin) -> tuple[str, str]:
    fill(source, many(30))
    return f"lmdb:{tmp_path / 'source'}", f"lmdb:{tmp_path / 'copy'}"


def test_the_commands_copy_and_verify(urls: tuple[str, str], source: LmdbAdmin) -> None:
    text = run("copy", *urls)
    assert (text.exit_code, "30 records copied" in text.output) == (0, True)
    report = json.loads(run("copy", *urls, "--json").output)
    assert (report["present"], report["written"], report["mended"]) == (30, 0, 0)
    assert "27" in run("verify", "--store", urls[1]).output
    figures = json.loads(run("verify", "--store", urls[1], "--json").output)
    assert figures["models"][MODEL]["clips"] == 27
    both = run("verify", "--store", urls[0], "--against", urls[1])
    assert (both.exit_code, "30 identical" in both.output) == (0, True)
    assert json.loads(run("verify", "--store", urls[0], "--against", urls[1], "--json").output)["same"] == 30

    put_unchecked(source, damaged(upload(1, clip_id="[bold]broken")))
    for arguments in (
        ("copy", *urls),
        ("verify", "--store", urls[0]),
        ("verify", "--store", urls[0], "--against", urls[1]),
    ):
        found = run(*arguments)
        assert (found.exit_code, "'[bold]broken'" in found.output) == (1, True)
    assert run("verify", "--store", urls[1], "--against", urls[0]).exit_code == 0


def test_a_copy_from_nowhere_or_from_no_engine_ends_in_one_line(tmp_path: Path) -> None:
    for source, complaint in ((f"lmdb:{tmp_path / 'none'}", "no such store"), ("what", "unsupported store scheme")):
        result = run("copy", source, f"lmdb:{tmp_path / 'copy'}")
        assert isinstance(result.exception, StoreError)
        assert complaint in str(result.exception)
    assert not (tmp_path / "copy").exists()


def test_the_command_compacts(urls: tuple[str, str], tmp_path: Path, source: LmdbAdmin) -> None:
    done = run("compact", "--store", urls[0], "--to", tmp_path / "compact")
    assert (done.exit_code, "after" in done.output) == (0, True)
    copied = LmdbAdmin(tmp_path / "compact")
    assert everything(copied) == everything(source)
    copied.close()
    assert isinstance(run("compact", "--store", urls[0]).exception, StoreError)
    source.close()
    assert run("compact", "--store", urls[0]).exit_code == 0


def test_a_model_is_dropped_only_when_that_is_meant(urls: tuple[str, str], source: LmdbAdmin) -> None:
    at = ("drop-model", "--store", urls[0])
    before = everything(source)
    unknown = run(*at, "model-x", "--yes")
    assert (unknown.exit_code, f"stored: {MODEL}" in unknown.output) == (1, True)
    alone = run(*at, MODEL, "--yes")
    assert (alone.exit_code, "the only stored model" in alone.output) == (1, True)
    source.register({record_format.model_prefix("model-b"): "model-b"})
    recent = Clip("recent", dt.datetime.now(dt.UTC), Position.of("log", 1), 1, clip("c").vectors, clip("c").times_ms)
    source.put(
        [upload(1)._replace(key=record_format.key(PREFIX, "recent"), value=record_format.encode(recent, "int8"))]
    )
    young = run(*at, MODEL, "--yes")
    assert (young.exit_code, "within the last day" in young.output) == (1, True)
    dry = run(*at, MODEL, "--dry-run")
    assert (dry.exit_code, "28 clips and 3 tombstones" in dry.output) == (0, True)
    assert everything(source).items() >= before.items()
    source.remove([record_format.key(PREFIX, "recent")])

    for answer in ("", "n\n"):
        assert run(*at, MODEL, stdin=answer).exit_code == 1
    assert everything(source) == before
    assert run(*at, MODEL, stdin="y\n").exit_code == 0
    assert everything(source) == {}
    assert source.models() == {record_format.model_prefix("model-b"): "model-b"}


def test_a_model_in_use_is_dropped_where_that_is_said(urls: tuple[str, str], source: LmdbAdmin) -> None:
    assert run("drop-model", "--store", urls[0], MODEL, "--yes", "--even-if-in-use").exit_code == 0
    assert everything(source) == {}
