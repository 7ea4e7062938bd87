"""What has risen is told of each instance, whatever process it has."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

from streamer.scrape import Scrape
from tests.chaos.signs import Rise

if TYPE_CHECKING:
    from tests.chaos.services import Instance


class Counting:
    """Stands for an instance whose counters have these values."""

    def __init__(self, name: str, **lacks: float) -> None:
        self.name = name
        self.lacks: dict[str, float] | None = lacks

    def metrics(self) -> Scrape | None:
        if self.lacks is None:
            return None
        return Scrape.parse("".join(f'faults_total{{lack="{k}"}} {v}\n' for k, v in self.lacks.items()), at=0)


def test_a_counter_must_rise_at_each_instance_and_for_the_labels_that_are_asked_for() -> None:
    one, two = Counting("one", disk=3, memory=1), Counting("two", disk=0, memory=0)
    rise = Rise(cast("list[Instance]", [one, two]), "faults_total", lack="disk")
    assert not rise.look()
    one.lacks, two.lacks = {"disk": 5, "memory": 1}, {"disk": 0, "memory": 9}
    assert not rise.look()
    assert str(rise) == "one 2, two 0"
    one.lacks, two.lacks = None, {"disk": 1, "memory": 9}
    assert rise.look()
    assert str(rise) == "one 2, two 1"


def test_a_process_that_was_started_again_counts_from_nothing() -> None:
    one = Counting("one", disk=7)
    rise = Rise(cast("list[Instance]", [one]), "faults_total", lack="disk")
    one.lacks = {"disk": 0}
    assert not rise.look()
    one.lacks = {"disk": 2}
    assert rise.look()
    assert str(rise) == "one 2"
