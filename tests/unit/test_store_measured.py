"""What is measured of a store: calls, faults, whether it is there, what it holds."""

from __future__ import annotations

import datetime as dt
from typing import TYPE_CHECKING, Any

import lmdb
import numpy as np
import pytest

from streamer.health import Health
from streamer.metrics import Metrics
from streamer.store import Clip, MeasuredStore, Position, StoreUnavailableError, StoreWatch, open_store
from streamer.store import measured as measured_module

if TYPE_CHECKING:
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


def test_each_call_is_timed_and_a_store_that_is_away_is_counted(parts: tuple[Metrics, Health], store: Store) -> None:
    metrics, _ = parts
    timed = MeasuredStore(store, metrics)
    timed.put([clip("c1"), clip("c2")])
    with timed.read(["c1", "c3"]) as found:
        assert [each is not None for each in found] == [True, False]
    assert timed.delete("c1", AT, Position.of("log", 2))
    assert sorted(timed.clip_ids()) == ["c2"]
    assert timed.corrupt_reads == 0

    def away(*_: object) -> Any:
        raise StoreUnavailableError("disk full")

    store.put = away  # type: ignore[method-assign]
    with pytest.raises(StoreUnavailableError):
        timed.put([clip("c4")])
    with pytest.raises(StoreUnavailableError), timed.read(["c2"]):
        raise lmdb.ReadonlyError("gone in the middle")
    for operation, calls, faults in (("read", 2, 1), ("put", 2, 1), ("delete", 1, 0)):
        assert value(metrics, "streamer_store_seconds_count", operation=operation) == calls
        assert value(metrics, "streamer_store_errors_total", operation=operation) == faults


def test_a_store_that_goes_away_while_nobody_uses_it_is_waited_for(
    parts: tuple[Metrics, Health], store: Store, tmp_path: Path
) -> None:
    metrics, health = parts
    store.put([clip("c1"), clip("c2")])
    watch = StoreWatch(store, "m", metrics=metrics, health=health, counts=True)
    watch.look()
    assert health.readiness_problems() == []
    assert value(metrics, "streamer_store_clips") == 2
    assert (value(metrics, "streamer_store_bytes") or 0) > 0
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


def test_a_fault_that_the_work_has_met_is_not_taken_back_by_a_look_that_meets_none(
    parts: tuple[Metrics, Health], store: Store
) -> None:
    metrics, health = parts
    watch = StoreWatch(store, "m", metrics=metrics, health=health, counts=False)
    health.not_ready("store", "disk full")
    watch.look()
    assert health.readiness_problems() == ["store: disk full"]
