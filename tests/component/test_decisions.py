"""What a pilot decides about simulated users, in short; ``make decide`` is the long form."""

from __future__ import annotations

from collections import Counter

from streamer.evaluation.pilot.decision import READY, STOP
from tests.decisions import pilots, world
from tests.decisions.world import GAINING, HARMFUL

RUNS = 8
ORDERS = (GAINING, *HARMFUL)


def test_pilots_tell_gain_from_harm_under_position_bias_where_raw_clicks_mislead() -> None:
    engines = world.build(clips=80, topics=30, seed=11)[:2]
    outcomes = [
        outcome for engine in engines for kind in pilots.KINDS for outcome in pilots.simulate(engine, kind, runs=RUNS)
    ]
    # Coverage needs more runs than these.
    wrong = [problem for each in outcomes for problem in each.problems if "intervals" not in problem]
    assert not wrong
    assert all(each.truth > 0 for each in outcomes if each.order == GAINING)
    assert all(each.truth < 0 for each in outcomes if each.order in HARMFUL)
    shares = pilots.sure(outcomes)
    assert shares["gain"] > 0.3
    assert shares["harm"] > 0.3
    # The same clicks, counted without regard to position bias, say stop for gain and go for harm.
    misled = {
        order: sum((each.by_raw_clicks for each in outcomes if each.order == order), Counter()) for order in ORDERS
    }
    assert misled[GAINING][STOP] > 0
    assert any(misled[order][READY] for order in HARMFUL)
