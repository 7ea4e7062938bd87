"""What has risen is told of each instance, whatever process it has."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

from streamer.scrape import Scrape
from tests.chaos.signs import OF_THE_STORE, Rise, Signs

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


class Showing:
    """Stands for an instance that shows these metrics."""

    name = "one"

    def __init__(self) -> None:
        self.text = ""

    def metrics(self) -> Scrape:
        return Scrape.parse(self.text, at=0)

    @staticmethod
    def conditions(metrics: Scrape) -> set[str]:
        return {dict(labels)["condition"] for labels in metrics.series("streamer_unready")}


def test_of_all_that_goes_wrong_only_what_is_asked_for_counts() -> None:
    one = Showing()
    everything, of_the_store = (Signs(cast("list[Instance]", [one]), only) for only in (None, OF_THE_STORE))
    one.text = 'streamer_transactions_total{outcome="aborted"} 2\nstreamer_unready{condition="broker"} 1\n'
    for signs in (everything, of_the_store):
        signs.look()
    assert str(everything) == "not ready: broker (1), transactions aborted (2)"
    assert not of_the_store
    one.text += 'streamer_retries_total{stage="delete"} 3\nstreamer_unready{condition="eviction"} 1\n'
    of_the_store.look()
    assert str(of_the_store) == "not ready: eviction (1), retries of the store (3)"


def test_a_process_that_was_started_again_counts_from_nothing() -> None:
    one = Counting("one", disk=7)
    rise = Rise(cast("list[Instance]", [one]), "faults_total", lack="disk")
    one.lacks = {"disk": 0}
    assert not rise.look()
    one.lacks = {"disk": 2}
    assert rise.look()
    assert str(rise) == "one 2"
