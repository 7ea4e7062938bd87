"""Stages: batches under load, back pressure, and items that fail alone."""

from __future__ import annotations

import queue
import threading
from typing import Any

import pytest

from streamer.health import Health
from streamer.metrics import Metrics
from streamer.stages import Stage


@pytest.fixture
def parts() -> dict[str, Any]:
    metrics = Metrics()
    return {"metrics": metrics, "health": Health(metrics)}


def never(item: object, error: Exception) -> None:
    raise AssertionError(f"{item} failed: {error}")


def test_what_waits_is_taken_as_one_batch_up_to_the_limit(parts: dict[str, Any]) -> None:
    batches: queue.Queue[list[int]] = queue.Queue()
    go = threading.Event()

    def work(batch: list[int]) -> None:
        go.wait(10)
        batches.put(batch)

    stage: Stage[int] = Stage("s", work, failed=never, batch_limit=4, **parts)
    stage.put_all(range(9))
    go.set()
    sizes = []
    while sum(sizes) < 9:
        batch = batches.get(timeout=10)
        sizes.append(len(batch))
    assert sizes[0] in (1, 2, 3, 4)  # the thread may have taken the first while the others were being put
    assert max(sizes) == 4


def test_an_item_heavier_than_the_limit_goes_alone(parts: dict[str, Any]) -> None:
    batches: queue.Queue[list[int]] = queue.Queue()
    stage: Stage[int] = Stage("s", batches.put, failed=never, batch_limit=10, weigh=lambda item: item, **parts)
    stage.put(25)
    assert batches.get(timeout=10) == [25]


def test_put_blocks_while_the_queue_is_full(parts: dict[str, Any]) -> None:
    go, put = threading.Event(), threading.Semaphore(0)
    stage: Stage[int] = Stage("s", lambda _batch: go.wait(10) and None, failed=never, capacity=2, **parts)

    def fill() -> None:
        for item in range(4):
            stage.put(item)
            put.release()

    threading.Thread(target=fill, daemon=True).start()
    for _ in range(3):  # one is being worked on, two wait
        assert put.acquire(timeout=10)
    assert not put.acquire(timeout=0.2)
    go.set()
    assert put.acquire(timeout=10)


def test_a_failing_batch_reports_each_item_and_the_thread_lives_on(parts: dict[str, Any]) -> None:
    failures: queue.Queue[tuple[str, str]] = queue.Queue()
    good: queue.Queue[list[str]] = queue.Queue()

    def work(batch: list[str]) -> None:
        if "bad" in batch:
            raise ValueError("no good")
        good.put(batch)

    stage: Stage[str] = Stage("s", work, failed=lambda item, error: failures.put((item, str(error))), **parts)
    stage.put("bad")
    stage.put("fine")
    assert failures.get(timeout=10) == ("bad", "no good")
    assert good.get(timeout=10) == ["fine"]
    assert parts["health"].not_live() == []
