"""Measures of a run against judgments: per topic, and their means.

Inferred AP is implemented here (:mod:`streamer.evaluation.infap`). All others come from ir_measures, which treats
unjudged shots as not relevant and does not use strata. All measures use the same ranking, the best 1000 results by
:meth:`~streamer.evaluation.trec.Ranking.order`. ir_measures is given ranks, not scores: trec_eval would compare scores
as float32, and other implementations would break ties differently.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING

from streamer.evaluation.infap import DEPTH, InferredAP
from streamer.evaluation.trec_rows import TrecError

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

    from streamer.evaluation.trec import Judgments, Qrels, Ranking, Run

INFERRED_AP = "infAP"

_NAMES = MappingProxyType(
    {
        "infap": INFERRED_AP,
        "ap": "AP",
        "map": "AP",
        "ndcg": "nDCG",
        "p": "P",
        "precision": "P",
        "r": "R",
        "recall": "R",
        "rr": "RR",
        "mrr": "RR",
        "success": "Success",
        "hit": "Success",
    }
)
"""The names of measures, and ir_measures' name for each."""

_WITHOUT_CUTOFF, _WITH_CUTOFF = frozenset({INFERRED_AP, "AP", "nDCG", "RR"}), frozenset({"P", "R", "Success"})
MEASURES_HELP = "infAP, AP, nDCG@k, P@k, R@k (recall), RR (MRR), Success@k (hit rate)"


class MeasureError(Exception):
    """An unknown measure, or a library that is not installed; the message is one line."""


@dataclass(frozen=True, slots=True)
class Evaluation:
    """The measures of a run: ``topics[topic][measure]``, and the ``mean`` of each measure over these topics.

    ``missing``: judged topics that are not in the run; ``not_judged``: the run's topics without judgments.
    """

    topics: Mapping[str, Mapping[str, float]]
    mean: Mapping[str, float]
    missing: tuple[str, ...]
    not_judged: tuple[str, ...]


def measure_name(text: str) -> str:
    """Return a measure's canonical name (``RR`` for ``MRR``); raises :class:`MeasureError` if it is unknown."""
    match = re.fullmatch(r"([a-z]+)(?:@([1-9][0-9]{0,3}))?", text.strip().lower())
    name = _NAMES.get(match[1]) if match else None
    if match is None or name is None or not (match[2] or name in _WITHOUT_CUTOFF):
        raise MeasureError(f"unknown measure {text!r}; available: {MEASURES_HELP}")
    cutoff = match[2]
    if cutoff and (name == INFERRED_AP or int(cutoff) > DEPTH):
        raise MeasureError(f"{text!r}: infAP has no cutoff, and the largest cutoff of the others is {DEPTH}")
    return f"{name}@{cutoff}" if cutoff else name


def evaluate(
    run: Run, qrels: Qrels, measures: Sequence[str] = (INFERRED_AP,), *, missing_as_zero: bool = False
) -> Evaluation:
    """Compute ``measures`` for the topics that run and qrels have in common.

    A judged topic that is not in the run is left out of the mean, as NIST does, or with ``missing_as_zero`` counts as
    0. Raises :class:`TrecError` if no topic is in both, and :class:`MeasureError`.
    """
    names = list(dict.fromkeys(measure_name(each) for each in measures))
    common = [topic for topic in qrels.topics if topic in run.topics]
    if not common:
        raise TrecError(_nothing_in_common(run.topics, qrels.topics))
    rankings = {topic: run.topics[topic].ranked() for topic in common}
    values: dict[str, dict[str, float]] = {
        topic: dict.fromkeys(names, 0.0) for topic in qrels.topics if missing_as_zero or topic in rankings
    }
    if INFERRED_AP in names:
        for topic, ranking in rankings.items():
            measure = InferredAP(qrels.topics[topic])
            values[topic][INFERRED_AP] = measure.of_codes(measure.codes(ranking.shots[:DEPTH]))
    if others := [name for name in names if name != INFERRED_AP]:
        _by_library(others, rankings, qrels.topics, values)
    return Evaluation(
        topics=values,
        mean={name: math.fsum(each[name] for each in values.values()) / len(values) for name in names},
        missing=tuple(topic for topic in qrels.topics if topic not in run.topics),
        not_judged=tuple(topic for topic in run.topics if topic not in qrels.topics),
    )


def _by_library(
    names: Sequence[str],
    rankings: Mapping[str, Ranking],
    judgments: Mapping[str, Judgments],
    values: Mapping[str, dict[str, float]],
) -> None:
    """Write the measures of ir_measures to ``values[topic][name]``."""
    try:
        import ir_measures  # noqa: PLC0415 - an optional extra
    except ImportError as error:
        raise missing_extra(error) from None
    qrels = {
        topic: {
            shot: rel
            for shot, rel in zip(judgments[topic].shots, judgments[topic].rels.tolist(), strict=True)
            if rel >= 0
        }
        for topic in rankings
    }
    ranks = {
        topic: {shot: -float(rank) for rank, shot in enumerate(ranking.shots[:DEPTH])}
        for topic, ranking in rankings.items()
    }
    wanted = {ir_measures.parse_measure(name): name for name in names}
    for metric in ir_measures.iter_calc(list(wanted), qrels, ranks):
        values[metric.query_id][wanted[metric.measure]] = float(metric.value)


def missing_extra(error: ImportError) -> MeasureError:
    """Make the error that says how to install the libraries for measures other than inferred AP."""
    return MeasureError(f'this needs the package {error.name}: pip install "cliprerank-streamer[evaluation]"')


def _nothing_in_common(run: Collection[str], qrels: Collection[str]) -> str:
    first = {name: next(iter(topics)) for name, topics in (("the run", run), ("the qrels", qrels))}
    shown = ", ".join(f"{topic!r} of {name}" for name, topic in first.items())
    return f"expected topics that are in the run and in the qrels, found none (the first are {shown})"
