"""Calls with a limit: results and errors pass, and a hung call is left behind."""

from __future__ import annotations

import threading

import pytest

from streamer.kafka.commit.transactions import BoundedCalls, HungError


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
