"""What is measured of a store: calls, faults, whether it is there, what it holds."""

from __future__ import annotations

import datetime as dt
import itertools
from contextlib import contextmanager
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import lmdb
import numpy as np
import pytest

from streamer.health import Health
from streamer.metrics import Metrics
from streamer.store import Clip, MeasuredStore, Position, StoreUnavailableError, StoreWatch, open_store
from streamer.store import measured as measured_module
from streamer.vectors import Block, ClipList

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from streamer.store import Store

AT = dt.datetime(2026, 11, 24, tzinfo=dt.UTC)


@pytest.fixture
def parts(monkeypatch: pytest.MonkeyPatch) -> tuple[Metrics, Health]:
    monkeypatch.setattr(measured_module, "_PING_EVERY_S", 3600.0)  # the test asks by itself
    metrics = Metrics()
    health = Health(metrics)
    health.ready("start")
    return metrics, health


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return open_store(f"lmdb:{tmp_path}/store", model_id="m", dim=8)


def clip(name: str) -> Clip:
    vectors = np.eye(1, 8, dtype=np.float32)
    return Clip(name, AT, Position.of("log", 1), 1000, vectors, np.zeros(1, np.uint32))


def value(metrics: Metrics, name: str, **labels: str) -> float | None:
    return metrics.registry.get_sample_value(name, labels)


def test_each_call_is_timed_and_errors_are_counted(
    parts: tuple[Metrics, Health], store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    metrics, _ = parts
    timed = MeasuredStore(store, metrics)
    timed.put([clip("c1"), clip("c2")])
    with timed.read(["c1", "c3"]) as found:
        assert [each is not None for each in found] == [True, False]
    assert timed.delete("c1", AT, Position.of("log", 2))
    assert sorted(timed.clip_ids()) == ["c2"]

    def full(*_: object) -> Any:
        raise StoreUnavailableError("disk full")

    monkeypatch.setattr(store, "put", full)
    with pytest.raises(StoreUnavailableError):
        timed.put([clip("c4")])
    with pytest.raises(StoreUnavailableError), timed.read(["c2"]):
        raise lmdb.ReadonlyError("gone in the middle")
    for operation, calls, faults in (("read", 2, 1), ("put", 2, 1), ("delete", 1, 0)):
        assert value(metrics, "streamer_store_seconds_count", operation=operation) == calls
        assert value(metrics, "streamer_store_errors_total", operation=operation) == faults


def test_a_reads_time_is_the_stores_alone_and_ends_before_a_block_is_used(
    parts: tuple[Metrics, Health], store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    metrics, _ = parts
    store.put([clip("c1"), clip("c2")])
    now = itertools.count()  # each look at the clock takes a second, and the use of a block an hour
    passed = [0]
    monkeypatch.setattr(measured_module, "time", SimpleNamespace(perf_counter=lambda: next(now) + passed[0]))
    with MeasuredStore(store, metrics).read(["c1", "c2", "c3"]) as found:
        assert len(found) == 3
        for block in found.blocks():
            passed[0] += 3600
            assert block.positions.tolist() == [0, 1]
    assert value(metrics, "streamer_store_seconds_count", operation="read") == 1
    assert 0 < (value(metrics, "streamer_store_seconds_sum", operation="read") or 0) < 60


@pytest.mark.parametrize("by", ["blocks", "records"])
def test_corrupt_records_and_the_cache_are_counted_where_the_read_ends(parts: tuple[Metrics, Health], by: str) -> None:
    metrics, _ = parts

    class Counted(ClipList):
        corrupt = cache_hits = cache_misses = 0

        def look(self) -> None:
            self.corrupt, self.cache_hits, self.cache_misses = 2, 5, 7

        def blocks(self) -> Iterator[Block]:
            self.look()
            return iter(())

        def __getitem__(self, index: Any) -> Any:
            self.look()

    class Counting:
        @contextmanager
        def read(self, _clip_ids: Any) -> Iterator[Counted]:
            yield Counted([None])

    timed = MeasuredStore(Counting(), metrics)  # type: ignore[arg-type]
    for times in (1, 2):
        with timed.read(["c1"]) as found:
            assert list(found.blocks() if by == "blocks" else found) == ([] if by == "blocks" else [None])
        assert value(metrics, "streamer_corrupt_records_total") == 2 * times
        assert value(metrics, "streamer_store_cache_total", result="hit") == 5 * times
        assert value(metrics, "streamer_store_cache_total", result="miss") == 7 * times


def test_a_store_that_becomes_unreachable_while_idle_is_waited_for(
    parts: tuple[Metrics, Health], store: Store, tmp_path: Path
) -> None:
    metrics, health = parts
    store.put([clip("c1"), clip("c2")])
    watch = StoreWatch(store, "m", metrics=metrics, health=health, counts=True)
    watch.look()
    assert health.readiness_problems() == []
    assert value(metrics, "streamer_store_clips") == 2
    assert value(metrics, "streamer_store_bytes") == store.stats().bytes
    folder = tmp_path / "store"
    folder.rename(tmp_path / "elsewhere")
    watch.look()
    assert [problem.split(":")[0] for problem in health.readiness_problems()] == ["store"]
    assert value(metrics, "streamer_unready", condition="store") == 1
    (tmp_path / "elsewhere").rename(folder)
    watch.look()
    assert health.readiness_problems() == []
    assert value(metrics, "streamer_unready", condition="store") == 0
    store.close()
    watch.look()
    assert health.readiness_problems() == []


def test_a_successful_probe_of_the_store_does_not_clear_a_failure_of_a_write(
    parts: tuple[Metrics, Health], store: Store
) -> None:
    metrics, health = parts
    watch = StoreWatch(store, "m", metrics=metrics, health=health, counts=False)
    health.not_ready("store", "disk full")
    watch.look()
    assert health.readiness_problems() == ["store: disk full"]
