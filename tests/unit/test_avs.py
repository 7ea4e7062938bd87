"""The synthetic benchmark's parts: engines from weak to strong, pools in strata, and what is said of the gains."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from streamer.evaluation.infap import InferredAP
from streamer.synthetic import avs
from streamer.synthetic.benchmark import markdown, verdict
from streamer.synthetic.clips import DemoClip, DemoScene
from streamer.synthetic.measures import average_precision
from streamer.synthetic.scenes import describe, draw_scene, satisfies


@pytest.fixture(scope="module")
def clips() -> list[DemoClip]:
    rng = np.random.default_rng(1)
    made = []
    for number in range(300):
        scenes = [draw_scene(rng) for _ in range(5)]
        shown = [DemoScene(1000 * at, 1000 * at + 1000, scene, describe(scene, rng)) for at, scene in enumerate(scenes)]
        made.append(DemoClip(f"clip-{number:04d}", Path(), tuple(shown)))
    return made


def test_topics_are_different_and_their_truth_is_that_of_the_scenes(clips: list[DemoClip]) -> None:
    topics = avs.draw_topics(clips, count=40, seed=2)
    assert len({topic.wanted for topic in topics}) == 40
    assert [topic.query_id for topic in topics[:2]] == ["1501", "1502"]
    for topic in topics:
        truth = {clip.clip_id for clip in clips if any(satisfies(each.scene, topic.wanted) for each in clip.scenes)}
        assert topic.relevant == truth
        assert 1 <= len(truth) <= 30
    with pytest.raises(ValueError, match="have only"):
        avs.draw_topics(clips[:1], count=40, seed=2)


def test_engines_grow_stronger_and_sampled_judgments_tell_how_strong(clips: list[DemoClip]) -> None:
    topics = avs.draw_topics(clips, count=40, seed=2)
    rng = np.random.default_rng(3)
    answers = {topic.query_id: [(clip.clip_id, 0.22 * rng.standard_normal()) for clip in clips] for topic in topics}
    runs = avs.base_runs(answers, topics, seed=2)
    qrels = avs.sample_judgments(runs.values(), topics, seed=2)
    true, estimated = [], []
    for run in runs.values():
        ranked = {topic: ranking.ranked().shots for topic, ranking in run.topics.items()}
        true.append(np.mean([average_precision(ranked[each.query_id], each.relevant) for each in topics]))
        estimated.append(np.mean([InferredAP(qrels.topics[topic]).of(run.topics[topic]) for topic in ranked]))
    assert true == sorted(true)
    np.testing.assert_allclose(estimated, true, atol=0.03)


def test_of_each_stratum_its_share_is_judged(clips: list[DemoClip]) -> None:
    topics = avs.draw_topics(clips, count=3, seed=2)
    answers = {topic.query_id: [(clip.clip_id, float(at)) for at, clip in enumerate(clips)] for topic in topics}
    for judgments in avs.sample_judgments(
        avs.base_runs(answers, topics, seed=2).values(), topics, seed=2
    ).topics.values():
        assert judgments.stratum_names == ("1", "2")
        first, second = (judgments.rels[judgments.strata == stratum] >= 0 for stratum in (0, 1))
        assert first.all()
        assert second.sum() == round(0.2 * len(second))


def engine(name: str, before: float, gain: float, p: float) -> dict[str, Any]:
    figures = {"before": before, "after": before + gain, "gain": gain, "gain_low": gain - 0.1, "gain_high": gain + 0.1,
               "randomization_p": p, "wins": 3, "losses": 1}  # fmt: skip
    return {"name": name, "infAP": figures, "AP": {"before": before, "after": before + gain}, "reached": before}


def test_the_verdict_states_each_engines_gain_and_the_trend() -> None:
    shrinking = verdict([engine("B", 0.4, 0.1, 0.2), engine("A", 0.1, 0.3, 0.001)])
    assert shrinking == [
        "Engine A gains 0.300 (significant, p = 0.001): 3 topics better, 1 worse.",
        "Engine B gains 0.100 (not significant): 3 topics better, 1 worse.",
        "The stronger the engine, the smaller the gain.",
    ]
    growing = verdict([engine("A", 0.1, 0.1, 0.001), engine("B", 0.4, 0.2, 0.001)])
    assert growing[-1] == (
        "The gain does not decrease from engine A to B. Clips below the depth cannot rise: within it are 10 % of "
        "engine A's and 40 % of engine B's relevant clips."
    )
    results = {"engines": [engine("A", 0.1, 0.3, 0.001)], "topics": 2, "clips": 9, "relevant_a_topic": 1.5, "pooled": 8,
               "judged": 7, "alpha": 0.4, "depth": 9, "normalization": "minmax", "model_id": "m",
               "verdict": shrinking}  # fmt: skip
    assert "| A | 0.100 | 0.400 | +0.300 | +0.200 to +0.400 | 0.001 | 3 / 1 | 0.100 to 0.400 |" in markdown(results)
