"""A sweep over all topics of a run: one model at a time, whose texts and stored records are read once."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from streamer.evaluation.infap import InferredAP
from streamer.evaluation.questions import ReplayError
from streamer.evaluation.replay import TextVectors
from streamer.evaluation.sweep import TopicSweep
from streamer.evaluation.variants import Cost, Costs, Variant, cosines_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from streamer.encoders import Encoder
    from streamer.evaluation.sweep import Grid
    from streamer.evaluation.trec import Qrels, Run
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
    """``values`` (t, c): inferred AP of each of ``topics`` with each column's settings; ``base`` (t,): of the run."""

    topics: tuple[str, ...]
    base: FloatArray
    columns: tuple[Column, ...]
    values: FloatArray


@dataclass(frozen=True, slots=True)
class _Topic:
    """A topic's text, and its results best first with their judgments."""

    text: str
    shots: tuple[str, ...]
    sweep: TopicSweep
    base: float


def sweep(
    run: Run, topics: Mapping[str, str], qrels: Qrels, models: Iterable[Model], variants: Sequence[Variant], grid: Grid
) -> Sweep:
    """Measure every combination; ``models`` are consumed one at a time.

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
    base: list[float] = []
    for model in models:
        if len(common) * (len(columns) + len(variants) * len(grid)) > MAX_VALUES:
            raise ReplayError(f"{len(common)} topics at this many points exceed {MAX_VALUES:,} values")
        costs = Costs()
        text_s = 0.0
        sizes = []
        texts = TextVectors(model.encoder)
        found = np.empty((len(common), len(variants) * len(grid)))
        base = []
        for number, topic in enumerate(_prepared(run, topics, qrels, common)):
            began = time.perf_counter()
            query = texts.of(topic.text)
            text_s += time.perf_counter() - began
            shots = topic.shots[: max(grid.depths)]
            try:
                cosines = cosines_of(model.store, shots, query, variants, costs)
            except ValueError as error:
                raise ReplayError(str(error)) from None
            found[number] = np.concatenate([topic.sweep.values(cosines[each], grid) for each in variants])
            sizes.append(len(topic.shots))
            base.append(topic.base)
        if not costs.scored:
            raise ReplayError(f"none of the candidates is embedded by {model.name}; see streamer store stats")
        values.append(found)
        columns += _columns(model.name, variants, grid, costs, 1000 * text_s / len(common), np.array(sizes))
    return Sweep(tuple(common), np.array(base), tuple(columns), np.hstack(values))


def _prepared(run: Run, topics: Mapping[str, str], qrels: Qrels, common: Sequence[str]) -> Iterator[_Topic]:
    for topic in common:
        best = run.topics[topic].ranked()
        measure = InferredAP(qrels.topics[topic])
        codes = measure.codes(best.shots)
        yield _Topic(topics[topic], best.shots, TopicSweep(measure, codes, best.scores), measure.of_codes(codes))


def _columns(
    name: str, variants: Sequence[Variant], grid: Grid, costs: Costs, text_ms: float, sizes: FloatArray
) -> Iterator[Column]:
    stored = costs.of.get(Variant(), Cost())
    for variant in variants:
        cost = costs.of.get(variant, Cost())
        seconds = costs.read_s
        if not variant.is_stored and stored.bytes:
            reading = max(0.0, costs.read_s - stored.seconds)
            seconds = cost.seconds + reading * cost.bytes / stored.bytes
        of_bytes, of_frames = cost.bytes / max(1, cost.clips), cost.frames / max(1, cost.clips)
        candidate_ms = 1000 * seconds / max(1, costs.candidates)
        for method in grid.points():
            ms = text_ms + candidate_ms * float(np.minimum(sizes, method.depth).mean())
            yield Column(name, variant, method, ms, of_bytes, of_frames)
