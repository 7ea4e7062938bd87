"""Files that have lost their end, and who may read them."""

from __future__ import annotations

import mmap
import os
import random
import re
from typing import TYPE_CHECKING, Any

import lmdb
import pytest

from streamer.health import Health
from streamer.metrics import Metrics
from streamer.store import (
    StoreError,
    StoreUnavailableError,
    StoreWatch,
)
from streamer.store.lmdb.admin import LmdbAdmin
from streamer.store.lmdb.environment import Environment
from tests.support.lmdb_stores import (
    WAIT_S,
    clip,
    in_a_process,
    is_whole,
    open_lmdb,
    put_clips,
    spawn,
)

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from streamer.store.lmdb.store import LmdbStore


def filled(folder: Path, clips: int = 40) -> int:
    """Make a store of clips of 128 KiB, and return the size of its file."""
    put_clips(folder, 0, clips - 1)
    return (folder / "data.mdb").stat().st_size


@pytest.mark.parametrize("share", [0.0, 0.0001, 0.001, 0.5, 0.999])
@pytest.mark.parametrize("opened", [open_lmdb, LmdbAdmin])
def test_a_truncated_file_is_refused_by_name_when_the_store_is_opened(
    folder: Path, opened: Callable[[Path], Any], share: float
) -> None:
    os.truncate(folder / "data.mdb", int(filled(folder) * share))
    with pytest.raises(StoreError, match=re.escape(str(folder))) as caught:
        opened(folder)
    assert "\n" not in str(caught.value)
    with pytest.raises(StoreError):  # nothing of the first attempt is left open
        opened(folder)


@pytest.mark.parametrize("pages", [0, 1, 2, 3, 100])
@pytest.mark.parametrize("act", ["read", "ping", "scan", "put", "copy"])
def test_a_file_that_is_truncated_under_an_open_store_is_named_and_works_again_once_restored(
    folder: Path, tmp_path: Path, act: str, pages: int
) -> None:
    filled(folder)
    whole = (folder / "data.mdb").read_bytes()
    store = open_lmdb(folder)
    (tmp_path / "copy").mkdir()
    acts: dict[str, Callable[[], object]] = {
        "read": lambda: is_whole(store, 39),
        "ping": store.ping,
        "scan": lambda: list(store.clip_ids()),
        "put": lambda: store.put([clip(40)]),
        "copy": lambda: store._opened().copy(tmp_path / "copy"),
    }
    os.truncate(folder / "data.mdb", pages * mmap.PAGESIZE)
    with pytest.raises(StoreUnavailableError, match=re.escape(str(folder / "data.mdb"))) as caught:
        acts[act]()
    assert isinstance(caught.value, StoreError)
    with (folder / "data.mdb").open("r+b") as file:
        file.write(whole)
    acts[act]()
    assert is_whole(store, 39)
    store.close()


def test_a_file_that_grew_and_was_truncated_is_named_by_a_process_whose_map_must_grow(
    folder: Path, tiny: LmdbStore
) -> None:
    tiny.put([clip(0)])
    in_a_process(put_clips, folder, 1, 40)
    os.truncate(folder / "data.mdb", (folder / "data.mdb").stat().st_size // 2)
    for _ in range(2):
        with pytest.raises(StoreError, match=re.escape(f"{folder / 'data.mdb'}: truncated")):
            is_whole(tiny, 0)
    os.truncate(folder / "data.mdb", 0)
    with pytest.raises(StoreError, match=re.escape(str(folder / "data.mdb"))):
        is_whole(tiny, 0)
    assert (folder / "data.mdb").stat().st_size == 0  # LMDB has not made an empty store of it


def refuse_to_write(folder: Path, checked: Any) -> None:
    """Try to write, and say when the file was found whole."""
    store = open_lmdb(folder)
    check = Environment._require_whole

    def say(environment: Environment, env: Any) -> int:
        size = check(environment, env)
        checked.set()
        return size

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(Environment, "_require_whole", say)
        with pytest.raises(StoreUnavailableError, match="truncated to"):
            store.put([clip(40)])


def test_a_file_that_is_truncated_while_a_writer_waits_for_another_is_not_written_to(folder: Path) -> None:
    filled(folder)
    checked = spawn.Event()
    other = lmdb.open(str(folder), map_size=1 << 40)
    writer = spawn.Process(target=refuse_to_write, args=(folder, checked))
    with other.begin(write=True):
        writer.start()
        assert checked.wait(WAIT_S)
        os.truncate(folder / "data.mdb", 8 * mmap.PAGESIZE)
    writer.join(WAIT_S)
    assert writer.exitcode == 0
    other.close()


def test_a_file_that_is_truncated_after_a_write_is_not_made_to_look_whole(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    half = filled(folder) // 2
    store = open_lmdb(folder)
    extend = Environment._extend

    def truncate_first(environment: Environment, env: Any, before: int) -> None:
        os.truncate(folder / "data.mdb", half)
        extend(environment, env, before)

    monkeypatch.setattr(Environment, "_extend", truncate_first)
    for _ in range(2):
        with pytest.raises(StoreUnavailableError, match="truncated to"):
            store.put([clip(40)])
        assert (folder / "data.mdb").stat().st_size == half
    store.close()


def test_pages_that_lmdb_frees_before_it_writes_them_do_not_make_a_file_look_truncated(folder: Path) -> None:
    """Removing most keys merges pages that the same transaction has taken from beyond the file's end."""
    admin = LmdbAdmin(folder, create=True)
    environment = admin._opened()
    extended = 0
    draw = random.Random(1)  # noqa: S311 - reproducible, not secret
    keys = [b"k%07d" % number for number in range(1500)]

    def work(transaction: Any) -> None:
        for at in draw.choices(keys, k=draw.choice((1, 4, 64))):
            if draw.random() < 0.9:
                transaction.delete(at)
            else:
                transaction.put(at, bytes(draw.choice((64, 300, 1500, 9000, 17000))))

    ftruncate = os.ftruncate

    def counted(file: int, length: int) -> None:
        nonlocal extended
        extended += 1
        ftruncate(file, length)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(os, "fsync", lambda _file: None)
        patched.setattr(os, "ftruncate", counted)
        for _ in range(1500):
            environment.write(work)
            with environment.reading():
                pass
        assert extended > 0
    admin.close()
    LmdbAdmin(folder).close()


def test_files_are_readable_by_their_owner_alone(folder: Path, tmp_path: Path) -> None:
    umask = os.umask(0)
    try:
        admin = LmdbAdmin(folder, create=True)
        admin.compact(tmp_path / "copy")
        admin.compact(None)
        admin = LmdbAdmin(tmp_path / "copy")
        admin.close()
    finally:
        os.umask(umask)
    modes = {path.stat().st_mode & 0o777 for each in (folder, tmp_path / "copy") for path in each.iterdir()}
    assert modes == {0o600}


def test_a_watch_goes_on_asking_after_a_truncated_store(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    filled(folder)
    store = open_lmdb(folder, read_only=True)
    whole = (folder / "data.mdb").read_bytes()
    health = Health(metrics := Metrics())
    health.ready("start")
    monkeypatch.setattr(StoreWatch, "_run", lambda _watch: None)
    watch = StoreWatch(store, "m", metrics=metrics, health=health, counts=False)
    os.truncate(folder / "data.mdb", 1 << 16)
    watch.look()
    assert [f"store: {folder / 'data.mdb'}: truncated" in each for each in health.readiness_problems()] == [True]
    (folder / "data.mdb").write_bytes(whole)
    watch.look()
    assert health.readiness_problems() == []
    store.close()
