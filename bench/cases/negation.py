"""What the negation rule gains and loses in retrieval; writes docs/bench/negation.json, for docs/evaluation.md.

    make method

Clips and engines are those of :mod:`bench.cases.method`. A topic asks for an object of one colour without another
object, such as "a red car without a ball". A clip is relevant if one of its scenes shows the first without the second.
There are two sets of topics:

- contested: some clips show the first object beside the second one only, and are not relevant.
- vacuous: the second object is never beside the first one, so that the negation excludes nothing.

The engine reads the query as it is. The frames' scores are those of the query as it is, of the rest alone ("a red
car"), and of the rest minus the negated part at several weights. Each is compared topic by topic with the query as it
is. The p-values (paired randomization tests) are corrected for all cells (Bonferroni).

The module also runs the probes of ``streamer probe`` with the demonstration model; their figures go to the same file.
"""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from bench.cases import method
from bench.cases.held_out import correct
from bench.cases.method_tables import negation_tables
from bench.harness.machine import about
from streamer.encoders import DEMO, load_encoder
from streamer.evaluation.negation import split
from streamer.evaluation.sweep import Grid
from streamer.settings import load
from streamer.synthetic import avs, probe_report, probes
from streamer.synthetic.clips import DemoQuery
from streamer.synthetic.scenes import OBJECTS, Item, Scene, noun_phrase

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from streamer.encoders import Encoder
    from streamer.synthetic.clips import DemoClip

OUT = Path(__file__).parents[2] / "docs" / "bench" / "negation.json"
CLIPS, TOPICS, SEEDS, PAIRS = 400, 100, (11, 12), 200
AS_IT_IS, REST = "as it is", "the rest alone"
WEIGHTS = (0.25, 0.5, 1.0)
SETS = ("contested", "vacuous")
_TOPIC_STREAM = 6
_TRIES_PER_TOPIC = 200


def draw_topics(clips: Sequence[DemoClip], which: str, *, count: int, seed: int) -> list[DemoQuery]:
    """Draw at most ``count`` different topics of a set, each with a relevant clip, with the truth of all clips."""
    rng = np.random.default_rng([seed, _TOPIC_STREAM, SETS.index(which)])
    chosen: dict[tuple[Item, str], DemoQuery] = {}
    for _ in range(_TRIES_PER_TOPIC * count):
        clip = clips[int(rng.integers(len(clips)))]
        items = clip.scenes[int(rng.integers(len(clip.scenes)))].scene.items
        wanted = replace(items[0], size=None)
        without = items[-1].object if which == "contested" else str(rng.choice(list(OBJECTS)))
        relevant, excluded = judge(clips, wanted, without)
        fits = bool(excluded) == (which == "contested") and without != wanted.object
        if fits and relevant and (wanted, without) not in chosen:
            negated = noun_phrase(Item(without, None), rng)
            text = f"{noun_phrase(wanted, rng)} without {negated}"
            moments: dict[str, tuple[tuple[int, int], ...]] = dict.fromkeys(relevant, ())
            chosen[wanted, without] = DemoQuery(f"{which}-{len(chosen)}", text, Scene((wanted,), None), moments)
            if len(chosen) == count:
                break
    return list(chosen.values())


def judge(clips: Sequence[DemoClip], wanted: Item, without: str) -> tuple[list[str], list[str]]:
    """Return the ids of the clips that show ``wanted`` without the object ``without``, and beside it only."""
    relevant: list[str] = []
    excluded: list[str] = []
    for clip in clips:
        beside = [
            any(item.object == without for item in each.scene.items)
            for each in clip.scenes
            if any(replace(item, size=None) == wanted for item in each.scene.items)
        ]
        if beside:
            (excluded if all(beside) else relevant).append(clip.clip_id)
    return relevant, excluded


def worlds_of(
    drawn: Sequence[tuple[DemoClip, Any, Any]], encoder: Encoder, *, topics: int, seed: int
) -> dict[str, method.World]:
    """Let the engines search for each set of topics; the frames are scored in each way."""
    clips = [clip for clip, _, _ in drawn]
    ids = [clip.clip_id for clip in clips]
    stored = np.concatenate([vectors.matrix for _, vectors, _ in drawn]).astype(np.float64)
    starts = np.cumsum([0, *(len(vectors.matrix) for _, vectors, _ in drawn[:-1])])
    wholes = np.array([whole for _, _, whole in drawn])
    found = {}
    for which in SETS:
        asked = draw_topics(clips, which, count=topics, seed=seed)
        frame: dict[str, dict[str, Any]] = {way: {} for way in ways()}
        answers = {}
        for topic in asked:
            negated = split(topic.text)
            if negated is None:
                raise ValueError(f"no negation is found in {topic.text!r}")
            texts = probes.Texts(encoder, [topic.text, *negated])
            vectors = {AS_IT_IS: texts[topic.text], REST: texts[negated.rest]}
            vectors |= {_minus(weight): texts.ruled(negated, weight) for weight in WEIGHTS}
            for way, vector in vectors.items():
                frame[way][topic.query_id] = np.maximum.reduceat(stored @ vector.astype(np.float64), starts)
            answers[topic.query_id] = list(zip(ids, (wholes @ texts[topic.text]).astype(float).tolist(), strict=True))
        found[which] = method.World(asked, avs.base_runs(answers, asked, seed=seed), ids, frame)
    return found


def ways() -> tuple[str, ...]:
    """Return the ways of scoring, the one that the others are compared with first."""
    return AS_IT_IS, REST, *map(_minus, WEIGHTS)


def _minus(weight: float) -> str:
    return f"minus {weight:g}"


def measure(worlds: Mapping[int, Mapping[str, method.World]]) -> dict[str, Any]:
    """Compare all ways in all worlds, by seed and set of topics."""
    usual = load({}).method
    grid = Grid((usual.alpha,), (method.WHOLE_LIST,), (usual.normalization,), poolings=ways())
    rows: list[dict[str, Any]] = []
    for seed, sets in worlds.items():
        for which, world in sets.items():
            for engine, run in world.runs.items():
                values = method.values_of(world, method.asked_of(world, run), grid)
                cells = method.cells_of("pooling", grid, values, engine=engine, seed=seed, topics=which)
                rows += [cell | {"parameter": "negation", "value": f"{which}: {cell['value']}"} for cell in cells]
    correct(rows)
    return {
        "clips": {str(seed): len(sets[SETS[0]].clip_ids) for seed, sets in worlds.items()},
        "topics": {str(seed): min(len(world.topics) for world in sets.values()) for seed, sets in worlds.items()},
        "alpha": usual.alpha,
        "normalization": usual.normalization,
        "cells": rows,
    }


def main() -> None:
    """Measure, write the figures, and print the tables."""
    encoder = load_encoder(DEMO, dtype="float32")
    scored = probes.score(encoder, probes.pairs(SEEDS[0], PAIRS))
    probed = probe_report.data(scored, model_id=encoder.model_id, seed=SEEDS[0], weight=probes.WEIGHT)
    worlds = {}
    for seed in SEEDS:
        drawn = [method.draw(seed, number, encoder) for number in range(CLIPS)]
        worlds[seed] = worlds_of(drawn, encoder, topics=TOPICS, seed=seed)
    results = {**about(), "figures": measure(worlds), "probes": probed}
    OUT.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    written = "\n".join(write() for write in negation_tables(OUT).values())
    sys.stdout.write(f"{written}\n{OUT}\n")


if __name__ == "__main__":
    main()
