"""A sweep over all topics of a run: one model at a time, whose texts and stored records are read once."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from streamer.evaluation.infap import InferredAP
from streamer.evaluation.measures import INFERRED_AP, evaluate
from streamer.evaluation.questions import ReplayError
from streamer.evaluation.rank_measures import RankMeasure
from streamer.evaluation.replay import TextVectors
from streamer.evaluation.sweep import TopicSweep
from streamer.evaluation.trec import Run
from streamer.evaluation.variants import Cost, Costs, Variant, frame_scores

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from streamer.encoders import Encoder
    from streamer.evaluation.sweep import Grid
    from streamer.evaluation.trec import Qrels
    from streamer.method import Method
    from streamer.scoring import FloatArray
    from streamer.store import Store

MAX_VALUES = 50_000_000
"""Most values (topics x points) of a sweep: 400 MB of memory."""


@dataclass(frozen=True, slots=True)
class Model:
    """One model of a sweep: its name, its text encoder, and the store with its records."""

    name: str
    encoder: Encoder
    store: Store


class Column(NamedTuple):
    """One combination of settings.

    ``ms``: milliseconds per query for encoding its text, reading and scoring its candidates; measured for the stored
    variant, with the reading time of other variants proportional to their bytes. ``bytes_a_clip`` and
    ``frames_a_clip``: means over the embedded candidates.
    """

    model: str
    variant: Variant
    method: Method
    ms: float
    bytes_a_clip: float
    frames_a_clip: float


@dataclass(frozen=True, slots=True)
class Sweep:
    """``values`` (m, t, c): each of ``measures`` for each of ``topics`` with each column's settings.

    ``base`` (m, t): those of the run.
    """

    measures: tuple[str, ...]
    topics: tuple[str, ...]
    base: FloatArray
    columns: tuple[Column, ...]
    values: FloatArray

    def gains(self, measure: int) -> FloatArray:
        """Return the gains (t, c) in one measure, by its position."""
        found: FloatArray = self.values[measure] - self.base[measure][:, None]
        return found


@dataclass(frozen=True, slots=True)
class _Topic:
    """A topic's text, and its results best first with their judgments."""

    text: str
    shots: tuple[str, ...]
    sweep: TopicSweep


def sweep(
    run: Run,
    topics: Mapping[str, str],
    qrels: Qrels,
    models: Iterable[Model],
    variants: Sequence[Variant],
    grid: Grid,
    measures: Sequence[str] = (INFERRED_AP,),
) -> Sweep:
    """Measure every combination by ``measures`` (canonical names); ``models`` are consumed one at a time.

    Memory holds the frame scores of one topic at a time, and only the values of each combination. Raises
    :class:`ReplayError` and :class:`~streamer.store.StoreUnavailableError`.
    """
    common = [topic for topic in run.topics if topic in qrels.topics]
    if not common:
        raise ReplayError("no topic is in both the run and the qrels")
    if missing := next((topic for topic in common if topic not in topics), None):
        raise ReplayError(f"topic {missing} of the run has no text among the {len(topics)} topics")
    columns: list[Column] = []
    values: list[FloatArray] = []
    others = [measure for measure in measures if measure != INFERRED_AP]
    rows = [0 if measure == INFERRED_AP else 1 + others.index(measure) for measure in measures]
    for model in models:
        if len(measures) * len(common) * (len(columns) + len(variants) * len(grid)) > MAX_VALUES:
            raise ReplayError(f"{len(common)} topics at this many points and measures exceed {MAX_VALUES:,} values")
        costs = Costs()
        text_s = 0.0
        sizes = []
        texts = TextVectors(model.encoder)
        found = np.empty((len(measures), len(common), len(variants) * len(grid)))
        for number, topic in enumerate(_prepared(run, topics, qrels, common, others)):
            began = time.perf_counter()
            query = texts.of(topic.text)
            text_s += time.perf_counter() - began
            shots = topic.shots[: max(grid.depths)]
            try:
                frame = frame_scores(model.store, shots, query, variants, costs, grid.poolings)
            except ValueError as error:
                raise ReplayError(str(error)) from None
            measured = [topic.sweep.values(frame[each], grid)[rows] for each in variants]
            found[:, number] = np.concatenate(measured, axis=1)
            sizes.append(len(topic.shots))
        if not costs.scored:
            raise ReplayError(f"none of the candidates is embedded by {model.name}; see streamer store stats")
        values.append(found)
        columns += _columns(model.name, variants, grid, costs, 1000 * text_s / len(common), np.array(sizes))
    of_run = evaluate(Run({topic: run.topics[topic] for topic in common}, run.tag), qrels, measures).topics
    base = np.array([[of_run[topic][measure] for topic in common] for measure in measures])
    return Sweep(tuple(measures), tuple(common), base, tuple(columns), np.concatenate(values, axis=2))


def _prepared(
    run: Run, topics: Mapping[str, str], qrels: Qrels, common: Sequence[str], others: Sequence[str]
) -> Iterator[_Topic]:
    for topic in common:
        best = run.topics[topic].ranked()
        judgments = qrels.topics[topic]
        measure = InferredAP(judgments)
        by_ranks = [RankMeasure(name, judgments) for name in others]
        grade_of = dict(zip(judgments.shots, judgments.rels.tolist(), strict=True))
        grades = np.array([grade_of.get(shot, 0) for shot in best.shots], float)
        yield _Topic(
            topics[topic], best.shots, TopicSweep(measure, measure.codes(best.shots), best.scores, by_ranks, grades)
        )


def _columns(
    name: str, variants: Sequence[Variant], grid: Grid, costs: Costs, text_ms: float, sizes: FloatArray
) -> Iterator[Column]:
    stored = costs.of.get(Variant(), Cost())
    for variant in variants:
        cost = costs.of.get(variant, Cost())
        seconds = dict(costs.read_s)
        if not variant.is_stored and stored.bytes:
            for pooling, read_s in costs.read_s.items():
                reading = max(0.0, read_s - stored.seconds[pooling])
                seconds[pooling] = cost.seconds[pooling] + reading * cost.bytes / stored.bytes
        of_bytes, of_frames = cost.bytes / max(1, cost.clips), cost.frames / max(1, cost.clips)
        for method in grid.points():
            candidate_ms = 1000 * seconds[method.pooling] / max(1, costs.candidates)
            ms = text_ms + candidate_ms * float(np.minimum(sizes, method.depth).mean())
            yield Column(name, variant, method, ms, of_bytes, of_frames)
