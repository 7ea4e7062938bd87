"""Calls with a limit: results and errors pass, and a hung call is left behind."""

from __future__ import annotations

import threading
import weakref

import pytest

from streamer.kafka.commit.transactions import BoundedCalls, HungError
from streamer.machine import MachineError
from tests.support import ordinary
from tests.support.threads import no_threads
from tests.support.waiting import wait_until


def test_a_bounded_call_returns_the_result_or_raises_the_error() -> None:
    bounded = BoundedCalls("test")
    assert bounded(divmod, 7, 2, limit=10) == (3, 1)
    with pytest.raises(ZeroDivisionError):
        bounded(divmod, 7, 0, limit=10)
    assert bounded(str, 5, limit=10) == "5"


def test_a_hung_call_is_abandoned_and_its_late_result_ignored() -> None:
    bounded = BoundedCalls("test")
    go = threading.Event()
    with pytest.raises(HungError, match="no return"):
        bounded(go.wait, 30, limit=0.1)
    go.set()
    assert bounded(int, "7", limit=10) == 7
    assert bounded(int, "8", limit=10) == 8


def threads(name: str) -> int:
    return sum(thread.name == name for thread in threading.enumerate())


def test_its_thread_ends_with_it_and_keeps_nothing_alive_meanwhile() -> None:
    class Client:
        def request(self) -> int:
            return 1

    client, bounded = Client(), BoundedCalls("ending")
    gone = weakref.ref(client)
    assert bounded(client.request, limit=60) == 1
    del client
    wait_until(lambda: gone() is None, "the client to be collected")
    assert threads("ending") == 1
    del bounded
    wait_until(lambda: threads("ending") == 0, "the thread to end")


def test_an_abandoned_thread_ends_when_its_call_returns() -> None:
    bounded, returns = BoundedCalls("abandoned"), threading.Event()
    with pytest.raises(HungError):
        bounded(returns.wait, limit=0.01)
    assert bounded(int, limit=60) == 0
    assert threads("abandoned") == 2
    returns.set()
    wait_until(lambda: threads("abandoned") == 1, "the abandoned thread to end")
    assert bounded(int, limit=60) == 0


@pytest.mark.parametrize("hangs", [False, True], ids=["at first", "after a call that hung"])
def test_a_call_for_which_there_is_no_thread_is_not_made_and_the_next_one_is(
    monkeypatch: pytest.MonkeyPatch, *, hangs: bool
) -> None:
    bounded, returns = BoundedCalls("lacking"), threading.Event()
    made: list[object] = []
    if hangs:
        with pytest.raises(HungError):
            bounded(returns.wait, limit=0.01)
    with no_threads(monkeypatch):
        for number in range(3):
            with pytest.raises(MachineError, match="processes: can't start new thread"):
                bounded(made.append, number, limit=60)
    bounded(made.append, "now", limit=60)
    assert made == ["now"]
    returns.set()


def test_another_error_of_a_thread_s_start_passes_through(monkeypatch: pytest.MonkeyPatch) -> None:
    def start(_: threading.Thread) -> None:
        raise RuntimeError("threads can only be started once")

    monkeypatch.setattr(threading.Thread, "start", start)
    with pytest.raises(RuntimeError, match="only be started once"):
        BoundedCalls("odd")(int, limit=60)


LIMITED = """
import resource
from streamer.kafka.commit.transactions import BoundedCalls
from streamer.machine import MachineError

bounded, (_, hard) = BoundedCalls("limited"), resource.getrlimit(resource.RLIMIT_NPROC)
resource.setrlimit(resource.RLIMIT_NPROC, (1, hard))
try:
    bounded(int, "7", limit=60)
except MachineError as lack:
    print(lack)
resource.setrlimit(resource.RLIMIT_NPROC, (hard, hard))
print(bounded(int, "7", limit=60))
"""


def test_a_limit_of_processes_is_reported_and_once_it_is_raised_the_call_is_made() -> None:
    said = ordinary.run("-c", LIMITED, as_nobody=True)
    assert said.splitlines() == ["processes: can't start new thread", "7"]
