"""The measures that ir_measures computes, over the same ranking and the same topics as inferred AP."""

from __future__ import annotations

import builtins
import math
import re
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from streamer.evaluation.measures import MeasureError, evaluate, measure_name
from streamer.evaluation.trec import Judgments, Qrels, Ranking, Run

if TYPE_CHECKING:
    from collections.abc import Mapping

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
    ],
)
def test_measures_have_one_name_each(text: str, name: str) -> None:
    assert measure_name(text) == name


@pytest.mark.parametrize("text", ["", "P", "bleu", "P@0", "P@1001", "infAP@10", "nDCG@ten", "R@", "P@-1", "AP(rel=2)"])
def test_what_is_no_measure_is_refused(text: str) -> None:
    with pytest.raises(MeasureError, match=re.escape(repr(text))):
        measure_name(text)


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
