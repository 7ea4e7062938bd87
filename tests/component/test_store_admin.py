"""What every engine does for an operator (StoreAdmin), and what LMDB alone does: compaction."""

from __future__ import annotations

import contextlib
import itertools
import multiprocessing
import pathlib
import secrets
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streamer.store import Position, StoreError, StoreUnavailableError, open_store, record_format
from streamer.store.admin import Merged, Page, Raw, StoreAdmin
from streamer.store.lmdb.admin import LmdbAdmin
from streamer.store.lmdb.store import LmdbStore
from streamer.store.opening import open_admin
from tests.support.store_records import DIM, FIRST, PREFIX, clip, damaged, delete, everything, put_unchecked, upload
from tests.support.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator
    from multiprocessing.queues import Queue
    from multiprocessing.synchronize import Event
    from pathlib import Path

WAIT_S = 120
spawn = multiprocessing.get_context("spawn")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "store"


@pytest.fixture(params=["lmdb", "valkey", "redis", "valkey_cluster"])
def url(request: pytest.FixtureRequest, folder: Path) -> str:
    if request.param == "lmdb":
        return f"lmdb:{folder}"
    return f"{request.getfixturevalue(request.param).url}?name={secrets.token_hex(4)}"


@pytest.fixture
def admin(url: str) -> Iterator[StoreAdmin]:
    opened = open_admin(url, create=True)
    yield opened
    opened.close()


@pytest.fixture
def lmdb_admin(folder: Path) -> Iterator[LmdbAdmin]:
    opened = LmdbAdmin(folder, create=True)
    yield opened
    opened.close()


# Which record stays.


@pytest.mark.parametrize(
    ("there", "copied"),
    [
        (upload(1), upload(2)),
        (upload(1, 9), upload(2, 5)),  # as a late upload that is newer
        (upload(1, 5), upload(1, 9)),
        (upload(9, 5), delete(9, 6)),
        (upload(9, 5), delete(7, 6)),  # the delete comes later, whatever it removed
        (delete(5, 5), upload(6, 6)),
        (delete(5, 5), delete(5, 6)),
        (upload(1, 9, log="another"), upload(2, 5)),
        (upload(1, 9, log="another"), delete(1, 5)),  # what was deleted does not come back
        (upload(1, 9, log="another"), delete(2, 5)),
        (delete(1, 9, log="another"), upload(2, 5)),
        (delete(1, 9, log="another"), delete(2, 5)),
    ],
)
def test_the_newer_record_takes_the_place_of_the_older_and_never_the_other_way(
    admin: StoreAdmin, there: Raw, copied: Raw
) -> None:
    assert admin.put([there]) == [Merged.WRITTEN]
    assert admin.put([copied]) == [Merged.WRITTEN]
    assert admin.put([there]) == [Merged.KEPT]
    assert admin.get([there.key]) == [copied.value]


@pytest.mark.parametrize(
    ("there", "copied"),
    [
        (
            upload(1),
            Raw(upload(1).key, record_format.encode(clip("c", vectors=3), "int8")),
        ),  # stored by another attempt
        (delete(9, 5), upload(9, 6)),  # the deleted upload, once more
        (delete(9, 5), delete(8, 5)),
        (delete(1, 9, log="another"), delete(1, 5)),
        (upload(1, 9, log="another"), upload(1, 5)),
    ],
)
def test_of_what_has_no_order_that_stays_which_was_there(admin: StoreAdmin, there: Raw, copied: Raw) -> None:
    assert admin.put([there, copied]) == [Merged.WRITTEN, Merged.KEPT]


_versions = st.builds(
    record_format.Version, st.integers(0, 4), st.booleans(), st.builds(Position, st.integers(0, 1), st.integers(0, 4))
)


@given(_versions, _versions)
def test_of_two_records_at_most_one_outranks_the_other_and_none_itself(
    one: record_format.Version, other: record_format.Version
) -> None:
    assert not (record_format.outranks(one, other) and record_format.outranks(other, one))
    assert not record_format.outranks(one, one)
    assert record_format.outranks(one, None)


@given(_versions, _versions)
def test_a_copied_record_takes_no_place_that_its_event_would_not_have_taken(
    copied: record_format.Version, there: record_format.Version
) -> None:
    """Between records of one log; of different ones, events go by their arrival."""
    if not record_format.outranks(copied, there) or copied.position.log != there.position.log:
        return
    if copied.live:
        assert record_format.admits(there, copied.uploaded_us, copied.position)
    else:
        assert record_format.tombstone(there, copied.uploaded_us, copied.position) is not None


def test_a_damaged_record_gives_way_and_is_not_put(admin: StoreAdmin) -> None:
    whole = upload(1)
    broken = damaged(whole)
    put_unchecked(admin, broken)
    assert admin.put([whole]) == [Merged.WRITTEN]
    with pytest.raises(record_format.CorruptRecordError):
        admin.put([broken])
    with pytest.raises(record_format.CorruptRecordError, match="another clip"):
        admin.put([Raw(record_format.key(PREFIX, "d"), upload(1, clip_id="x" * 505).value)])
    assert admin.put([whole]) == [Merged.PRESENT]


def test_a_record_under_another_key_is_corrupt_where_it_carries_its_id() -> None:
    long = upload(1, clip_id="x" * 505)
    assert record_format.checked(long.key, memoryview(long.value)).live
    for key in (record_format.key(PREFIX, "y" * 505), PREFIX + b"\x01\xff", PREFIX, b"", PREFIX + b"\x01a" * 300):
        with pytest.raises(record_format.CorruptRecordError):
            record_format.checked(key, memoryview(long.value))


# Scans.


def test_all_models_are_scanned_and_one_alone_by_its_prefix(url: str, admin: StoreAdmin) -> None:
    for model in ("model-a", "model-b"):
        store = open_store(url, model_id=model, dim=DIM)
        store.put([clip(f"{model}-{number}") for number in range(5)])
        store.delete("nothing", FIRST, Position.of("log", 1))
        store.close()
    assert admin.models() == {record_format.model_prefix(model): model for model in ("model-a", "model-b")}
    assert len(everything(admin)) == 12
    heads = dict(itertools.chain.from_iterable(page.records for page in admin.scan(prefix=PREFIX, heads=True)))
    assert len(heads) == 6
    assert set(map(len, heads.values())) == {record_format.HEADER_BYTES}
    assert admin.count() >= 12


@settings(max_examples=60, deadline=None)
@given(
    stays=st.sets(st.binary(min_size=1, max_size=3)),
    comes_and_goes=st.lists(st.sets(st.binary(min_size=1, max_size=3)), max_size=8),
    page=st.integers(1, 4),
)
def test_a_scan_that_is_ended_and_resumed_after_each_page_meets_every_record_that_stays(
    scanned: LmdbAdmin, stays: set[bytes], comes_and_goes: list[set[bytes]], page: int
) -> None:
    def under(tails: set[bytes]) -> set[bytes]:
        return {PREFIX + tail for tail in tails}

    def write(value: bytes, keys: set[bytes]) -> None:
        scanned._opened().write(lambda transaction: [transaction.put(at, value) for at in keys])

    scanned._page_records = page
    write(b"x", under(stays))
    met: list[bytes] = []
    cursor, steps = "", iter(comes_and_goes)
    volatile: set[bytes] = set()
    while (found := next(scanned.scan(cursor), None)) is not None:
        assert isinstance(found, Page)
        met += [raw.key for raw in found.records]
        cursor = found.cursor
        scanned.remove(list(volatile))
        volatile = under(next(steps, set()) - stays)
        write(b"y", volatile)
    assert sorted(set(met)) == met
    assert under(stays) <= set(met)
    scanned.remove([at for each in (stays, *comes_and_goes) for at in under(each)])
    assert list(scanned.scan()) == []


@pytest.fixture(scope="module")
def scanned(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LmdbAdmin]:
    opened = LmdbAdmin(tmp_path_factory.mktemp("scanned"), create=True)
    yield opened
    opened.close()


def test_a_page_is_bounded_in_bytes(lmdb_admin: LmdbAdmin, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("streamer.store.lmdb.admin.PAGE_BYTES", 500)
    lmdb_admin.put([upload(1, clip_id=f"c{number}") for number in range(20)])
    size = len(upload(1).value)
    assert {len(page.records) for page in lmdb_admin.scan()} <= {-(-500 // size), 20 % -(-500 // size)}


def test_a_cursor_of_another_engine_is_refused(admin: StoreAdmin) -> None:
    with pytest.raises(StoreError, match="not a cursor"):
        next(admin.scan("no hexadecimal"))


# Notes and models.


def test_a_note_is_kept_and_is_no_record_and_no_model(url: str, admin: StoreAdmin) -> None:
    assert admin.note() is None
    admin.put([upload(1)], lambda outcomes: ",".join(outcomes).encode())
    assert admin.note() == b"written"
    admin.put([], lambda outcomes: b"two" if not outcomes else b"")
    assert admin.note() == b"two"
    assert len(everything(admin)) == 1
    assert admin.models() == {}
    store = open_store(url, model_id="model-a", dim=DIM)
    assert store.stats().models == {"model-a": 1}
    store.close()
    admin.clear_note()
    admin.clear_note()
    assert admin.note() is None


def test_models_are_made_known_once_and_forgotten(admin: StoreAdmin) -> None:
    admin.register({PREFIX: "model-a"})
    admin.register({PREFIX: "model-a"})
    with pytest.raises(StoreError, match="has the same hash as 'model-a'"):
        admin.register({PREFIX: "model-x"})
    admin.put([upload(1)])
    assert not admin.forget(PREFIX)
    admin.remove([upload(1).key])
    assert admin.forget(PREFIX)
    assert admin.models() == {}


def test_a_service_that_writes_for_a_forgotten_model_makes_it_known_again(url: str, admin: StoreAdmin) -> None:
    store = open_store(url, model_id="model-a", dim=DIM)
    for work in (
        lambda: store.put([clip("c1")]),
        lambda: store.delete("c1", FIRST, Position.of("log", 1)),
    ):
        admin.remove([record_format.key(PREFIX, "c1")])
        assert admin.forget(PREFIX)
        work()
        assert admin.models() == {PREFIX: "model-a"}
    store.close()


def test_a_missing_store_is_refused_unless_it_may_be_created(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="no such store"):
        open_admin(f"lmdb:{tmp_path / 'a'}")
    with pytest.raises(StoreError, match="needs a path"):
        open_admin("lmdb:")
    with pytest.raises(StoreError, match="unsupported store scheme"):
        open_admin("nothing:")
    with pytest.raises(StoreUnavailableError):
        open_admin("redis://127.0.0.1:1")
    open_admin(f"lmdb:{tmp_path / 'a'}", create=True).close()
    assert (tmp_path / "a" / "data.mdb").exists()


def test_a_closed_admin_refuses_work(admin: StoreAdmin) -> None:
    admin.close()
    admin.close()
    with pytest.raises(StoreError, match="closed"):
        admin.count()


# Compaction.


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def fill_and_empty(folder: Path) -> dict[bytes, bytes]:
    """Make a store that has many unused pages; returns its records."""
    admin = LmdbAdmin(folder, create=True)
    admin.register({PREFIX: "model-a"})
    big = [upload(1, clip_id=f"c{number}", vectors=800) for number in range(300)]
    admin.put(big)
    admin.remove([raw.key for raw in big[20:]])
    found = everything(admin)
    admin.close()
    return found


def test_a_compact_copy_beside_a_running_service_is_whole_and_small(folder: Path, tmp_path: Path) -> None:
    before = fill_and_empty(folder)
    service = LmdbStore(folder, model_id="model-a", dim=DIM)
    admin = LmdbAdmin(folder)
    was, now = admin.compact(tmp_path / "new")
    assert now < was / 4
    service.put([clip("after the copy")])
    copy = LmdbAdmin(tmp_path / "new")
    assert everything(copy) == before
    assert copy.models() == {PREFIX: "model-a"}
    with pytest.raises(StoreError, match="contains a store already"):
        admin.compact(tmp_path / "new")
    with pytest.raises(StoreError, match="open elsewhere in this process"):
        admin.compact(None)
    for each in (copy, admin, service):
        each.close()
    assert names(tmp_path / "new") == ["data.mdb", "lock.mdb"]


def test_in_place_the_file_shrinks_keeps_its_rights_and_is_used_on(folder: Path) -> None:
    before = fill_and_empty(folder)
    (folder / "data.mdb").chmod(0o640)
    (folder / ".compacting-dead").mkdir()
    (folder / ".compacting-dead" / "data.mdb").write_bytes(b"half a copy")
    was, now = LmdbAdmin(folder).compact(None)
    assert now < was / 4
    assert (folder / "data.mdb").stat().st_mode & 0o777 == 0o640
    assert names(folder) == ["data.mdb", "lock.mdb"]
    store = LmdbStore(folder, model_id="model-a", dim=DIM)
    store.put([clip("later")])
    admin = LmdbAdmin(folder)
    assert everything(admin).items() >= before.items()
    assert len(everything(admin)) == 21
    admin.close()
    store.close()


def hold_open(folder: Path, opened: Event, end: Event) -> None:
    store = LmdbStore(folder, model_id="model-a", dim=DIM)
    opened.set()
    end.wait(WAIT_S)
    store.close()


def test_in_place_is_refused_while_another_process_has_the_store_open(folder: Path) -> None:
    before = fill_and_empty(folder)
    opened, end = spawn.Event(), spawn.Event()
    service = spawn.Process(target=hold_open, args=(folder, opened, end))
    service.start()
    try:
        assert opened.wait(WAIT_S)
        with pytest.raises(StoreError, match="is in use; stop its services"):
            LmdbAdmin(folder).compact(None)
    finally:
        end.set()
        service.join(WAIT_S)
        service.kill()
    assert service.exitcode == 0
    admin = LmdbAdmin(folder)
    assert everything(admin) == before
    admin.close()
    LmdbAdmin(folder).compact(None)


def compact_and_stop(folder: Path, at_rename: Event, go: Event) -> None:
    """Compact in place, standing still before the copy takes the original's name."""
    rename = pathlib.Path.replace

    def standing_still(path: Path, to: Path) -> Path:
        at_rename.set()
        assert go.wait(WAIT_S)
        return rename(path, to)

    pathlib.Path.replace = standing_still  # type: ignore[assignment]
    LmdbAdmin(folder).compact(None)


def open_and_write(folder: Path, refusals: Queue[str]) -> None:
    """Open the store as a service does; one that is refused is begun once more."""
    try:
        store = LmdbStore(folder, model_id="model-a", dim=DIM)
    except StoreError as error:
        refusals.put(str(error))
        store = LmdbStore(folder, model_id="model-a", dim=DIM)
    store.put([clip("later")])
    store.close()


@pytest.mark.parametrize("killed", [False, True])
def test_who_opens_the_store_while_it_is_compacted_waits_and_finds_all_of_it(folder: Path, killed: bool) -> None:
    before = fill_and_empty(folder)
    at_rename, go, refusals = spawn.Event(), spawn.Event(), spawn.Queue()
    compaction = spawn.Process(target=compact_and_stop, args=(folder, at_rename, go))
    service = spawn.Process(target=open_and_write, args=(folder, refusals))
    compaction.start()
    assert at_rename.wait(WAIT_S)
    service.start()
    wait_until(lambda: "lock.mdb" in files_of(service.pid), seconds=WAIT_S)
    assert "data.mdb" not in files_of(service.pid)
    if killed:
        compaction.kill()
    else:
        go.set()
    for process in (compaction, service):
        process.join(WAIT_S)
        process.kill()
    assert service.exitcode == 0
    # Either way no table of another file was used: after a kill it was told to be none.
    assert refusals.empty() is not killed
    admin = LmdbAdmin(folder)
    assert everything(admin) == before | {upload(1, clip_id="later").key: upload(1, clip_id="later").value}
    admin.close()


def files_of(pid: int | None) -> set[str]:
    """Return the names of the files that a process has open."""
    found = set()
    for link in pathlib.Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(OSError):
            found.add(link.readlink().name)
    return found
