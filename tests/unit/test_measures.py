"""The measures that ir_measures computes, over the same ranking and the same topics as inferred AP."""

from __future__ import annotations

import builtins
import math
import re
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from streamer.evaluation.measures import MeasureError, evaluate, gain, last_place, measure_name
from streamer.evaluation.trec import Judgments, Qrels, Ranking, Run, read_qrels

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

ALL = ("infAP", "AP", "AP@2", "nDCG@10", "nDCG", "P@5", "R@2", "RR", "RR@1", "Success@1")


def run(topics: Mapping[str, Mapping[str, float]]) -> Run:
    return Run({topic: Ranking(tuple(each), np.array(list(each.values()))) for topic, each in topics.items()})


def qrels(topics: Mapping[str, Mapping[str, int]]) -> Qrels:
    return Qrels({topic: Judgments.of(list(each), ["1"] * len(each), each.values()) for topic, each in topics.items()})


def test_each_measure_by_hand() -> None:
    found = evaluate(run({"1": {"b": 3.0, "a": 2.0, "c": 1.0, "x": 0.0}}), qrels({"1": {"a": 1, "b": 0, "c": 2}}), ALL)
    gain = 1 / math.log2(3) + 2 / math.log2(4)
    best = 2 + 1 / math.log2(3)
    assert found.topics["1"] == pytest.approx(
        {
            "infAP": (1 / 2 + 2 / 3) / 2,
            "AP": (1 / 2 + 2 / 3) / 2,
            "AP@2": 1 / 4,
            "nDCG@10": gain / best,
            "nDCG": gain / best,
            "P@5": 2 / 5,
            "R@2": 1 / 2,
            "RR": 1 / 2,
            "RR@1": 0,
            "Success@1": 0,
        },
        abs=1e-4,
    )
    assert list(found.mean) == list(ALL)
    assert found.mean == found.topics["1"]


def test_all_measures_see_one_ranking() -> None:
    # Scores that float32 cannot tell apart, a tie by id, and a result below the thousandth.
    close = run({"1": {"a": 1 + 1e-12, "z": 1.0}, "2": {"a": 1.0, "z": 1.0}})
    found = evaluate(close, qrels({"1": {"a": 1, "z": 0}, "2": {"a": 0, "z": 1}}), ["RR", "P@1", "nDCG@1", "RR@5"])
    assert set(found.mean.values()) == {1.0}
    deep = run({"1": {f"s{number:04}": -float(number) for number in range(1001)}})
    found = evaluate(deep, qrels({"1": {"s1000": 1}}), ["RR", "AP", "R@1000", "infAP"])
    assert set(found.mean.values()) == {0.0}


def test_unjudged_shots_are_not_relevant_and_topics_without_relevant_shots_count() -> None:
    found = evaluate(
        run({"1": {"a": 1.0, "b": 0.0}, "2": {"a": 1.0}}), qrels({"1": {"a": -1, "b": 1}, "2": {"a": -1}}), ALL
    )
    assert found.topics["1"]["RR"] == 0.5
    assert set(found.topics["2"].values()) == {0.0}
    assert found.mean["RR"] == 0.25


def test_missing_topics_count_as_zero_in_every_measure_where_wanted() -> None:
    one, judged = run({"1": {"a": 1.0}}), qrels({"1": {"a": 1}, "2": {"a": 1}})
    assert evaluate(one, judged, ["infAP", "RR"]).mean == {"infAP": 1.0, "RR": 1.0}
    assert evaluate(one, judged, ["infAP", "RR"], missing_as_zero=True).mean == {"infAP": 0.5, "RR": 0.5}


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("infap", "infAP"),
        ("MAP", "AP"),
        ("mrr@10", "RR@10"),
        ("recall@100", "R@100"),
        ("ndcg@10", "nDCG@10"),
        ("Hit@1", "Success@1"),
        ("INFNDCG", "infNDCG"),
        ("medr", "MdR"),
        ("MnR", "MnR"),
    ],
)
def test_measures_have_one_name_each(text: str, name: str) -> None:
    assert measure_name(text) == name


@pytest.mark.parametrize(
    "text", ["", "P", "bleu", "P@0", "P@1001", "infAP@10", "MdR@5", "infNDCG@10", "nDCG@ten", "R@", "P@-1", "AP(rel=2)"]
)
def test_what_is_no_measure_is_refused(text: str) -> None:
    with pytest.raises(MeasureError, match=re.escape(repr(text))):
        measure_name(text)


def test_median_and_mean_rank_are_those_of_the_best_relevant_result() -> None:
    one = run(
        {
            "1": {"a": 4.0, "b": 3.0, "c": 2.0, "d": 1.0},
            "2": {"a": 4.0, "b": 3.0, "c": 2.0, "d": 1.0},
            "3": {"a": 4.0, "b": 3.0, "c": 2.0, "d": 1.0},
            "4": {"a": 4.0, "b": 3.0, "c": 2.0, "d": 1.0},
        }
    )
    judged = qrels({"1": {"a": 1}, "2": {"d": 1, "c": 1}, "3": {"b": 1, "a": 0}, "4": {"d": 2}})
    found = evaluate(one, judged, ["R@1", "R@5", "MdR", "MnR"])
    assert [each["MdR"] for each in found.topics.values()] == [1.0, 3.0, 2.0, 4.0]
    assert [each["MnR"] for each in found.topics.values()] == [1.0, 3.0, 2.0, 4.0]
    assert found.mean == {"R@1": 0.25, "R@5": 1.0, "MdR": 2.5, "MnR": 2.5}
    assert found.not_found == ()


def test_ranks_go_beyond_the_thousandth_result() -> None:
    deep = run({"1": {f"s{number:04}": -float(number) for number in range(1004)}})
    assert evaluate(deep, qrels({"1": {"s1003": 1}}), ["MdR", "MnR"]).mean == {"MdR": 1004.0, "MnR": 1004.0}


def test_ties_have_the_ranks_of_the_ids_in_every_measure() -> None:
    # All scores are equal: the order of the ids decides, descending, and one video of the gallery comes first.
    names = [f"v{number}" for number in range(5)]
    tied = run({query: dict.fromkeys(names, 0.5) for query in names})
    found = evaluate(tied, qrels({name: {name: 1} for name in names}), ["R@1", "Success@1", "RR", "MnR"])
    assert [each["MnR"] for each in found.topics.values()] == [5.0, 4.0, 3.0, 2.0, 1.0]
    assert found.mean["R@1"] == found.mean["Success@1"] == 0.2
    assert [each["RR"] for each in found.topics.values()] == pytest.approx([1 / 5, 1 / 4, 1 / 3, 1 / 2, 1.0])


def test_what_a_run_does_not_list_is_last(tmp_path: Path) -> None:
    (tmp_path / "truth.csv").write_text("key,video_id\n" + "".join(f"q{n},v{n}\n" for n in range(20)))
    truth = read_qrels(tmp_path / "truth.csv")
    short = run({"q0": {"v0": 1.0, "v1": 0.5}, "q1": {"v0": 1.0, "v2": 0.5}})
    found = evaluate(short, truth, ["MnR"])
    assert found.topics == {"q0": {"MnR": 1.0}, "q1": {"MnR": 20.0}}
    assert found.not_found == ("q1",)
    assert evaluate(short, truth, ["MnR"], missing_as_zero=True).topics["q19"] == {"MnR": 20.0}
    # With more results than the ground truth has videos, the place after the longest list of all runs.
    long = run({"q0": {f"x{number}": -float(number) for number in range(30)}})
    assert last_place([short, long], truth) == 31
    assert evaluate(short, truth, ["MnR"], last=31).topics["q1"] == {"MnR": 31.0}


def test_ranks_gain_where_they_fall() -> None:
    assert gain("MdR", 9.0, 4.0) == gain("MnR", 9.0, 4.0) == 5.0
    assert gain("R@1", 0.25, 1.0) == 0.75


def test_cutoffs_do_not_depend_on_the_other_measures() -> None:
    random = np.random.default_rng(2)
    one = run({"1": {f"s{number}": float(random.random()) for number in range(300)}})
    judged = qrels({"1": {f"s{number}": int(random.integers(0, 3)) for number in range(100)}})
    names = ["R@1", "R@10", "nDCG@20", "AP@5", "RR@10", "P@3", "Success@2"]
    together = evaluate(one, judged, [*names, "AP"]).mean
    assert {name: together[name] for name in names} == evaluate(one, judged, names).mean


def test_without_the_extra_inferred_ap_works_and_the_others_say_what_to_install(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    original = builtins.__import__

    def without(name: str, *args: Any, **kwargs: Any) -> Any:
        if name == "ir_measures":
            raise ImportError("No module named 'ir_measures'", name=name)
        return original(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    one, judged = run({"1": {"a": 1.0}}), qrels({"1": {"a": 1}})
    assert evaluate(one, judged).mean == {"infAP": 1.0}
    with pytest.raises(MeasureError, match=r'ir_measures: pip install "cliprerank-streamer\[evaluation\]"'):
        evaluate(one, judged, ["AP"])
