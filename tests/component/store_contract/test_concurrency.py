"""Readers and writers in several processes and threads, and a writer that is killed."""

from __future__ import annotations

import itertools
import multiprocessing
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

from streamer.store import PutOutcome, Store, open_store
from tests.support.store_engines import DIM, PATIENT, Engine, clip, corrupt, versions

if TYPE_CHECKING:
    from multiprocessing.synchronize import Event

WAIT_S = 120
spawn = multiprocessing.get_context("spawn")
BATCH = [f"c{number}" for number in range(8)]


def put_batches(url: str, started: Event, dim: int) -> None:
    store = open_store(url, model_id="model-a", dim=dim, precision="float32", **PATIENT)
    versions_before = versions(store, BATCH[:1])
    for version in itertools.count((versions_before[0] or 0) + 1):
        store.put([clip(clip_id, version, dim=dim) for clip_id in BATCH])
        started.set()


def check_batch(found: list[int | None], engine_is_transactional: bool, before: list[int | None]) -> None:
    """A clip's version never falls; where a put is a transaction, all clips of one have the same."""
    assert all((old or 0) <= (new or 0) for old, new in zip(before, found, strict=True))
    assert len(set(found)) == 1 or not engine_is_transactional


def read_batches(url: str, enough: int, engine_is_transactional: bool) -> None:
    """Read until ``enough`` versions have gone by."""
    store = open_store(url, model_id="model-a", dim=DIM, precision="float32", read_only=True, **PATIENT)
    seen: set[int | None] = set()
    found: list[int | None] = [None] * len(BATCH)
    while len(seen) < enough:
        before, found = found, versions(store, BATCH)
        check_batch(found, engine_is_transactional, before)
        seen |= {*found}
    assert corrupt(store, BATCH) == 0
    store.close()


def test_several_processes_read_while_one_writes_and_see_whole_clips_or_transactions(engine: Engine) -> None:
    arguments = engine.url, 20, engine.is_transactional
    readers = [spawn.Process(target=read_batches, args=arguments) for _ in range(3)]
    for reader in readers:
        reader.start()
    store = engine.open()
    deadline = time.monotonic() + WAIT_S
    version = 0
    while any(reader.is_alive() for reader in readers) and time.monotonic() < deadline:
        version += 1
        store.put([clip(clip_id, version) for clip_id in BATCH])
    for reader in readers:
        reader.kill()
        reader.join()
    assert [reader.exitcode for reader in readers] == [0, 0, 0]


def test_several_threads_read_while_one_writes_and_see_whole_clips_or_transactions(
    engine: Engine, store: Store
) -> None:
    store.put([clip(clip_id, 1) for clip_id in BATCH])
    with ThreadPoolExecutor(4) as pool:
        reads = [pool.submit(lambda: [versions(store, BATCH) for _ in range(100)]) for _ in range(4)]
        for version in itertools.count(2):
            store.put([clip(clip_id, version) for clip_id in BATCH])
            if all(read.done() for read in reads):
                break
    for read in reads:
        for before, found in itertools.pairwise(read.result()):
            check_batch(found, engine.is_transactional, before)
    assert len({version for read in reads for found in read.result() for version in found}) > 1


def test_several_writers_of_the_same_clips_leave_the_newest(engine: Engine) -> None:
    stores = [engine.open() for _ in range(4)]

    def write(number: int) -> None:
        for version in range(number, 200, 4):
            stores[number].put([clip(clip_id, version) for clip_id in BATCH[:3]])

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(write, range(4)))
    assert versions(stores[0], BATCH[:3]) == [199] * 3


def test_a_writer_killed_in_the_middle_leaves_whole_clips_or_transactions_and_a_store_that_can_be_written(
    engine: Engine,
) -> None:
    dim = 16_384
    last = 0
    for pause_s in (0.0, 0.013, 0.037):
        started = spawn.Event()
        writer = spawn.Process(target=put_batches, args=(engine.url, started, dim))
        writer.start()
        assert started.wait(WAIT_S)
        time.sleep(pause_s)
        writer.kill()
        writer.join()
        assert writer.exitcode == -signal.SIGKILL
        store = engine.open(dim=dim)
        found = versions(store, BATCH)
        check_batch(found, engine.is_transactional, [last + 1] * len(BATCH))
        last = max(version or 0 for version in found) + 1
        assert store.put([clip(clip_id, last, dim=dim) for clip_id in BATCH]) == [PutOutcome.WRITTEN] * len(BATCH)
        assert set(versions(store, BATCH)) == {last}
        store.close()
