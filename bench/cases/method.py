"""What other ways of scoring gain on synthetic engines; writes docs/bench/method.json, for docs/evaluation.md.

    make method

For each seed, clips and topics are drawn as by ``streamer benchmark``, and its engines A (weakest) to E (strongest)
search them. Every clip's relevance is known, so inferred AP is AP. All ways are measured with the service's defaults
otherwise, at the default depth and over whole lists, and are compared topic by topic with the default way:

- candidates without a record whose frame score is imputed, against their own score alone, if a share of all clips has
  no record. A topic's value is the mean over several random choices of these clips.
- softmax pooling at several temperatures, against max, with all records.

A cell is one engine of one seed. The p-values (paired randomization tests) are corrected for all cells of a parameter
(Bonferroni).
"""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from bench.cases.held_out import correct
from bench.cases.method_tables import tables
from bench.harness.machine import about
from streamer.encoders import DEMO, load_encoder
from streamer.evaluation.comparison import compare
from streamer.evaluation.infap import InferredAP
from streamer.evaluation.measures import INFERRED_AP, Evaluation
from streamer.evaluation.sweep import Grid, TopicSweep
from streamer.evaluation.trec import Judgments
from streamer.method import score_clips
from streamer.pooling import MAX
from streamer.settings import load
from streamer.synthetic import avs
from streamer.synthetic.clips import DemoClip, DemoScene
from streamer.synthetic.render import SceneRenderer
from streamer.synthetic.scenes import describe, draw_scene
from streamer.synthetic.weaker_view import WeakerView
from streamer.vectors import ClipList

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    import numpy.typing as npt

    from streamer.encoders import Encoder
    from streamer.evaluation.trec import Run
    from streamer.synthetic.clips import DemoQuery

    FloatArray = npt.NDArray[np.float64]

OUT = Path(__file__).parents[2] / "docs" / "bench" / "method.json"
CLIPS, TOPICS, SEEDS = 400, 100, (11, 12)
WITHOUT_RECORD = (0.1, 0.2, 0.3)
"""The shares of clips without a record, and ..."""
DRAWS = 5
"""... the number of random choices of these clips."""
TEMPERATURES = (0.05, 0.1, 0.2)
WHOLE_LIST = 1000
SCENES, SCENE_STEPS = (4, 8), (2, 6)
"""The scenes of a clip, and the sampled frames of a scene, as half-open ranges: about those of the demo's clips."""
STEP_MS, WHOLE_STEPS = 500, 4
"""Milliseconds between sampled frames; the engine sees every fourth one."""


@dataclass(frozen=True)
class World:
    """One seed's topics, the runs of the engines by name, and by pooling and topic the frame scores of all clips."""

    topics: Sequence[DemoQuery]
    runs: Mapping[str, Run]
    clip_ids: Sequence[str]
    frame: Mapping[str, Mapping[str, FloatArray]]


def build(*, clips: int, topics: int, seed: int) -> World:
    """Draw clips and topics, and let the engines search."""
    encoder = load_encoder(DEMO, dtype="float32")
    drawn = [draw(seed, number, encoder) for number in range(clips)]
    return search(drawn, encoder, topics=topics, seed=seed)


def search(drawn: Sequence[Drawn], encoder: Encoder, *, topics: int, seed: int) -> World:
    """Draw topics for drawn clips, and let the engines search."""
    asked = avs.draw_topics([clip for clip, _, _ in drawn], count=topics, seed=seed)
    ids = [clip.clip_id for clip, _, _ in drawn]
    stored = ClipList(vectors for _, vectors, _ in drawn)
    wholes = np.array([whole for _, _, whole in drawn])
    poolings = [MAX, *map(_softmax, TEMPERATURES)]
    frame: dict[str, dict[str, FloatArray]] = {pooling: {} for pooling in poolings}
    answers = {}
    for topic in asked:
        query = encoder.encode_texts([topic.text])[0]
        for pooling in poolings:
            frame[pooling][topic.query_id] = score_clips(query, stored, pooling).cosines
        answers[topic.query_id] = list(zip(ids, (wholes @ query).astype(float).tolist(), strict=True))
    return World(asked, avs.base_runs(answers, asked, seed=seed), ids, frame)


class _Vectors(NamedTuple):
    """A clip's frames, as stored by default."""

    matrix: npt.NDArray[np.float16]
    scales: None
    times_ms: npt.NDArray[np.uint32]


class Drawn(NamedTuple):
    """A clip, its frames' vectors, and the whole clip's vector (d,) of the stand-in engine."""

    clip: DemoClip
    vectors: _Vectors
    whole: npt.NDArray[np.float32]


def draw(seed: int, number: int, encoder: Encoder) -> Drawn:
    """Draw a clip.

    Only the sampled frames are rendered, and none is compressed: that would take ten times as long.
    """
    rng = np.random.default_rng([seed, number])
    weaker = WeakerView(encoder.prepare)
    scenes: list[DemoScene] = []
    frames, views = [], []
    start = 0
    for length in rng.integers(*SCENE_STEPS, size=rng.integers(*SCENES)).tolist():
        scene = draw_scene(rng)
        renderer = SceneRenderer(scene, rng)
        for step in range(length):
            frame = renderer.frame(step * STEP_MS / 1000)
            if (start + step) % WHOLE_STEPS == 0:
                views.append(weaker(frame))
            frames.append(encoder.prepare(frame))
        scenes.append(DemoScene(start * STEP_MS, (start + length) * STEP_MS, scene, describe(scene, rng)))
        start += length
    vectors = encoder.encode_images([*frames, *views])[:, 0]
    mean = vectors[len(frames) :].mean(axis=0)
    times = np.arange(len(frames), dtype=np.uint32) * np.uint32(STEP_MS)
    clip = DemoClip(f"clip-{number:04d}", Path(), tuple(scenes))
    whole: npt.NDArray[np.float32] = mean / np.linalg.norm(mean)
    return Drawn(clip, _Vectors(vectors[: len(frames)].astype(np.float16), None, times), whole)


def measure(worlds: Mapping[int, World]) -> dict[str, Any]:
    """Compare all ways in all worlds, by seed."""
    method = load({}).method
    depths = (method.depth, WHOLE_LIST)
    grids = {
        "missing": Grid((method.alpha,), depths, (method.normalization,), ("own", "impute")),
        "pooling": Grid((method.alpha,), depths, (method.normalization,), poolings=(MAX, *map(_softmax, TEMPERATURES))),
    }
    rows: list[dict[str, Any]] = []
    for seed, world in worlds.items():
        for engine, run in world.runs.items():
            asked = asked_of(world, run)
            for share in WITHOUT_RECORD:
                rng = np.random.default_rng([seed, round(100 * share)])
                count = round(share * len(world.clip_ids))
                gone = [rng.permutation(len(world.clip_ids))[:count] for _ in range(DRAWS)]
                values = np.mean([values_of(world, asked, grids["missing"], lost) for lost in gone], axis=0)
                rows += cells_of("missing", grids["missing"], values, engine=engine, seed=seed, share=share)
            values = values_of(world, asked, grids["pooling"])
            rows += cells_of("pooling", grids["pooling"], values, engine=engine, seed=seed)
    for parameter in grids:
        correct([row for row in rows if row["parameter"] == parameter])
    return {
        "clips": {str(seed): len(world.clip_ids) for seed, world in worlds.items()},
        "topics": {str(seed): len(world.topics) for seed, world in worlds.items()},
        "draws": DRAWS,
        "alpha": method.alpha,
        "normalization": method.normalization,
        "cells": rows,
    }


def _softmax(temperature: float) -> str:
    return f"softmax:{temperature:g}"


class Asked(NamedTuple):
    """One topic of an engine: its candidates' numbers (n,) in the engine's order, and what measures their orders."""

    topic: str
    numbers: npt.NDArray[np.intp]
    sweep: TopicSweep


def asked_of(world: World, run: Run) -> list[Asked]:
    """Prepare an engine's topics for :func:`values_of`."""
    number_of = {clip_id: number for number, clip_id in enumerate(world.clip_ids)}
    found = []
    for topic in world.topics:
        ranking = run.topics[topic.query_id].ranked()
        rels = [int(shot in topic.relevant) for shot in ranking.shots]
        measure = InferredAP(Judgments.of(list(ranking.shots), ["1"] * len(rels), rels))
        numbers = np.array([number_of[shot] for shot in ranking.shots])
        swept = TopicSweep(measure, measure.codes(ranking.shots), ranking.scores)
        found.append(Asked(topic.query_id, numbers, swept))
    return found


def values_of(world: World, asked: Sequence[Asked], grid: Grid, lost: npt.NDArray[np.intp] | None = None) -> FloatArray:
    """Return AP (t, p) of each topic at each point, if the clips with the numbers ``lost`` have no record."""
    kept = np.ones(len(world.clip_ids), np.bool_)
    if lost is not None:
        kept[lost] = False
    found = np.empty((len(asked), len(grid)))
    for row, (topic, numbers, swept) in enumerate(asked):
        frame = {pooling: np.where(kept, world.frame[pooling][topic], np.nan)[numbers] for pooling in grid.poolings}
        found[row] = swept.values(frame, grid)[0]
    return found


def cells_of(parameter: str, grid: Grid, values: FloatArray, **cell: Any) -> Iterable[dict[str, Any]]:
    """Compare each point with the one of its depth that has the parameter's first value."""
    points = list(grid.points())
    for number, point in enumerate(points):
        first = next(each for each, other in enumerate(points) if other.depth == point.depth)
        if number == first:
            continue
        compared = compare(*(_evaluation(values[:, each]) for each in (first, number)))[INFERRED_AP]
        yield {
            "parameter": parameter,
            **cell,
            "value": getattr(point, parameter),
            "than": getattr(points[first], parameter),
            "depth": point.depth,
            "before": compared.before,
            "gain": compared.gain,
            "low": compared.gain_low,
            "high": compared.gain_high,
            "wins": compared.wins,
            "losses": compared.losses,
            "p": compared.randomization_p,
        }


def _evaluation(values: FloatArray) -> Evaluation:
    topics = {str(number): {INFERRED_AP: value} for number, value in enumerate(values.tolist())}
    return Evaluation(topics, {INFERRED_AP: float(values.mean())}, (), ())


def main() -> None:
    """Measure, write the figures, and print the tables."""
    worlds = {seed: build(clips=CLIPS, topics=TOPICS, seed=seed) for seed in SEEDS}
    OUT.write_text(json.dumps({**about(), "figures": measure(worlds)}, indent=1) + "\n", encoding="utf-8")
    written = "\n".join(write() for write in tables(OUT).values())
    sys.stdout.write(f"{written}\n{OUT}\n")


if __name__ == "__main__":
    main()
