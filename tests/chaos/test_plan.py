"""The plan is a pure function; its promises hold for every seed."""

from __future__ import annotations

import itertools

import pytest

from streamer.faults import FaultPoint
from tests.chaos.plan import BROKERS, EMBED, FULL, LANES, RERANK, SMALL, Fault, Plan, Scale, make_plan, points_of

SEEDS = range(50)


@pytest.fixture(params=[FULL, SMALL], ids=["full", "small"])
def scale(request: pytest.FixtureRequest) -> Scale:
    found: Scale = request.param
    return found


def count(plan: Plan, *faults: Fault) -> int:
    return sum(step.fault in faults for step in plan.steps)


def test_the_full_plan_breaks_as_much_as_the_bar_asks_for() -> None:
    for seed in SEEDS:
        plan = make_plan(seed, FULL)
        assert count(plan, Fault.KILL) >= 30
        assert count(plan, Fault.BROKER_KILL, Fault.BROKER_RESTART) >= 6
        assert count(plan, Fault.FREEZE) >= 4
        assert count(plan, Fault.UNWRITABLE) >= 1
        assert {step.victim for step in plan.steps if step.fault is Fault.KILL} == {
            *FULL.names(EMBED),
            *FULL.names(RERANK),
        }


def test_the_same_seed_gives_the_same_plan_and_another_seed_another(scale: Scale) -> None:
    assert make_plan(7, scale) == make_plan(7, scale)
    assert make_plan(7, scale) != make_plan(8, scale)


def test_every_step_lies_within_the_time_and_in_a_lane(scale: Scale) -> None:
    for seed in SEEDS:
        plan = make_plan(seed, scale)
        assert all(0 <= step.at + step.seconds <= scale.seconds for step in plan.steps)
        assert sum(map(len, plan.lanes().values())) == len(plan.steps)
        assert plan.lanes().keys() == set(LANES)


def test_a_broker_is_back_before_the_next_one_goes(scale: Scale) -> None:
    for seed in SEEDS:
        steps = make_plan(seed, scale).lanes()["broker"]
        assert all(int(step.victim.removeprefix("broker-")) in range(BROKERS) for step in steps)
        for one, other in itertools.pairwise(steps):
            assert other.at - (one.at + one.seconds) >= 10


def test_a_process_has_time_to_start_before_it_is_hit_again(scale: Scale) -> None:
    for seed in SEEDS:
        for lane in (EMBED, RERANK):
            for one, other in itertools.pairwise(make_plan(seed, scale).lanes()[lane]):
                assert other.at - (one.at + one.seconds) > 7


def test_only_a_role_with_a_peer_is_frozen(scale: Scale) -> None:
    for seed in SEEDS:
        frozen = [step for step in make_plan(seed, scale).steps if step.fault is Fault.FREEZE]
        assert all(scale.services[step.lane] > 1 for step in frozen)


def test_every_fault_point_is_met_in_the_full_plan() -> None:
    for seed in SEEDS:
        armed = [(step.lane, step.point.partition(":")[0]) for step in make_plan(seed, FULL).steps if step.point]
        for role in (EMBED, RERANK):
            assert {point for lane, point in armed if lane == role} == {*points_of(role)}
    assert {*points_of(EMBED), *points_of(RERANK)} == {*FaultPoint}


def test_both_group_protocols_are_there() -> None:
    assert {frozenset(make_plan(seed, FULL).protocols.values()) for seed in SEEDS} == {
        frozenset({"classic", "consumer"})
    }
    assert {make_plan(seed, FULL).protocols[EMBED] for seed in SEEDS} == {"classic", "consumer"}


def test_a_plan_that_does_not_fit_is_refused() -> None:
    crowded = Scale(**{name: getattr(FULL, name) for name in Scale.__slots__} | {"seconds": 60})
    with pytest.raises(ValueError, match="more than 60 s"):
        make_plan(0, crowded)
