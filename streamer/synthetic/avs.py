"""A synthetic ad-hoc video search benchmark: topics, engines of several strengths, and judgments sampled as NIST does.

The collection is the demo's clips. A topic is an object with a colour or before a background, so that several clips are
relevant. An engine's score is the stand-in engine's (one vector for a whole clip), with noise, and with a bonus for
relevant clips, as if the engine used descriptions of some of them: less noise and a larger bonus make a stronger
engine, and the bonus is independent of the frames.

Runs are pooled by depth into strata: the first ranks of any run are judged completely, deeper ranks by samples. Because
the scenes are known, so is the true relevance, with which the estimate from the judgments can be compared.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from streamer.evaluation.trec import Judgments, Qrels, Ranking, Run
from streamer.synthetic.clips import DemoQuery, judge
from streamer.synthetic.scenes import Scene, describe

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from streamer.synthetic.clips import DemoClip

FIRST_TOPIC = 1501
_TOPIC_STREAM, _ENGINE_STREAM, _SAMPLE_STREAM = 3, 4, 5
"""Separate streams of random numbers under one seed."""
_TRIES_PER_TOPIC = 50
_MAX_RELEVANT_SHARE = 0.1


@dataclass(frozen=True, slots=True)
class Strength:
    """One engine: the bonus on a relevant clip's cosine, and the standard deviation of the noise on all cosines."""

    name: str
    bonus: float
    noise: float


STRENGTHS = (
    Strength("A", 0.0, 0.2),
    Strength("B", 0.0, 0.05),
    Strength("C", 0.1, 0.05),
    Strength("D", 0.2, 0.05),
    Strength("E", 0.3, 0.05),
)
"""From the weakest to the strongest; cosines of whole clips have a standard deviation of 0.22."""


@dataclass(frozen=True, slots=True)
class Stratum:
    """A stratum of a pool: clips above ``depth`` in some run, in no earlier stratum; ``rate``: the judged share."""

    name: str
    depth: int
    rate: float


STRATA = (Stratum("1", 40, 1.0), Stratum("2", 200, 0.2))


def draw_topics(clips: Sequence[DemoClip], *, count: int, seed: int) -> list[DemoQuery]:
    """Draw ``count`` different topics, each matching some clip, with the true relevance of all clips.

    Raises :class:`ValueError` if the clips do not have so many.
    """
    rng = np.random.default_rng([seed, _TOPIC_STREAM])
    most = max(1, round(_MAX_RELEVANT_SHARE * len(clips)))
    chosen: dict[Scene, DemoQuery] = {}
    for _ in range(_TRIES_PER_TOPIC * count):
        if len(chosen) == count:
            return list(chosen.values())
        clip = clips[int(rng.integers(len(clips)))]
        scene = clip.scenes[int(rng.integers(len(clip.scenes)))].scene
        item = replace(scene.items[int(rng.integers(len(scene.items)))], size=None)
        wanted = Scene((item,), None) if rng.integers(2) else Scene((replace(item, colour=None),), scene.background)
        moments = judge(clips, wanted)
        if wanted not in chosen and len(moments) <= most:
            topic = str(FIRST_TOPIC + len(chosen))
            chosen[wanted] = DemoQuery(topic, describe(wanted, rng), wanted, moments)
    if len(chosen) == count:
        return list(chosen.values())
    raise ValueError(f"{len(clips)} clips have only {len(chosen)} different topics, not {count}")


def base_runs(
    answers: Mapping[str, Iterable[tuple[str, float]]], topics: Sequence[DemoQuery], *, seed: int
) -> dict[str, Run]:
    """Make a run of each of :data:`STRENGTHS` from ``answers``: for each topic all clips with their cosines."""
    runs = {}
    for number, strength in enumerate(STRENGTHS):
        rng = np.random.default_rng([seed, _ENGINE_STREAM, number])
        rankings = {}
        for topic in topics:
            shots, cosines = zip(*sorted(answers[topic.query_id]), strict=True)
            bonus = strength.bonus * np.array([shot in topic.relevant for shot in shots])
            scores = np.array(cosines) + bonus + strength.noise * rng.standard_normal(len(shots))
            rankings[topic.query_id] = Ranking(shots, scores).ranked()
        runs[strength.name] = Run(rankings, f"engine-{strength.name}")
    return runs


def sample_judgments(runs: Iterable[Run], topics: Sequence[DemoQuery], *, seed: int) -> Qrels:
    """Pool the runs into :data:`STRATA`, and judge a sample of each stratum by the truth."""
    rng = np.random.default_rng([seed, _SAMPLE_STREAM])
    ranked = [{topic: ranking.ranked().shots for topic, ranking in run.topics.items()} for run in runs]
    judged = {}
    for topic in topics:
        shots: list[str] = []
        strata: list[str] = []
        rels: list[int] = []
        for stratum in STRATA:
            new = {shot for run in ranked for shot in run[topic.query_id][: stratum.depth]}.difference(shots)
            pooled = sorted(new)
            sampled = set(rng.permutation(pooled)[: round(stratum.rate * len(pooled))].tolist())
            shots += pooled
            strata += [stratum.name] * len(pooled)
            rels += [int(shot in topic.relevant) if shot in sampled else -1 for shot in pooled]
        judged[topic.query_id] = Judgments.of(shots, strata, rels)
    return Qrels(judged)
