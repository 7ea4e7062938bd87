"""The plan is a pure function; its promises hold for every seed."""

from __future__ import annotations

import itertools

import pytest

from streamer.faults import FaultPoint
from tests.chaos.faults import HOW
from tests.chaos.kinds import BROKER, CLUSTER, EMBED, LANES, LMDB, RERANK, STORE, TOPIC, TRAITS, Fault, kinds_for
from tests.chaos.plan import BROKERS, SHARDS, Scale, make_plan, points_of
from tests.chaos.scales import FULL, ON_A_CLUSTER, SCALES, SMALL, SMALL_ON_A_CLUSTER

SEEDS = range(50)


@pytest.fixture(
    params=[FULL, SMALL, ON_A_CLUSTER, SMALL_ON_A_CLUSTER], ids=["full", "small", "cluster", "small cluster"]
)
def scale(request: pytest.FixtureRequest) -> Scale:
    chosen: Scale = request.param
    return chosen


@pytest.mark.parametrize("store", SCALES)
def test_the_full_plan_has_200_faults_of_at_least_16_kinds(store: str) -> None:
    full, _ = SCALES[store]
    assert full.store == store
    for seed in SEEDS:
        plan = make_plan(seed, full)
        assert len(plan.steps) >= 200
        assert {step.fault for step in plan.steps} == kinds_for(store)
        assert {step.victim for step in plan.steps if step.fault is Fault.KILL} == {
            *full.names(EMBED),
            *full.names(RERANK),
        }
    assert len(kinds_for(store)) >= 16
    assert full.seconds < 25 * 60  # of the thirty minutes that a run may take


@pytest.mark.parametrize("store", SCALES)
def test_the_steps_that_keep_a_lane_for_themselves_fit_into_the_time(store: str) -> None:
    # A lane that must wait for others comes to its end too late: the steps after that are out of time.
    full, _ = SCALES[store]
    for seed in SEEDS:
        steps = make_plan(seed, full).steps
        kept = {lane: sum(step.room for step in steps if lane in step.lanes) for lane in LANES}
        assert max(kept.values()) <= full.seconds, kept


def test_a_kind_belongs_to_a_store_or_to_all_and_nodes_are_broken_where_there_are_some() -> None:
    of_nodes = kinds_for(CLUSTER) - kinds_for(LMDB)
    assert kinds_for(CLUSTER) | kinds_for(LMDB) == {*Fault}
    assert kinds_for(LMDB) - kinds_for(CLUSTER) == {Fault.UNWRITABLE, Fault.STORE_CUT}
    for scale in (ON_A_CLUSTER, SMALL_ON_A_CLUSTER):
        steps = make_plan(1, scale).lanes()[STORE]
        assert {step.fault for step in steps} == of_nodes
        assert {step.victim for step in steps if not TRAITS[step.fault].hits_all} == {
            f"{STORE}-{number}" for number in range(SHARDS)
        }
    assert not any(make_plan(1, scale).lanes()[STORE] for scale in (FULL, SMALL))


def test_queries_that_may_lack_records_are_told_by_offsets_that_nothing_changes_meanwhile() -> None:
    steps = make_plan(1, ON_A_CLUSTER).lanes()[STORE]
    alone = {step.fault for step in steps if step.lanes == [TOPIC, STORE]}
    assert alone == {
        Fault.NODE_HANG,
        Fault.NODE_KILL,
        Fault.NODE_PROMOTED,
        Fault.SLOTS_MOVED,
        Fault.PASSWORD_ROTATED,
        Fault.READDRESSED,
    }
    replaces_logs = {Fault.TRUNCATED, Fault.INPUT_RECREATED, Fault.OFFSETS_BACK, Fault.OFFSETS_BEYOND}
    assert all(TOPIC in step.lanes for step in make_plan(1, ON_A_CLUSTER).steps if step.fault in replaces_logs)


def test_a_node_is_back_before_the_next_one_goes() -> None:
    for seed in SEEDS:
        for one, other in itertools.pairwise(make_plan(seed, ON_A_CLUSTER).lanes()[STORE]):
            assert other.at - (one.at + one.seconds) >= 8


def test_every_kind_has_traits_and_a_way_to_do_it() -> None:
    assert TRAITS.keys() == HOW.keys() == {*Fault}


@pytest.mark.parametrize("count", [5, 29, 60])
def test_a_reduced_scale_has_as_many_faults_of_as_many_kinds_as_can_be(count: int) -> None:
    for seed in range(10):
        for full, _ in SCALES.values():
            kinds = kinds_for(full.store)
            reduced = full.reduced(seed, count, kinds)
            plan = make_plan(seed, reduced)
            assert reduced.store == full.store
            assert len(plan.steps) == count
            assert len({step.fault for step in plan.steps}) == min(count, len(kinds))


def test_a_reduced_scale_takes_the_kinds_that_were_asked_for() -> None:
    scale = FULL.reduced(1, 10, {Fault.TRUNCATED, Fault.CLOCK})
    assert {step.fault for step in make_plan(1, scale).steps} == {Fault.TRUNCATED, Fault.CLOCK}


def test_a_step_acquires_its_lanes_in_a_fixed_order() -> None:
    """Two lanes that wait for each other's would wait for ever."""
    for seed in SEEDS:
        for step in make_plan(seed, FULL).steps:
            assert step.lane in step.lanes
            assert step.lanes == sorted(step.lanes, key=LANES.index)


def test_offsets_are_set_while_nothing_else_happens_to_the_group() -> None:
    steps = [step for step in make_plan(1, FULL).steps if TRAITS[step.fault].stops_group]
    assert {step.fault for step in steps} == {Fault.OFFSETS_BACK, Fault.OFFSETS_BEYOND}
    assert {frozenset(step.lanes) for step in steps} == {frozenset({TOPIC, EMBED}), frozenset({TOPIC, RERANK})}


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
        steps = make_plan(seed, scale).lanes()[BROKER]
        assert {step.victim for step in steps} <= {"broker-all", *(f"broker-{index}" for index in range(BROKERS))}
        for one, other in itertools.pairwise(steps):
            needed = 6 if one.fault is Fault.BROKER_HANG else 10
            assert other.at - (one.at + one.seconds) >= needed


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


def test_plans_use_both_group_protocols() -> None:
    assert {frozenset(make_plan(seed, FULL).protocols.values()) for seed in SEEDS} == {
        frozenset({"classic", "consumer"})
    }
    assert {make_plan(seed, FULL).protocols[EMBED] for seed in SEEDS} == {"classic", "consumer"}


def test_a_plan_that_does_not_fit_is_refused() -> None:
    crowded = Scale(**{name: getattr(FULL, name) for name in Scale.__slots__} | {"seconds": 60})
    with pytest.raises(ValueError, match="more than 60 s"):
        make_plan(0, crowded)
