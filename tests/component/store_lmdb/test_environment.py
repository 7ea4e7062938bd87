"""The map, the lock table and the files of LMDB. What every engine does is in store_contract/."""

from __future__ import annotations

import datetime as dt
import os
import resource
import signal
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING

import lmdb
import numpy as np
import pytest

from streamer.store import (
    Clip,
    Position,
    PutOutcome,
    StoreError,
    StoreUnavailableError,
    open_store,
    record_format,
)
from streamer.store.lmdb.environment import RESERVED
from tests.support.lmdb_stores import (
    DIM,
    TINY,
    WAIT_S,
    clip,
    in_a_process,
    is_whole,
    open_lmdb,
    put_clips,
    spawn,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from multiprocessing.synchronize import Event
    from pathlib import Path

    from streamer.store.lmdb.store import LmdbStore

MIB = 1 << 20
NOBODY = 65534


# The map.


def read_until(folder: Path, last: int, ready: Event) -> None:
    store = open_lmdb(folder, map_bytes=TINY, read_only=True)
    first = 0
    while first <= last:
        if is_whole(store, first):
            first += 1
        ready.set()
    store.close()


def test_the_map_grows_from_a_tiny_size_under_readers_of_this_and_of_another_process(
    folder: Path, tiny: LmdbStore
) -> None:
    last = 149  # of 128 KiB each: the map doubles nine times
    ready = spawn.Event()
    process = spawn.Process(target=read_until, args=(folder, last, ready))
    process.start()
    assert ready.wait(WAIT_S)
    threads = [threading.Thread(target=read_until, args=(folder, last, ready)) for _ in range(2)]
    for thread in threads:
        thread.start()
    for number in range(last + 1):
        assert tiny.put([clip(number)]) == [PutOutcome.WRITTEN]
    for thread in threads:
        thread.join(WAIT_S)
        assert not thread.is_alive()
    process.join(WAIT_S)
    process.kill()
    assert process.exitcode == 0
    assert tiny._opened()._map_bytes > last * clip(0).vectors.nbytes


def test_one_put_larger_than_many_doublings_is_written(tiny: LmdbStore) -> None:
    assert tiny.put([clip(number) for number in range(40)]) == [PutOutcome.WRITTEN] * 40
    assert all(is_whole(tiny, number) for number in range(40))


def test_a_process_with_a_small_map_reads_and_writes_what_another_has_outgrown(folder: Path, tiny: LmdbStore) -> None:
    in_a_process(put_clips, folder, 0, 9)
    assert is_whole(tiny, 9)
    in_a_process(put_clips, folder, 10, 49)
    assert tiny.put([clip(50)]) == [PutOutcome.WRITTEN]
    assert all(is_whole(tiny, number) for number in range(51))


def test_growing_waits_until_views_are_gone(tiny: LmdbStore) -> None:
    tiny.put([clip(0)])
    writer = threading.Thread(target=lambda: tiny.put([clip(number) for number in range(1, 40)]))
    with tiny.read(["c0"]) as (embedding,):
        assert embedding is not None
        writer.start()
        writer.join(0.3)
        assert writer.is_alive()
        np.testing.assert_array_equal(embedding.matrix, clip(0).vectors)
        # A thread that reads already may read again, though others have to wait by now.
        assert is_whole(tiny, 0)
    writer.join(WAIT_S)
    assert is_whole(tiny, 39)


def test_growing_inside_a_read_of_the_same_thread_is_refused_and_loses_nothing(tiny: LmdbStore) -> None:
    tiny.put([clip(0)])
    with tiny.read(["c0"]) as (embedding,):
        assert embedding is not None
        with pytest.raises(StoreError, match="inside a read"):
            tiny.put([clip(number) for number in range(1, 40)])
        with pytest.raises(StoreError, match="inside a read"):
            tiny.close()
        np.testing.assert_array_equal(embedding.matrix, clip(0).vectors)
    assert not is_whole(tiny, 39)
    tiny.put([clip(number) for number in range(1, 40)])
    assert is_whole(tiny, 39)


def live_with_little_address_space(folder: Path) -> None:
    used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()  # noqa: SIM115, PTH123 - a child's
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (used + 64 * MIB, hard))
    store = open_lmdb(folder)
    written = 0

    def fill() -> None:
        nonlocal written
        while True:
            store.put([clip(written)])
            written += 1

    with pytest.raises(StoreUnavailableError, match="address space"):
        fill()
    assert written > 50
    assert is_whole(store, written - 1)
    resource.setrlimit(resource.RLIMIT_AS, (hard, hard))
    assert store.put([clip(written)]) == [PutOutcome.WRITTEN]


def test_where_address_space_is_limited_the_store_opens_smaller_and_says_when_it_is_used_up(folder: Path) -> None:
    in_a_process(live_with_little_address_space, folder)


# Faults while it runs.


@contextmanager
def limited(which: int, limit: int) -> Iterator[None]:
    soft, hard = resource.getrlimit(which)
    resource.setrlimit(which, (limit, hard))
    try:
        yield
    finally:
        resource.setrlimit(which, (soft, hard))


def test_a_full_disk_makes_the_store_unavailable_until_there_is_room(folder: Path) -> None:
    store = open_lmdb(folder)
    store.put([clip(0)])
    # Python ignores SIGXFSZ, so that a write behind the limit fails as one to a full disk does.
    with limited(resource.RLIMIT_FSIZE, MIB), pytest.raises(StoreUnavailableError, match=str(folder)):
        store.put([clip(number) for number in range(40)])
    assert is_whole(store, 0)
    assert not is_whole(store, 1)
    store.put([clip(number) for number in range(40)])
    assert is_whole(store, 39)
    store.close()


@pytest.mark.parametrize("left", range(3))
def test_a_map_that_cannot_be_opened_again_makes_the_store_unavailable_until_it_can(tiny: LmdbStore, left: int) -> None:
    """With no descriptor left, or one, or two: LMDB opens two, and we open another."""
    tiny.put([clip(0)])
    environment = tiny._opened()
    environment._shut()  # it is opened again when it is needed, and then its own descriptors are free
    unused = os.dup(0)
    os.close(unused)
    with limited(resource.RLIMIT_NOFILE, unused + left):
        with pytest.raises(StoreUnavailableError, match="Too many open files"):
            tiny.put([clip(number) for number in range(1, 40)])
        with pytest.raises(StoreUnavailableError, match="Too many open files"):
            is_whole(tiny, 0)
    assert is_whole(tiny, 0)
    tiny.put([clip(number) for number in range(1, 40)])
    assert is_whole(tiny, 39)


def test_after_a_fatal_error_of_lmdb_the_environment_is_reopened(tiny: LmdbStore) -> None:
    tiny.put([clip(0)])
    environment = tiny._opened()
    broken = environment._lmdb

    def fail(_: object) -> None:
        raise lmdb.PanicError("mdb_txn_begin", -30795)

    with pytest.raises(StoreUnavailableError):
        environment.write(fail)
    assert is_whole(tiny, 0)
    assert environment._lmdb is not broken


@pytest.mark.parametrize("fate", ["removed", "replaced"])
def test_a_store_whose_files_are_gone_is_unavailable(folder: Path, tiny: LmdbStore, fate: str) -> None:
    tiny.ping()
    (folder / "data.mdb").unlink()
    (folder / "lock.mdb").unlink()
    if fate == "replaced":
        in_a_process(put_clips, folder, 0, 0)
    with pytest.raises(StoreUnavailableError, match="removed or replaced"):
        tiny.ping()
    with pytest.raises(StoreUnavailableError, match="removed or replaced"):
        tiny.put([clip(number) for number in range(40)])


# Processes and threads.


def read_for_ever(folder: Path, reading: Event) -> None:
    with open_lmdb(folder, read_only=True).read(["c0"]):
        reading.set()
        signal.pause()


def test_a_reader_that_was_killed_is_cleared_by_the_next_one_to_open_or_write(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def kill_a_reader() -> int:
        reading = spawn.Event()
        process = spawn.Process(target=read_for_ever, args=(folder, reading))
        process.start()
        assert reading.wait(WAIT_S)
        process.kill()
        process.join()
        assert process.pid is not None
        return process.pid

    store = open_lmdb(folder)
    env = store._opened()._lmdb
    assert env is not None
    pid = kill_a_reader()
    assert str(pid) in env.readers()
    in_a_process(put_clips, folder, 0, 0)
    assert str(pid) not in env.readers()
    pid = kill_a_reader()
    assert str(pid) in env.readers()
    monkeypatch.setattr("streamer.store.lmdb.environment._REAP_EVERY_S", 0.0)
    store.put([clip(1)])
    assert str(pid) not in env.readers()
    store.close()


def test_stores_of_one_folder_share_an_environment_by_whatever_path(
    tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = open_lmdb(folder)
    (tmp_path / "link").symlink_to(folder)
    monkeypatch.chdir(tmp_path)
    second = open_store("lmdb:link/../store", model_id="m", dim=DIM, precision="float32")
    third = open_lmdb(tmp_path / "link")
    first.put([clip(0)])
    first.close()
    third.close()
    with second.read(["c0"]) as (embedding,):
        assert embedding is not None
    second.close()
    again = open_lmdb(folder)
    assert is_whole(again, 0)
    again.close()


def test_a_store_that_a_child_inherits_by_fork_is_refused_in_the_child(folder: Path, tiny: LmdbStore) -> None:
    tiny.put([clip(0)])
    child = os.fork()
    if child == 0:
        refused = 0
        for use in (tiny.ping, lambda: open_lmdb(folder)):
            try:
                use()
            except StoreError as error:
                refused += "before a fork" in str(error)
        os._exit(refused)
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 2
    assert is_whole(tiny, 0)


def test_rows_of_float16_are_aligned_even_in_records_so_small_that_they_lie_beside_their_keys(folder: Path) -> None:
    store = open_lmdb(folder, dim=3, precision="float16")
    ids = ["x" * length for length in range(1, 512)]
    vectors, times = np.ones((2, 3), np.float32), np.zeros(2, np.uint32)
    store.put([Clip(clip_id, dt.datetime.now(dt.UTC), Position.of("log", 0), 0, vectors, times) for clip_id in ids])
    with store.read(ids) as embeddings:
        assert all(embedding is not None and embedding.matrix.flags.aligned for embedding in embeddings)
    store.close()


# What cannot be opened.


@contextmanager
def ordinary_user() -> Iterator[None]:
    """Be bound by permissions, which root is not."""
    user = os.geteuid()
    if user == 0:
        os.seteuid(NOBODY)
    try:
        yield
    finally:
        os.seteuid(user)


@pytest.mark.parametrize("read_only", [False, True])
@pytest.mark.parametrize("path", [".", "new/store"])
def test_a_folder_that_cannot_be_written_is_named_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, path: str, read_only: bool
) -> None:
    monkeypatch.chdir(tmp_path)
    tmp_path.chmod(0o555)
    with ordinary_user(), pytest.raises(StoreError) as caught:
        open_store(f"lmdb:{path}", model_id="m", dim=DIM, read_only=read_only)
    assert str(caught.value) == f"{path}: Permission denied"
    tmp_path.chmod(0o755)
    open_store(f"lmdb:{path}", model_id="m", dim=DIM, read_only=read_only).close()


def make_a_file(folder: Path) -> None:
    folder.write_bytes(b"")


def make_a_file_of_the_parent(folder: Path) -> None:
    folder.parent.rmdir()
    folder.parent.write_bytes(b"")


def make_other_bytes(folder: Path) -> None:
    folder.mkdir()
    (folder / "data.mdb").write_bytes(b"not a store" * 1000)


def make_another_programs_lmdb(folder: Path) -> None:
    with lmdb.open(str(folder)) as env, env.begin(write=True) as transaction:
        transaction.put(b"key", b"value")


def make_an_earlier_format(folder: Path) -> None:
    with lmdb.open(str(folder)) as env, env.begin(write=True) as transaction:
        transaction.put(RESERVED, b"clip embeddings 1")


def make_a_later_format(folder: Path) -> None:
    with lmdb.open(str(folder)) as env, env.begin(write=True) as transaction:
        transaction.put(RESERVED, b"clip embeddings 3")


def make_another_model_of_the_same_hash(folder: Path) -> None:
    open_lmdb(folder).close()
    with lmdb.open(str(folder)) as env, env.begin(write=True) as transaction:
        transaction.put(RESERVED + record_format.model_prefix("m"), b"model-x")


@pytest.mark.parametrize("read_only", [False, True])
@pytest.mark.parametrize(
    ("make", "complaint"),
    [
        (make_a_file, "File exists"),
        (make_a_file_of_the_parent, "Not a directory"),
        (make_other_bytes, "not an LMDB file"),
        (make_another_programs_lmdb, "not a store of this release"),
        (make_an_earlier_format, "the store's format is 'clip embeddings 1'"),
        (make_a_later_format, "the store's format is 'clip embeddings 3'"),
        (make_another_model_of_the_same_hash, "model 'm' has the same hash as 'model-x'"),
    ],
)
def test_what_is_no_store_of_ours_is_refused_in_one_line_that_names_the_path(
    tmp_path: Path, make: Callable[[Path], None], complaint: str, read_only: bool
) -> None:
    folder = tmp_path / "parent" / "store"
    folder.parent.mkdir()
    make(folder)
    before = folder.read_bytes() if folder.is_file() else None
    for _ in range(2):
        with pytest.raises(StoreError) as caught:
            open_lmdb(folder, read_only=read_only)
        assert str(caught.value).startswith(f"{folder}: ")
        assert complaint in str(caught.value)
        assert "\n" not in str(caught.value)
    assert before is None or folder.read_bytes() == before


@pytest.mark.parametrize("path", ["", "a\0b", "x" * 300])
def test_a_path_that_can_be_none_is_refused(path: str) -> None:
    with pytest.raises(StoreError):
        open_store(f"lmdb:{path}", model_id="m", dim=DIM)
