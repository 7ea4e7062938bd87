"""Whose turn it is among the producers of one instance, whatever comes of their transactions."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamer.kafka.commit import rotation
from streamer.kafka.commit.outcomes import AbortedError, Batch, FencedError, OutcomeUnknownError, RestartError
from streamer.kafka.commit.rotation import Rotation
from streamer.topology import RERANK

if TYPE_CHECKING:
    from collections.abc import Callable

    from streamer.settings import Settings
    from streamer.topology import Service

BATCH = Batch([], [])


class Scripted:
    """In the place of a real producer: its calls end as the test says, and it notes when it had a transaction open."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.initialised = False
        self.is_open = False
        self.outcome: Callable[[], None] = lambda: None
        self.at_poll: Exception | None = None
        self.restarts = 0

    @classmethod
    def of_service(cls, _settings: object, _service: Service, _callbacks: object, *, number: int) -> Scripted:
        return cls(number)

    @property
    def transactional_id(self) -> str:
        return f"id#{self.number}"

    def init(self) -> None:
        self.initialised = True

    def restart(self) -> None:
        self.restarts += 1
        self.initialised = self.is_open = False

    def poll(self) -> None:
        error, self.at_poll = self.at_poll, None
        if error is not None:
            raise error

    def run(self, _batch: Batch, _metadata: object) -> None:
        assert self.initialised
        self.is_open = True
        self.outcome()
        self.is_open = False


@pytest.fixture
def scripted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rotation, "Transactions", Scripted)


def rotate(producers: int) -> tuple[Rotation, list[Scripted]]:
    made = Rotation(cast("Settings", None), dataclasses.replace(RERANK, producers=producers), {})
    made.init()
    return made, cast("list[Scripted]", made._producers)


def outcome_of(kind: type[Exception] | None, producer: Scripted) -> Callable[[], None]:
    def end() -> None:
        if kind is not OutcomeUnknownError:
            producer.is_open = False
        if kind is not None:
            raise kind("scripted")

    return end


@given(
    st.integers(1, 4), st.lists(st.sampled_from([None, AbortedError, OutcomeUnknownError, RestartError]), max_size=30)
)
def test_one_transaction_is_open_at_a_time_and_each_end_passes_the_turn_on(
    producers: int, outcomes: list[type[Exception] | None]
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rotation, "Transactions", Scripted)
        turns, made = rotate(producers)
        for kind in outcomes:
            current = made[turns._turn]
            current.outcome = outcome_of(kind, current)
            try:
                turns.run(BATCH, None)
            except RestartError:
                turns.restart()
                turns.init()
                assert made[turns._turn] is current
            except OutcomeUnknownError:
                assert made[turns._turn] is current
            except AbortedError:
                assert turns._turn == (current.number + 1) % producers
            else:
                assert turns._turn == (current.number + 1) % producers
            assert sum(each.is_open for each in made) <= 1


@pytest.mark.usefixtures("scripted")
def test_an_idle_producer_that_breaks_is_replaced_and_the_open_transaction_goes_on() -> None:
    rotated, (first, second, third) = rotate(3)
    first.outcome = outcome_of(OutcomeUnknownError, first)
    with pytest.raises(OutcomeUnknownError):
        rotated.run(BATCH, None)
    third.at_poll = RestartError("broken while it was idle")
    rotated.poll()
    assert (first.is_open, third.restarts, third.initialised) == (True, 1, False)
    first.outcome = outcome_of(None, first)
    for _ in range(3):
        rotated.run(BATCH, None)
    assert third.initialised
    assert rotated.transactional_id == first.transactional_id
    second.at_poll = FencedError("by a successor")
    with pytest.raises(FencedError):
        rotated.poll()


@pytest.mark.usefixtures("scripted")
def test_the_one_whose_turn_it_is_breaks_at_a_poll_and_is_the_one_that_is_replaced() -> None:
    rotated, (first, second) = rotate(2)
    rotated.run(BATCH, None)
    second.at_poll = RestartError("broken")
    with pytest.raises(RestartError):
        rotated.poll()
    rotated.restart()
    assert (first.restarts, second.restarts) == (0, 1)
