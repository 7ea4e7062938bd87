"""Stages: batches under load, back pressure, and items that fail alone."""

from __future__ import annotations

import errno
import gc
import queue
import threading
import time
import weakref
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamer.health import Health
from streamer.machine import Lack, MachineError
from streamer.metrics import Metrics
from streamer.shortages import Shortages
from streamer.stages import Stage, Turns
from tests.support.threads import no_threads
from tests.support.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Callable


@pytest.fixture
def parts() -> dict[str, Any]:
    metrics = Metrics()
    health = Health(metrics)
    return {"metrics": metrics, "health": health, "shortages": Shortages(metrics, health)}


def never(item: object, error: Exception) -> None:
    raise AssertionError(f"{item} failed: {error}")


def waiting_for(go: threading.Event) -> Callable[[list[int]], None]:
    """Return the work of a stage that does nothing until ``go`` is set."""

    def work(_batch: list[int]) -> None:
        go.wait(10)

    return work


def test_what_waits_is_taken_as_one_batch_up_to_the_limit(parts: dict[str, Any]) -> None:
    batches: queue.Queue[list[int]] = queue.Queue()
    go = threading.Event()

    def work(batch: list[int]) -> None:
        go.wait(10)
        batches.put(batch)

    stage: Stage[int] = Stage("s", work, failed=never, batch_limit=4, **parts)
    stage.put_all(range(9))
    go.set()
    sizes: list[int] = []
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
    stage: Stage[int] = Stage("s", waiting_for(go), failed=never, capacity=2, **parts)

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


def test_capacity_counts_sizes_and_the_item_that_fills_the_queue_may_overrun_it(parts: dict[str, Any]) -> None:
    go, put = threading.Event(), threading.Semaphore(0)
    sizes: dict[str, Any] = {"capacity": 10, "size": lambda item: item}
    stage: Stage[int] = Stage("s", waiting_for(go), failed=never, **sizes, **parts)

    def fill() -> None:
        for item in (1, 4, 8, 3, 1):
            stage.put(item)
            put.release()

    threading.Thread(target=fill, daemon=True).start()
    for _ in range(3):  # the 1 is being worked on, 4 and 8 wait and make up more than 10
        assert put.acquire(timeout=10)
    assert not put.acquire(timeout=0.2)
    go.set()
    for _ in range(2):
        assert put.acquire(timeout=10)


def test_an_item_larger_than_the_capacity_gets_through_alone(parts: dict[str, Any]) -> None:
    batches: queue.Queue[list[int]] = queue.Queue()
    sizes: dict[str, Any] = {"capacity": 10, "size": lambda item: item}
    stage: Stage[int] = Stage("s", batches.put, failed=never, **sizes, **parts)
    stage.put_all([25, 30])
    assert [batches.get(timeout=10), batches.get(timeout=10)] == [[25], [30]]


def test_a_large_item_that_is_taken_makes_room_for_several_that_wait(parts: dict[str, Any]) -> None:
    go, put = threading.Event(), threading.Semaphore(0)
    taken: queue.Queue[int] = queue.Queue()

    def work(batch: list[int]) -> None:
        taken.put(batch[0])
        if batch == [1]:
            go.wait(10)
        else:
            threading.Event().wait(10)

    sizes: dict[str, Any] = {"capacity": 10, "size": lambda item: item}
    stage: Stage[int] = Stage("s", work, failed=never, **sizes, **parts)
    stage.put(1)
    assert taken.get(timeout=10) == 1
    stage.put(20)

    def put_one() -> None:
        stage.put(2)
        put.release()

    for _ in range(3):
        threading.Thread(target=put_one, daemon=True).start()
    assert not put.acquire(timeout=0.2)
    go.set()
    assert taken.get(timeout=10) == 20
    for _ in range(3):
        assert put.acquire(timeout=5)


def test_put_at_once_never_blocks_and_keeps_the_order(parts: dict[str, Any]) -> None:
    go = threading.Event()
    seen: queue.Queue[int] = queue.Queue()

    def work(batch: list[int]) -> None:
        go.wait(10)
        seen.put(batch[0])

    stage: Stage[int] = Stage("s", work, failed=never, capacity=1, **parts)
    for item in range(50):
        stage.put_at_once(item)
    go.set()
    assert [seen.get(timeout=10) for _ in range(50)] == list(range(50))


class Heavy:
    """Something whose memory matters."""


@pytest.mark.parametrize("fails", [False, True])
def test_a_stage_that_waits_holds_on_to_nothing_of_what_it_has_done(parts: dict[str, Any], fails: bool) -> None:
    finished = threading.Semaphore(0)

    def work(_batch: list[Heavy]) -> None:
        if fails:
            raise ValueError("no good")
        finished.release()

    def failed(_item: Heavy, _error: Exception) -> None:
        finished.release()

    stage: Stage[Heavy] = Stage("s", work, failed=failed, batch_limit=3, **parts)
    alive: weakref.WeakSet[Heavy] = weakref.WeakSet()
    for _ in range(3):
        item = Heavy()
        alive.add(item)
        stage.put(item)
        del item
        assert finished.acquire(timeout=10)
    for _ in range(200):
        # The thread may not be back at its queue yet.
        if not len(alive):
            break
        threading.Event().wait(0.05)
        gc.collect()
    assert len(alive) == 0


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
    assert parts["health"].liveness_problems() == []


@pytest.mark.parametrize("error", [MemoryError(), OSError(errno.EMFILE, "no descriptor")], ids=repr)
def test_a_batch_that_meets_a_shortage_is_worked_on_again_and_has_not_failed(
    parts: dict[str, Any], error: Exception
) -> None:
    seen: queue.SimpleQueue[list[int]] = queue.SimpleQueue()

    def work(batch: list[int]) -> None:
        seen.put(batch)
        if seen.qsize() < 3:
            raise error

    stage: Stage[int] = Stage("s", work, failed=never, **parts)
    stage.put(7)
    wait_until(lambda: seen.qsize() == 3)
    assert [seen.get() for _ in range(3)] == [[7]] * 3


def test_a_stage_for_which_there_is_no_thread_says_so(parts: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    with no_threads(monkeypatch), pytest.raises(MachineError, match="can't start new thread"):
        Stage("s", lambda _: None, failed=never, **parts)


def test_each_thread_begins_before_the_stage_is_there(parts: dict[str, Any]) -> None:
    begun: list[str] = []
    worked: queue.Queue[tuple[str, list[str]]] = queue.Queue()

    def begin() -> None:
        time.sleep(0.05)  # long enough for a constructor that does not wait to be over
        begun.append(threading.current_thread().name)

    stage: Stage[int] = Stage(
        "s",
        lambda _: worked.put((threading.current_thread().name, [*begun])),
        failed=never, threads=3, begin=begin, **parts,
    )  # fmt: skip
    assert sorted(begun) == ["s-0", "s-1", "s-2"]
    stage.put(1)
    name, before = worked.get(timeout=10)
    assert name in before


def test_a_stage_whose_thread_cannot_begin_is_not_made(parts: dict[str, Any]) -> None:
    def begin() -> None:
        raise MachineError(Lack.PROCESSES, "none left")

    with pytest.raises(MachineError, match="none left"):
        Stage("s", lambda _: None, failed=never, begin=begin, **parts)


@given(st.lists(st.tuples(st.sampled_from("abc"), st.booleans()), max_size=60), st.integers(1, 3))
def test_turns_let_a_keys_items_through_in_their_order_and_never_more_than_the_limit(
    events: list[tuple[str, bool]], limit: int
) -> None:
    turns: Turns[int] = Turns(limit)
    under_way: dict[str, list[int]] = {key: [] for key in "abc"}
    asked: dict[str, list[int]] = {key: [] for key in "abc"}
    begun: dict[str, list[int]] = {key: [] for key in "abc"}

    def end(key: str) -> None:
        under_way[key].pop(0)
        following = turns.end(key)
        if following is not None:
            under_way[key].append(following)
            begun[key].append(following)

    for number, (key, is_end) in enumerate(events):
        if is_end:
            if under_way[key]:
                end(key)
            continue
        asked[key].append(number)
        if turns.take(key, number):
            under_way[key].append(number)
            begun[key].append(number)
        assert len(under_way[key]) == min(limit, len(under_way[key]) + len(asked[key]) - len(begun[key]))
    for key, items in under_way.items():
        while items:
            end(key)
        assert begun[key] == asked[key]
    assert not turns._under_way
    assert not turns._waiting


def test_items_without_a_key_never_wait() -> None:
    turns: Turns[int] = Turns(1)
    assert all(turns.take(None, number) for number in range(5))
    assert turns.end(None) is None
