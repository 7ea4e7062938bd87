"""What /readyz named is told of the strikes during which it did."""

from __future__ import annotations

from tests.chaos.faults import Strike
from tests.chaos.kinds import Fault
from tests.chaos.plan import Step
from tests.chaos.watch import Sighting, named


def strike(fault: Fault, at: float, until: float) -> Strike:
    return Strike(Step(at, fault, "broker-0"), at, until, fired=True)


def test_a_condition_counts_once_for_each_strike_during_or_soon_after_which_it_was_named() -> None:
    strikes = [strike(Fault.BROKER_KILL, 10, 20), strike(Fault.BROKER_KILL, 50, 60), strike(Fault.DISK_LOST, 70, 80)]
    sightings = [
        Sighting(9.9, "embed-0", "store"),
        Sighting(12, "embed-0", "broker"),
        Sighting(13, "rerank-1", "broker"),
        Sighting(24, "embed-0", "transactions"),
        Sighting(26, "embed-0", "topic"),
        Sighting(55, "embed-0", "broker"),
    ]
    assert named(strikes, sightings) == {
        Fault.BROKER_KILL: {"broker": 2, "transactions": 1},
        Fault.DISK_LOST: {},
    }
