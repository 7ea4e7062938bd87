"""How long the program goes on: once, or seed after seed until a difference or the end of its time."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

import pytest

from tests.chaos import __main__ as program
from tests.chaos.kinds import CLUSTER, LMDB, Fault, kinds_for
from tests.chaos.scales import FULL, ON_A_CLUSTER, SMALL, SMALL_ON_A_CLUSTER

if TYPE_CHECKING:
    from pathlib import Path

    from rich.console import Console

    from tests.chaos.plan import Scale


class Runs:
    """Stands for the runs: each takes twenty minutes, and the one with seed ``fails`` finds a difference."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *, fails: int | None = None) -> None:
        self.scales: dict[int, Scale] = {}
        self._fails = fails
        self._now = 0.0
        monkeypatch.setattr(program, "_run", self._run)
        monkeypatch.setattr("tests.chaos.__main__.time.monotonic", lambda: self._now)
        monkeypatch.setattr("tests.chaos.__main__.signal.signal", lambda *_: None)

    def _run(self, seed: int, scale: Scale, _out: Path, _console: Console) -> bool:
        self.scales[seed] = scale
        self._now += 1_200
        return seed != self._fails


def kinds_of(scale: Scale) -> set[Fault]:
    return {fault for faults in scale.faults.values() for fault, count in faults.items() if count}


def called(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr("sys.argv", ["chaos", *arguments])
    return program.main()


def test_without_hours_there_is_one_run(monkeypatch: pytest.MonkeyPatch) -> None:
    runs = Runs(monkeypatch)
    assert called(monkeypatch, "--seed", "5") == 0
    assert [*runs.scales] == [5]


def test_with_hours_new_seeds_follow_until_the_time_is_over(monkeypatch: pytest.MonkeyPatch) -> None:
    runs = Runs(monkeypatch)
    assert called(monkeypatch, "--seed", "5", "--hours", "1") == 0
    assert [*runs.scales] == [5, 6, 7]


def test_the_repeated_run_ends_at_the_first_violation(monkeypatch: pytest.MonkeyPatch) -> None:
    runs = Runs(monkeypatch, fails=6)
    assert called(monkeypatch, "--seed", "5", "--hours", "1") == 1
    assert [*runs.scales] == [5, 6]


def test_count_and_kinds_choose_the_faults(monkeypatch: pytest.MonkeyPatch) -> None:
    runs = Runs(monkeypatch)
    monkeypatch.setattr(program, "NEEDS", {})
    called(monkeypatch, "--seed", "1")
    called(monkeypatch, "--seed", "2", "--small")
    called(monkeypatch, "--seed", "3", "--count", "6", "--kinds", "kill, truncated")
    assert runs.scales[1] is FULL
    assert runs.scales[2] is SMALL
    assert runs.scales[3].count == 6
    assert kinds_of(runs.scales[3]) == {Fault.KILL, Fault.TRUNCATED}


def test_the_store_chooses_the_faults_too_and_what_cannot_happen_to_it_is_left_out(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = Runs(monkeypatch)
    monkeypatch.setattr(program, "NEEDS", {})
    called(monkeypatch, "--seed", "1", "--store", "cluster")
    called(monkeypatch, "--seed", "2", "--store", "cluster", "--small")
    called(monkeypatch, "--seed", "3", "--store", "cluster", "--count", "4", "--kinds", "node_hang,store_cut")
    called(monkeypatch, "--seed", "4", "--count", "4", "--kinds", "node_hang,kill")
    assert runs.scales[1] is ON_A_CLUSTER
    assert runs.scales[2] is SMALL_ON_A_CLUSTER
    assert (runs.scales[3].store, kinds_of(runs.scales[3])) == (CLUSTER, {Fault.NODE_HANG})
    assert (runs.scales[4].store, kinds_of(runs.scales[4])) == (LMDB, {Fault.KILL})
    told = capsys.readouterr().out
    assert f"Left out: {Fault.STORE_CUT}. It needs --store lmdb." in told
    assert f"Left out: {Fault.NODE_HANG}. It needs --store cluster." in told


def test_a_kind_that_cannot_be_done_here_is_left_out(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = Runs(monkeypatch)
    needs = {fault: (lambda: False, what) for fault, (_, what) in program.NEEDS.items()}
    monkeypatch.setattr(program, "NEEDS", needs)
    assert called(monkeypatch) == 0
    assert kinds_of(runs.scales[1]) == kinds_for(LMDB) - needs.keys()
    told = capsys.readouterr().out
    for fault, (_, what) in needs.items():
        assert f"Left out: {fault}. It needs {what}."[:100] in told


def test_an_unknown_kind_is_refused_with_the_kinds_that_there_are(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        called(monkeypatch, "--kinds", "earthquake")
    said = capsys.readouterr().err
    assert all(each.name.lower() in said for each in itertools.islice(Fault, 3))
