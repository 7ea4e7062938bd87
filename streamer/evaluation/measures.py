"""Measures of a run against judgments: per topic, and their means.

Inferred AP and inferred NDCG are implemented here (:mod:`streamer.evaluation.infap`,
:mod:`streamer.evaluation.infndcg`), and so are the median rank (MdR) and the mean rank (MnR) of the best relevant
result. All others come from ir_measures, which treats unjudged shots as not relevant and does not use strata. All
measures use the same ranking, by :meth:`~streamer.evaluation.trec.Ranking.order`, and all but the ranks use its best
1000 results. ir_measures is given ranks, not scores: trec_eval would compare scores as float32, and other
implementations would break ties differently.
"""

from __future__ import annotations

import itertools
import math
import re
import statistics
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING

from streamer.evaluation.infap import DEPTH, InferredAP
from streamer.evaluation.infndcg import InferredNDCG
from streamer.evaluation.trec_rows import TrecError

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping, Sequence

    from streamer.evaluation.trec import Judgments, Qrels, Ranking, Run

INFERRED_AP = "infAP"
INFERRED_NDCG = "infNDCG"
MEDIAN_RANK = "MdR"
MEAN_RANK = "MnR"
RANKS = frozenset({MEDIAN_RANK, MEAN_RANK})
"""The measures of which less is better."""

_NAMES = MappingProxyType(
    {
        "infap": INFERRED_AP,
        "infndcg": INFERRED_NDCG,
        "mdr": MEDIAN_RANK,
        "medr": MEDIAN_RANK,
        "mnr": MEAN_RANK,
        "meanr": MEAN_RANK,
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

OWN = frozenset({INFERRED_AP, INFERRED_NDCG, *RANKS})
"""The measures that are not ir_measures'; they have no cutoff."""
_WITHOUT_CUTOFF = OWN | {"AP", "nDCG", "RR"}
MEASURES_HELP = (
    "infAP, AP, nDCG@k, P@k, R@k (recall), RR (MRR), Success@k (hit rate), infNDCG, MdR (median rank), MnR (mean rank)"
)


class MeasureError(Exception):
    """An unknown measure, or a library that is not installed; the message is one line."""


@dataclass(frozen=True, slots=True)
class Evaluation:
    """The measures of a run: ``topics[topic][measure]``, and the ``mean`` of each measure over these topics.

    MdR and MnR of a topic are the rank of its best relevant result, and the ``mean`` of MdR is their median.
    ``missing``: judged topics that are not in the run; ``not_judged``: the run's topics without judgments;
    ``not_found``: topics of both of whose relevant results the run has none.
    """

    topics: Mapping[str, Mapping[str, float]]
    mean: Mapping[str, float]
    missing: tuple[str, ...]
    not_judged: tuple[str, ...]
    not_found: tuple[str, ...] = ()


def measure_name(text: str) -> str:
    """Return a measure's canonical name (``RR`` for ``MRR``); raises :class:`MeasureError` if it is unknown."""
    match = re.fullmatch(r"([a-z]+)(?:@([1-9][0-9]{0,3}))?", text.strip().lower())
    name = _NAMES.get(match[1]) if match else None
    if match is None or name is None or not (match[2] or name in _WITHOUT_CUTOFF):
        raise MeasureError(f"unknown measure {text!r}; available: {MEASURES_HELP}")
    cutoff = match[2]
    if cutoff and (name in OWN or int(cutoff) > DEPTH):
        raise MeasureError(f"{text!r}: {', '.join(sorted(OWN))} have no cutoff; the largest of the others is {DEPTH}")
    return f"{name}@{cutoff}" if cutoff else name


def gain(measure: str, before: float, after: float) -> float:
    """Return what is gained from before to after: the difference, and in :data:`RANKS` the places gained."""
    return before - after if measure in RANKS else after - before


def last_place(runs: Iterable[Run], qrels: Qrels) -> int:
    """Return the rank of what runs do not list, the same for all of them.

    It is that after their longest list, or the number of the videos that the qrels know, if that is larger.
    """
    known = qrels.gallery or len({shot for each in qrels.topics.values() for shot in each.shots})
    return max(known, 1 + max((len(each.shots) for run in runs for each in run.topics.values()), default=0))


def evaluate(
    run: Run,
    qrels: Qrels,
    measures: Sequence[str] = (INFERRED_AP,),
    *,
    missing_as_zero: bool = False,
    last: int | None = None,
) -> Evaluation:
    """Compute ``measures`` for the topics that run and qrels have in common.

    A judged topic that is not in the run is left out of the mean, as NIST does, or with ``missing_as_zero`` counts as
    0. The rank of a relevant result that the run does not list is ``last``, by default the run's :func:`last_place`;
    with ``missing_as_zero`` also that of a topic that it lacks. Raises :class:`TrecError` if no topic is in both, and
    :class:`MeasureError`.
    """
    names = list(dict.fromkeys(measure_name(each) for each in measures))
    common = [topic for topic in qrels.topics if topic in run.topics]
    if not common:
        raise TrecError(_nothing_in_common(run.topics, qrels.topics))
    rankings = {topic: run.topics[topic].ranked() for topic in common}
    last = last_place([run], qrels) if last is None else last
    values: dict[str, dict[str, float]] = {
        topic: {name: float(last) if name in RANKS else 0.0 for name in names}
        for topic in qrels.topics
        if missing_as_zero or topic in rankings
    }
    not_found = []
    for topic, ranking in rankings.items():
        judgments = qrels.topics[topic]
        if INFERRED_AP in names:
            measure = InferredAP(judgments)
            values[topic][INFERRED_AP] = measure.of_codes(measure.codes(ranking.shots[:DEPTH]))
        if INFERRED_NDCG in names:
            values[topic][INFERRED_NDCG] = InferredNDCG(judgments).of(ranking.shots)
        relevant = set(itertools.compress(judgments.shots, (judgments.rels > 0).tolist()))
        rank = next((rank for rank, shot in enumerate(ranking.shots, start=1) if shot in relevant), None)
        if rank is None:
            not_found.append(topic)
        values[topic].update(dict.fromkeys(RANKS.intersection(names), float(rank or last)))
    if others := [name for name in names if name not in OWN]:
        _by_library(others, rankings, qrels.topics, values)
    return Evaluation(
        topics=values,
        mean={name: _mean(name, [each[name] for each in values.values()]) for name in names},
        missing=tuple(topic for topic in qrels.topics if topic not in run.topics),
        not_judged=tuple(topic for topic in run.topics if topic not in qrels.topics),
        not_found=tuple(not_found),
    )


def _mean(measure: str, values: Sequence[float]) -> float:
    return float(statistics.median(values)) if measure == MEDIAN_RANK else math.fsum(values) / len(values)


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
    # Results after the largest cutoff change nothing.
    cutoffs = [int(cutoff) for name in names if (cutoff := name.partition("@")[2])]
    depth = max(cutoffs) if len(cutoffs) == len(names) else DEPTH
    ranks = {
        topic: {shot: -float(rank) for rank, shot in enumerate(ranking.shots[:depth])}
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
