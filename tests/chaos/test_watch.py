"""What services show is told of the strikes during which they did."""

from __future__ import annotations

from collections import Counter
from types import SimpleNamespace
from typing import Any, cast

from streamer.scrape import Scrape
from tests.chaos.faults import Strike
from tests.chaos.kinds import Fault
from tests.chaos.plan import Step
from tests.chaos.watch import NO_ANSWER, Named, Sighting, Watch, named


def strike(fault: Fault, at: float, until: float) -> Strike:
    return Strike(Step(at, fault, "broker-0"), at, until, fired=True)


def test_a_condition_counts_once_for_each_strike_during_or_soon_after_which_it_was_named() -> None:
    strikes = [strike(Fault.BROKER_KILL, 10, 20), strike(Fault.BROKER_KILL, 50, 60), strike(Fault.DISK_LOST, 70, 80)]
    sightings = [
        Sighting(9.9, "embed-0", "store"),
        Sighting(12, "embed-0", "broker"),
        Sighting(13, "rerank-1", "broker"),
        Sighting(34, "embed-0", "transactions"),
        Sighting(36, "embed-0", "topic"),
        Sighting(55, "embed-0", "broker"),
    ]
    assert named(strikes, sightings) == {
        Fault.BROKER_KILL: Named(Counter({"broker": 2, "transactions": 1}), [2, 5]),
        Fault.DISK_LOST: Named(unseen=1),
    }


def test_the_watch_notes_conditions_what_grows_what_waits_and_who_is_gone() -> None:
    def answer(*lines: str) -> Scrape:
        return Scrape.parse("\n".join(lines) + "\n", at=0)

    looks: list[Scrape | None] = [
        answer("streamer_log_resets_total 0"),
        answer("streamer_log_resets_total 1", 'streamer_consumer_lag_seconds{partition="0"} 60'),
        answer("streamer_log_resets_total 1", 'streamer_transactions_total{outcome="aborted"} 2'),
        None,
    ]
    conditions = [["broker"], [], [], []]

    class Looks:
        name = "embed-0"

        def metrics(self) -> Scrape | None:
            if len(looks) == 1:
                watch._stopped.set()  # the last look
            return looks.pop(0)

        def readiness(self) -> list[str]:
            return conditions.pop(0)

    watch = Watch([cast("Any", Looks())], cast("Any", SimpleNamespace(wall=lambda: 4.0 - len(looks))), every_s=0)
    watch.run()
    assert [each[::2] for each in watch.sightings] == [
        (1.0, "broker"),
        (2.0, "log resets"),
        (2.0, "lag"),
        (3.0, "transactions aborted"),
        (4.0, NO_ANSWER),
    ]
