"""Fault points: off unless armed, exact where armed, and refused where misspelt."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading

import pytest

from streamer import faults
from streamer.faults import FaultPlan, FaultPoint

REACH_ALL_THRICE = """
from streamer import faults
faults.arm()
for passage in range(3):
    for point in faults.FaultPoint:
        faults.reach(point)
        print(point, flush=True)
"""


def reach_all_thrice(plan: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", REACH_ALL_THRICE],
        env={faults.VARIABLE: plan},
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )


def test_nothing_happens_unless_a_point_is_armed() -> None:
    done = reach_all_thrice("")
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == [*FaultPoint] * 3


@pytest.mark.parametrize(("plan", "reached"), [("transaction.begun", 4), ("transaction.begun:3", 4 + 2 * 8)])
def test_a_process_dies_at_the_passage_that_was_named(plan: str, reached: int) -> None:
    done = reach_all_thrice(plan)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert len(done.stdout.split()) == reached


@pytest.mark.parametrize(
    "text", ["transaction.begin", "transaction.begun:0", "transaction.begun:x", "transaction.begun:1:HUP", "a:1:STOP:2"]
)
def test_a_plan_that_cannot_be_read_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="is not NAME"):
        FaultPlan(text)


def test_a_plan_may_freeze_instead_of_kill(monkeypatch: pytest.MonkeyPatch) -> None:
    sent: list[int] = []
    monkeypatch.setattr("os.kill", lambda _pid, number: sent.append(number))
    plan = FaultPlan("transaction.committed:2:STOP")
    plan.reach(FaultPoint.COMMITTED)
    plan.reach(FaultPoint.BEGUN)
    assert sent == []
    plan.reach(FaultPoint.COMMITTED)
    plan.reach(FaultPoint.COMMITTED)
    assert sent == [signal.SIGSTOP]


def test_a_plan_may_end_or_hang_the_thread_alone() -> None:
    with pytest.raises(SystemExit):
        FaultPlan("reranker.reranking:1:DIE").reach(FaultPoint.RERANKING)
    plan = FaultPlan("reranker.reranking:1:HANG")
    thread = threading.Thread(target=plan.reach, args=[FaultPoint.RERANKING], daemon=True)
    thread.start()
    thread.join(0.2)
    assert thread.is_alive()
