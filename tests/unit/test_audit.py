"""The audit of exposure: its measures as they are defined, and the biases that it finds, planted or none."""

from __future__ import annotations

import math
from collections import Counter
from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamer.evaluation.audit import intervals
from streamer.evaluation.audit.exposure import awrf, discount, exposure
from streamer.evaluation.audit.figures import Audit, chosen
from streamer.evaluation.audit.groups import OTHER, UNKNOWN, Catalogue, Groups
from streamer.evaluation.audit.lists import Lists
from streamer.evaluation.audit.verdict import AWAY, NONE, OPEN, SHIFT, TOWARDS, decide
from streamer.evaluation.questions import ReplayError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from typing import Any

TOP = 10


def defined_exposure(groups: Sequence[str]) -> dict[str, float]:
    """Compute each group's exposure rank by rank."""
    weights = [1 / math.log2(max(rank, 2)) for rank in range(1, len(groups) + 1)]
    found: dict[str, float] = {}
    for group, weight in zip(groups, weights, strict=True):
        found[group] = found.get(group, 0.0) + weight / math.fsum(weights)
    return found


def defined_awrf(groups: Sequence[str], target: dict[str, float]) -> float:
    """Compute AWRF as TREC's Fair Ranking track defines it: 1 - (KL(e || m) + KL(t || m)) / 2, m = (e + t) / 2."""
    exposed = defined_exposure(groups)
    total = 0.0
    for one, other in ((exposed, target), (target, exposed)):
        for group, share in one.items():
            if share:
                total += share * math.log(share / ((share + other.get(group, 0.0)) / 2)) / 2
    return 1 - total


rankings = st.lists(st.sampled_from("abcde"), min_size=1, max_size=200)


def members(groups: Sequence[str]) -> np.ndarray[Any, Any]:
    return np.array([[group == name for name in "abcde"] for group in groups], float)


weights = st.integers(0, 1_000_000).map(float)
"""Of groups' shares: those of candidates are quotients of such numbers, and none is next to nothing."""


@given(rankings, st.lists(weights, min_size=5, max_size=5).filter(any))
def test_awrf_equals_its_definition(ranking: list[str], shares: list[float]) -> None:
    target = np.array(shares) / sum(shares)
    defined = defined_exposure(ranking)
    exposed = exposure(members(ranking))
    assert exposed == pytest.approx([defined.get(name, 0.0) for name in "abcde"], abs=1e-12)
    expected = defined_awrf(ranking, dict(zip("abcde", target.tolist(), strict=True)))
    assert awrf(exposed, target) == pytest.approx(expected, abs=1e-9)
    assert 1 - math.log(2) - 1e-12 <= awrf(exposed, target) <= 1 + 1e-12


def test_awrf_of_known_lists() -> None:
    assert discount(4).tolist() == [1, 1, 1 / math.log2(3), 0.5]
    assert awrf(np.array([0.25, 0.75]), np.array([0.25, 0.75])) == 1
    assert awrf(np.array([1.0, 0.0]), np.array([0.0, 1.0])) == pytest.approx(1 - math.log(2))


def catalogue(**groups: str | None) -> Catalogue:
    found = Catalogue()
    for clip_id, group in groups.items():
        found.put(clip_id, {"side": group})
    return found


def audited(known: Catalogue, lists: Sequence[Lists], *, top: int = TOP, most: int = 5) -> dict[str, Any]:
    names, _ = chosen(known, (), most)
    audit = Audit(known, names, top=top, most=most)
    audit.add(lists)
    return decide(audit.data())


@given(
    st.lists(st.tuples(st.permutations("abcdef"), st.permutations("abcdef")), min_size=1, max_size=8), st.integers(1, 6)
)
def test_the_parts_of_the_engine_and_of_reranking_add_up_to_the_exposure(orders: list[Any], top: int) -> None:
    known = catalogue(a="x", b="x", c="y", d=None, e="z")  # nobody has uploaded f
    lists = [Lists(f"q{number}", before, after) for number, (before, after) in enumerate(orders)]
    found = audited(known, lists, top=top)
    (attribute,) = found["attributes"]
    assert [each["group"] for each in attribute["groups"]] == ["x", "y", "z", UNKNOWN]
    group_of = {"a": "x", "b": "x", "c": "y", "e": "z", "d": UNKNOWN, "f": UNKNOWN}
    target = {"x": 2 / 6, "y": 1 / 6, "z": 1 / 6, UNKNOWN: 2 / 6}
    sides = [[[group_of[clip] for clip in side[:top]] for side in (each.before, each.after)] for each in lists]
    for each in attribute["groups"]:
        name = each["group"]
        before, after = (float(np.mean([defined_exposure(side[n]).get(name, 0.0) for side in sides])) for n in (0, 1))
        assert (each["exposure_before"], each["exposure_after"]) == pytest.approx((before, after))
        assert each["target"] == pytest.approx(target[name])
        assert each["target"] + each["engine"]["mean"] + each["reranking"]["mean"] == pytest.approx(after)
        assert each["share_after"] == pytest.approx(np.mean([side[1].count(name) / top for side in sides]))
    for key in ("before", "after", "share_before", "share_after", "target"):
        name = key if key in ("share_before", "share_after", "target") else f"exposure_{key}"
        assert math.fsum(each[name] for each in attribute["groups"]) == pytest.approx(1)
    for number, key in enumerate(("before", "after")):
        expected = np.mean([defined_awrf(side[number], target) for side in sides])
        assert attribute["awrf"][key] == pytest.approx(expected, abs=1e-9)
    assert found["candidates_without_upload"] == len(lists)
    assert attribute["unknown_share"] == pytest.approx(1 / 3)


def test_a_clip_of_several_groups_counts_for_each_in_part_and_further_values_are_one_group() -> None:
    groups = Groups("side", Counter({"x": 5, "y": 4, "z": 3, "w": 1}), most=2)
    assert groups.names == ("x", "y", OTHER, UNKNOWN)
    profiles = [(("side", ("x", "z")),), (("side", ("w", "z")),), (("more", ("x",)),), ()]
    assert groups.membership(profiles).tolist() == [[0.5, 0, 0.5, 0], [0, 0, 1, 0], [0, 0, 0, 1], [0, 0, 0, 1]]


SHARE_OF_X = 0.4
PLANTED = 0.5
"""The probability that a reranking puts all clips of x first."""


def shuffled_queries(rng: np.random.Generator, queries: int, planted: float) -> Iterator[Lists]:
    """Yield lists in which chance orders ten clips, four of x, before and after, but for the planted ones."""
    clips = [f"{'x' if number < 10 * SHARE_OF_X else 'y'}{number}" for number in range(10)]
    for number in range(queries):
        before, after = ([clips[each] for each in rng.permutation(10)] for _ in range(2))
        if rng.random() < planted:
            after.sort()
        # Every third query asks again what another one asked, and has the same lists.
        yield from [Lists(f"q{number}", before, after)] * (2 if number % 3 == 0 else 1)


def known_sides() -> Catalogue:
    return catalogue(
        **{f"{'x' if number < 10 * SHARE_OF_X else 'y'}{number}": "xy"[number >= 4] for number in range(10)}
    )


def change_of_x(found: dict[str, Any]) -> dict[str, float]:
    (group,) = (each for each in found["attributes"][0]["groups"] if each["group"] == "x")
    change: dict[str, float] = group["reranking"]
    return change


SIMULATED = 100


def test_a_planted_bias_is_found_and_its_interval_holds_its_size() -> None:
    weights = discount(10)
    size = PLANTED * (float(weights[:4].sum() / weights.sum()) - SHARE_OF_X)
    rng = np.random.default_rng(20)
    held = found_it = 0
    for _ in range(SIMULATED):
        found = audited(known_sides(), list(shuffled_queries(rng, 80, PLANTED)))
        change = change_of_x(found)
        held += change["low"] <= size <= change["high"]
        found_it += found["verdict"] == SHIFT
        assert found["verdict"] != SHIFT or found["shifts"][0]["effect"] == AWAY
    assert found_it == SIMULATED
    # 95 % of 100, less three standard deviations.
    assert held >= 88


def test_where_nothing_is_planted_a_bias_is_found_in_one_of_twenty_audits_at_most() -> None:
    rng = np.random.default_rng(21)
    verdicts = Counter(
        audited(known_sides(), list(shuffled_queries(rng, 60, 0.0)))["verdict"] for _ in range(SIMULATED)
    )
    assert verdicts[OPEN] == 0
    # 5 % of 100, and three standard deviations more.
    assert verdicts[SHIFT] <= 11
    assert verdicts[NONE] + verdicts[SHIFT] == SIMULATED


def test_many_groups_make_a_chance_finding_no_more_likely() -> None:
    rng = np.random.default_rng(22)
    false = 0
    for number in range(SIMULATED):
        values = rng.normal(size=(60, 40)) ** 3 + rng.normal(size=(60, 1))
        found = intervals.simultaneous(values, np.ones(60), seed=number)
        false += bool(((found.low > 0) | (found.high < 0)).any())
    assert false <= 11


def test_repetitions_of_a_query_are_no_evidence() -> None:
    rng = np.random.default_rng(23)
    once = [Lists(each.query, each.before, each.after) for each in shuffled_queries(rng, 60, 0.1)]
    often = [Lists(f" {each.query.upper()}", each.before, each.after) for each in once for _ in range(20)]
    one, other = (change_of_x(audited(known_sides(), lists)) for lists in (once, often))
    assert (other["low"], other["high"]) == pytest.approx((one["low"], one["high"]))


def test_one_query_that_is_most_of_the_traffic_gives_no_verdict() -> None:
    rng = np.random.default_rng(24)
    lists = list(shuffled_queries(rng, 60, 1.0))
    found = audited(known_sides(), lists + [lists[0]] * 1_000)
    assert found["verdict"] == OPEN
    assert found["distinct_queries"] == 60
    assert found["sentence"].startswith("No verdict: 60 different queries, and weigh as much as 1.2 of equal")
    assert change_of_x(found)["low"] is None


def test_what_the_engine_favours_and_reranking_takes_back_is_named_so() -> None:
    rng = np.random.default_rng(25)
    lists = [Lists(each.query, sorted(each.before), each.after) for each in shuffled_queries(rng, 60, 0.0)]
    found = audited(known_sides(), lists)
    (group,) = (each for each in found["attributes"][0]["groups"] if each["group"] == "x")
    assert group["engine"]["low"] > 0 > group["reranking"]["high"]
    assert {each["effect"] for each in found["shifts"]} == {TOWARDS}
    assert found["attributes"][0]["awrf"]["gain"]["low"] > 0


def test_an_order_that_stays_changes_nothing() -> None:
    lists = [
        Lists(each.query, each.before, each.before) for each in shuffled_queries(np.random.default_rng(26), 60, 0.0)
    ]
    found = audited(known_sides(), lists)
    assert (found["verdict"], found["changed"]) == (NONE, 0)
    assert "by more than 0.0 points" in found["sentence"]


def test_a_group_that_changes_in_too_few_queries_is_not_judged() -> None:
    known = known_sides()
    known.put("rare", {"side": "z"})
    lists = list(shuffled_queries(np.random.default_rng(27), 60, 0.0))
    lists += [Lists(f"rare {number}", ["x0", "x1", "rare"], ["rare", "x0", "x1"]) for number in range(5)]
    found = audited(known, lists)
    rare = found["attributes"][0]["groups"][-2]
    assert (rare["group"], rare["reranking"]["low"]) == ("z", None)
    assert "1 small group changed in too few queries to be judged." in found["cautions"]


def test_attributes_with_more_values_than_groups_are_passed_over_unless_they_are_named() -> None:
    known = Catalogue()
    for number in range(30):
        known.put(f"c{number}", {"title": f"t{number}", "side": "xy"[number % 2], "live": number < 3})
    assert chosen(known, (), 20) == (["live", "side"], ["title"])
    assert chosen(known, ("title",), 20) == (["title"], [])
    with pytest.raises(ReplayError, match="no clip has the attribute colour"):
        chosen(Catalogue(["colour"]), ("colour",), 20)
    with pytest.raises(ReplayError, match="to group it by; live, side, title have more values"):
        chosen(known, (), 1)
