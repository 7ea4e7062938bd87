"""Simulated sweeps in short (``make decide`` is the long form), and that the simulations notice wrong decisions."""

from __future__ import annotations

from collections import Counter

import pytest

from streamer.evaluation.pilot.decision import COLLECT, READY, STOP
from tests.decisions import pilots, sweeps
from tests.decisions.world import GAINING, HARMFUL

RUNS = 20


@pytest.mark.parametrize("number", [3, 5, 7])
def test_what_a_sweep_claims_is_true_of_the_topics_that_it_has_not_seen(number: int) -> None:
    scenario = sweeps.SCENARIOS[number]
    outcome = sweeps.simulate(scenario, sweeps.population(scenario, topics=150), topics=100, runs=RUNS)
    assert not outcome.problems
    assert outcome.promised > 0
    if scenario.knowledge:
        assert outcome.claimed > RUNS / 2
    else:
        # Without an interval, chance alone would have claimed gains.
        assert outcome.positive > 1


@pytest.mark.parametrize(
    ("order", "decisions", "covered", "problem"),
    [
        (GAINING, {READY: 100, COLLECT: 100}, 186, ""),
        (GAINING, {STOP: 1, COLLECT: 199}, 186, "1 of 200 pilots say stop"),
        (HARMFUL[0], {STOP: 150, COLLECT: 50}, 186, ""),
        (HARMFUL[0], {READY: 1, COLLECT: 199}, 186, "1 of 200 pilots say ready for interleaving"),
        (GAINING, {READY: 200}, 170, "170 of 200 intervals under 1/rank hold the true change"),
    ],
)
def test_a_wrong_decision_in_a_simulation_is_a_problem(
    order: str, decisions: dict[str, int], covered: int, problem: str
) -> None:
    outcome = pilots.Outcome(
        "C", "1/rank", order, 0.1, runs=200, decisions=Counter(decisions), covered=Counter({"1/rank": covered})
    )
    assert problem in " ".join(outcome.problems)
    assert bool(problem) == bool(outcome.problems)


def test_a_false_claim_or_a_broken_promise_in_a_simulation_is_a_problem() -> None:
    assert not sweeps.Outcome("s", 20, runs=200, false=10, broken=10).problems
    said = sweeps.Outcome("s", 20, runs=200, false=11, broken=11).problems
    assert said == [
        "s, 20 topics: 11 of 200 sweeps claim a gain that is none",
        "s, 20 topics: 11 of 200 conservative settings harm more topics than promised",
    ]
