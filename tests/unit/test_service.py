"""How a service ends where this machine is short of something that it cannot wait for."""

from __future__ import annotations

import gc
import threading
from typing import TYPE_CHECKING, Any, NoReturn, cast

import pytest
from structlog.testing import capture_logs

from streamer import cli, service
from streamer.health import Health
from streamer.kafka import FatalError, Stop
from streamer.machine import Lack, MachineError
from streamer.metrics import Metrics

if TYPE_CHECKING:
    from streamer.kafka import Loop, Pipeline
    from streamer.store import Store


class Failing:
    """A loop that ends with an error."""

    def __init__(self, error: Exception) -> None:
        self._error = error

    def run(self, _pipeline: object, _stop: object) -> NoReturn:
        raise self._error


def ends_with(monkeypatch: pytest.MonkeyPatch, error: Exception) -> tuple[int, dict[str, Any]]:
    """Return the exit code of a service whose loop ends with an error, and what it logs last."""

    def leave(code: int) -> NoReturn:
        raise SystemExit(code)

    monkeypatch.setattr(service, "_exit_at_once", leave)
    metrics = Metrics()
    parts = service.Service("rerank", metrics, Health(metrics), None, Stop(), threading.Event())
    try:
        with capture_logs() as logs, pytest.raises(SystemExit) as left:
            service._serve(parts, cast("Loop", Failing(error)), cast("Pipeline", None), cast("Store", None))
    finally:
        gc.unfreeze()
    assert isinstance(left.value.code, int)
    return left.value.code, cast("dict[str, Any]", logs[-1])


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (MemoryError(), "this machine is short of memory: Cannot allocate memory"),
        (RuntimeError("can't start new thread"), "this machine is short of processes: can't start new thread"),
    ],
    ids=repr,
)
def test_a_loop_that_runs_out_of_memory_ends_the_service_with_one_line(
    monkeypatch: pytest.MonkeyPatch, error: Exception, said: str
) -> None:
    code, logged = ends_with(monkeypatch, error)
    assert (code, logged["event"], logged["error"]) == (1, "fatal", said)
    assert "exc_info" not in logged


@pytest.mark.parametrize("error", [FatalError("fenced"), ValueError("a bug")], ids=repr)
def test_other_errors_end_it_as_before(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    code, logged = ends_with(monkeypatch, error)
    assert (code, logged["event"]) == (1, "fatal")
    assert ("exc_info" in logged) == isinstance(error, ValueError)


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (MemoryError(), "memory: Cannot allocate memory"),
        (RuntimeError("can't start new thread"), "processes: can't start new thread"),
        (MachineError(Lack.PROCESSES, "Failed to create thread"), "processes: Failed to create thread"),
        (OSError(28, "No space left on device", "report/index.html"), "disk: [Errno 28] No space left on device"),
    ],
    ids=repr,
)
def test_a_command_that_lacks_something_ends_with_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], error: Exception, said: str
) -> None:
    def run(**_: object) -> NoReturn:
        raise error

    monkeypatch.setattr(cli, "take_over_stderr", lambda: None)
    monkeypatch.setattr(cli, "cli", run)
    with pytest.raises(SystemExit) as left:
        cli.main()
    assert left.value.code == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"streamer: this machine is short of {said}")


def test_a_command_that_has_a_bug_shows_where(monkeypatch: pytest.MonkeyPatch) -> None:
    def run(**_: object) -> NoReturn:
        raise RuntimeError("a bug")

    monkeypatch.setattr(cli, "take_over_stderr", lambda: None)
    monkeypatch.setattr(cli, "cli", run)
    with pytest.raises(RuntimeError, match="a bug"):
        cli.main()
