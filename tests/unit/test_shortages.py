"""Shortages of the machine: which errors show one, and how it is waited out and reported."""

from __future__ import annotations

import errno
import threading

import pytest

from streamer import health as health_module
from streamer.health import Health
from streamer.machine import Lack, MachineError, machine_error
from streamer.metrics import Metrics
from streamer.shortages import Shortages
from tests.support.waiting import wait_until

SHORTAGES = [
    (MemoryError(), Lack.MEMORY),
    (OSError(errno.ENOMEM, "no memory"), Lack.MEMORY),
    (OSError(errno.EMFILE, "too many"), Lack.DESCRIPTORS),
    (OSError(errno.ENFILE, "too many"), Lack.DESCRIPTORS),
    (OSError(errno.ENOSPC, "full"), Lack.DISK),
    (RuntimeError("can't start new thread"), Lack.PROCESSES),
    (MachineError(Lack.SANDBOX, "none"), Lack.SANDBOX),
]


class Case:
    def __init__(self) -> None:
        self.metrics = Metrics()
        self.health = Health(self.metrics)
        self.health.ready("start")
        self.shortages = Shortages(self.metrics, self.health)

    def counted(self, lack: Lack) -> float | None:
        return self.metrics.registry.get_sample_value("streamer_machine_faults_total", {"lack": lack})


@pytest.fixture
def case() -> Case:
    return Case()


@pytest.mark.parametrize(("error", "lack"), SHORTAGES, ids=repr)
def test_an_error_shows_a_shortage_also_as_the_cause_of_another(error: Exception, lack: Lack) -> None:
    found = machine_error(error)
    assert found is not None
    assert found.lack is lack
    caused = ValueError("what came of it")
    caused.__cause__ = error
    outer = machine_error(caused)
    assert outer is not None
    assert outer.lack is lack


@pytest.mark.parametrize(
    "error",
    [ValueError("?"), OSError(errno.ECONNREFUSED, "refused"), OSError(errno.EAGAIN, "later"), RuntimeError("loop")],
    ids=repr,
)
def test_any_other_error_shows_none(case: Case, error: Exception) -> None:
    def attempt() -> None:
        raise error

    assert machine_error(error) is None
    with pytest.raises(type(error)):
        case.shortages.wait_out(attempt)
    assert case.health.readiness_problems() == []


@pytest.mark.parametrize(("error", "lack"), SHORTAGES, ids=repr)
def test_an_attempt_is_made_again_until_there_is_enough(case: Case, error: Exception, lack: Lack) -> None:
    attempts = 0
    seen: list[list[str]] = []

    def attempt() -> str:
        nonlocal attempts
        attempts += 1
        seen.append(case.health.readiness_problems())
        if attempts <= 2:
            raise error
        return "done"

    assert case.shortages.wait_out(attempt) == "done"
    assert case.counted(lack) == 2
    named = [f"machine: {machine_error(error)}"]
    assert seen == [[], named, named]
    assert case.health.readiness_problems() == []


def test_the_condition_holds_until_the_last_that_waits_has_enough(case: Case) -> None:
    enough = [threading.Event(), threading.Event()]

    def attempt(number: int) -> None:
        if not enough[number].is_set():
            raise MemoryError

    threads = [threading.Thread(target=lambda n=n: case.shortages.wait_out(lambda: attempt(n))) for n in range(2)]
    for thread in threads:
        thread.start()
    wait_until(lambda: (case.counted(Lack.MEMORY) or 0) >= 4)
    enough[0].set()
    threads[0].join(60)
    assert case.health.readiness_problems() == ["machine: memory: Cannot allocate memory"]
    enough[1].set()
    threads[1].join(60)
    assert case.health.readiness_problems() == []


class Clock:
    now = 1_000.0

    def monotonic(self) -> float:
        return self.now


def test_what_nothing_waits_for_is_reported_for_a_while(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    monkeypatch.setattr(health_module, "time", clock)
    case.shortages.tell(MachineError(Lack.MEMORY, "none"))
    for _ in range(2):
        clock.now += 10
        case.health.beat()
        assert case.health.readiness_problems() == ["machine: memory: none"]
        case.shortages.tell(MachineError(Lack.MEMORY, "none"))
    clock.now += 16
    case.health.beat()
    assert case.health.readiness_problems() == []
    assert case.counted(Lack.MEMORY) == 3


def test_what_is_waited_for_stays_reported_for_as_long_as_that_takes_whoever_tells_of_another(
    case: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each part of a service has an object of its own; they report over one condition."""
    others = Shortages(case.metrics, case.health)
    clock = Clock()
    monkeypatch.setattr(health_module, "time", clock)
    attempts = 0

    def attempt() -> None:
        nonlocal attempts
        attempts += 1
        if attempts > 1:
            others.tell(MachineError(Lack.PROCESSES, "none"))
            clock.now += 100
            case.health.beat()
            assert case.health.readiness_problems() == ["machine: memory: Cannot allocate memory"]
            return
        raise MemoryError

    case.shortages.wait_out(attempt)
    assert case.health.readiness_problems() == []
