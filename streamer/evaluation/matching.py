"""Draws the bank of :mod:`streamer.match` from a store, and calibrates it by judgments.

A judged list has a percentile and an outcome: whether the candidate with the best frame score is relevant. The
calibration is the isotonic regression of outcomes on percentiles, centered: each level of the regression stands at the
mean percentile of its lists, with straight lines between them (Oron, Flournoy, *Centered isotonic regression*,
Statistics in Biopharmaceutical Research 2017). Outcomes are not 1 and 0 but (r + 1) / (r + 2) and 1 / (i + 2) for r
relevant and i irrelevant ones, so that few lists never give certainty (Platt, *Probabilistic outputs for support vector
machines*, 1999). Its reliability is measured on lists of folds that it was not fitted to.
"""

from __future__ import annotations

import heapq
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from xxhash import xxh3_64_intdigest

from streamer.evaluation.measures import missing_extra
from streamer.match import Bank, BankError, Calibration
from streamer.match.bank import LEAST_CLIPS
from streamer.match.bank_file import MAX_VECTORS

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    import numpy.typing as npt

    from streamer.evaluation.trec import Judgments, Qrels
    from streamer.events import QueryReranked, RerankedCandidate
    from streamer.scoring import FloatArray
    from streamer.store import Embedding, Store

    BoolArray = npt.NDArray[np.bool_]

LEAST_LISTS = 20
"""The fewest judged lists to calibrate by ..."""
LEAST_OF_EACH = 5
"""... and the fewest of each outcome."""
BINS = 10
"""Number of bins of the same width in which a probability's reliability is measured."""
CONFIDENCE = 0.95
_AT_ONCE = 100
"""Number of clips that are read at once."""


def draw_bank(store: Store, model_id: str, *, clips: int, seed: int) -> Bank:
    """Draw at most ``clips`` clips at random, the same for the same seed and store; the bank has no version yet.

    A clip's place in the draw is the hash of its id, so that it depends on no order and few ids are in memory. The draw
    ends early where the next clip would exceed the most vectors of a bank. Raises
    :class:`~streamer.store.StoreUnavailableError`, and :class:`BankError` if the store has too few clips.
    """
    drawn = heapq.nsmallest(clips, ((xxh3_64_intdigest(each.encode(), seed), each) for each in store.clip_ids()))
    ids: list[str] = []
    matrices: list[npt.NDArray[np.float16]] = []
    count = 0
    for clip_id, matrix in _matrices(store, [clip_id for _, clip_id in drawn]):
        count += len(matrix)
        if count > MAX_VECTORS:
            break
        ids.append(clip_id)
        matrices.append(matrix)
    if len(ids) < LEAST_CLIPS:
        raise BankError(f"the store gave {len(ids)} clips of the model {model_id}; a bank needs {LEAST_CLIPS} or more")
    lengths = np.array([len(matrix) for matrix in matrices], np.int64)
    return Bank(model_id=model_id, version="", clip_ids=ids, lengths=lengths, matrix=np.concatenate(matrices))


def _matrices(store: Store, clip_ids: Sequence[str]) -> Iterator[tuple[str, npt.NDArray[np.float16]]]:
    for part in _parts(clip_ids):
        with store.read(part) as records:
            found = [None if record is None else _float16(record) for record in records]
        yield from ((clip_id, matrix) for clip_id, matrix in zip(part, found, strict=True) if matrix is not None)


def _parts(clip_ids: Sequence[str]) -> Iterator[Sequence[str]]:
    return (clip_ids[start : start + _AT_ONCE] for start in range(0, len(clip_ids), _AT_ONCE))


def _float16(record: Embedding) -> npt.NDArray[np.float16]:
    vectors = record.matrix.astype(np.float32)
    if record.scales is not None:
        vectors *= record.scales[:, None]
    return vectors.astype(np.float16)


class Lists(NamedTuple):
    """Judged lists, by their topics.

    ``percentiles`` (t,), ``cosines`` (t,): of each list's best candidate; ``relevant`` (t,): whether that is relevant.
    ``unjudged``: the number of lists whose best candidate was not judged; they count as not relevant or are left out.
    ``without``: the number of lists without a percentile, which are left out.
    """

    topics: tuple[str, ...]
    percentiles: FloatArray
    cosines: FloatArray
    relevant: BoolArray
    unjudged: int
    without: int


def judged_lists(answers: Iterable[QueryReranked], qrels: Qrels, *, leave_out_unjudged: bool) -> Lists:
    """Judge the best candidates of answers whose matches are percentiles; each topic is one of the qrels."""
    topics: list[str] = []
    rows: list[tuple[float, float, bool]] = []
    unjudged = without = 0
    for answer in answers:
        best = best_candidate(answer.results)
        if best is None or not isinstance(answer.match, float):
            without += 1
            continue
        rel = _rel(qrels.topics[answer.query_id], best.clip_id, qrels.gallery)
        unjudged += rel is None
        if rel is None and leave_out_unjudged:
            continue
        topics.append(answer.query_id)
        rows.append((answer.match, best.frame_score or 0.0, rel is not None and rel > 0))
    columns = np.array(rows, np.float64).reshape(-1, 3).T
    return Lists(tuple(topics), columns[0], columns[1], columns[2] > 0, unjudged, without)


def best_candidate(results: Sequence[RerankedCandidate]) -> RerankedCandidate | None:
    """Return the candidate with the best frame score, of equal ones the engine's first; None if none has a score."""
    scored = [each for each in results if each.frame_score is not None]
    return max(scored, key=lambda each: (each.frame_score, -each.initial_rank), default=None)


def _rel(judgments: Judgments, clip_id: str, gallery: int | None) -> int | None:
    """Return a clip's relevance, None if it was not judged. Ground truth lists what is relevant, and nothing else."""
    if clip_id not in judgments.shots:
        return None if gallery is None else 0
    rel = int(judgments.rels[judgments.shots.index(clip_id)])
    return None if rel < 0 else rel


def calibrate(percentiles: FloatArray, relevant: BoolArray, pooling: str) -> Calibration:
    """Fit the probability that the best candidate is relevant to judged lists (t,), as this module says.

    Raises MeasureError if scipy is not installed.
    """
    try:
        from scipy.optimize import isotonic_regression  # noqa: PLC0415 - an optional extra
    except ImportError as error:
        raise missing_extra(error) from None
    count = int(np.count_nonzero(relevant))
    outcomes = np.where(relevant, (count + 1) / (count + 2), 1 / (len(relevant) - count + 2))
    xs, at, weights = np.unique(percentiles, return_inverse=True, return_counts=True)
    means = np.bincount(at, outcomes) / weights
    fitted = isotonic_regression(means, weights=weights)
    knots: dict[float, float] = {}
    for first, last in zip(fitted.blocks[:-1].tolist(), fitted.blocks[1:].tolist(), strict=True):
        centre = float(np.average(xs[first:last], weights=weights[first:last]))
        knots[min(centre, 1.0)] = float(fitted.x[first])
    ordered = sorted(knots)
    return Calibration(pooling, len(relevant), tuple(ordered), tuple(min(1.0, knots[each]) for each in ordered))


def unseen(percentiles: FloatArray, relevant: BoolArray, *, folds: int) -> FloatArray:
    """Return the probability (t,) of each list by a calibration that was fitted to the other folds; deterministic."""
    fold_of = np.random.default_rng(0).permutation(np.arange(len(percentiles)) % folds)
    found = np.empty(len(percentiles))
    for fold in range(folds):
        left_out = fold_of == fold
        fitted = calibrate(percentiles[~left_out], relevant[~left_out], "max")
        found[left_out] = [fitted.of(each) for each in percentiles[left_out].tolist()]
    return found


@dataclass(frozen=True, slots=True)
class Bin:
    """The lists whose probability is from ``low`` to ``high``, ``high`` itself only in the last bin.

    ``probability``: their mean; ``share``: how many are relevant, with Wilson's interval.
    """

    low: float
    high: float
    lists: int
    probability: float
    share: float
    share_low: float
    share_high: float


@dataclass(frozen=True, slots=True)
class Reliability:
    """How well probabilities agree with outcomes.

    ``brier``: the mean squared difference; ``brier_of_base``: that of the share of relevant ones, said of every list.
    ``calibration_error``: the mean over the lists of how far the share of their bin is from its mean probability, in
    :data:`BINS` bins of the same width.
    """

    lists: int
    relevant: int
    brier: float
    brier_of_base: float
    calibration_error: float
    bins: tuple[Bin, ...]


def reliability(probabilities: FloatArray, relevant: BoolArray) -> Reliability:
    """Compare probabilities (t,) with outcomes (t,). Raises MeasureError if scipy is not installed."""
    number = np.minimum((probabilities * BINS).astype(np.intp), BINS - 1)
    bins = tuple(
        _bin(each, probabilities[number == each], relevant[number == each])
        for each in range(BINS)
        if (number == each).any()
    )
    outcomes = relevant.astype(np.float64)
    return Reliability(
        lists=len(relevant),
        relevant=int(np.count_nonzero(relevant)),
        brier=float(np.mean((probabilities - outcomes) ** 2)),
        brier_of_base=float(np.mean((outcomes.mean() - outcomes) ** 2)),
        calibration_error=math.fsum(each.lists * abs(each.share - each.probability) for each in bins) / len(relevant),
        bins=bins,
    )


def _bin(number: int, probabilities: FloatArray, relevant: BoolArray) -> Bin:
    try:
        from scipy.stats import binomtest  # noqa: PLC0415
    except ImportError as error:
        raise missing_extra(error) from None
    right, lists = int(np.count_nonzero(relevant)), len(relevant)
    interval = binomtest(right, lists).proportion_ci(CONFIDENCE, method="wilson")
    low, high = number / BINS, (number + 1) / BINS
    mean = float(probabilities.mean())
    return Bin(low, high, lists, mean, right / lists, float(interval.low), float(interval.high))


def area_under_roc(scores: FloatArray, relevant: BoolArray) -> float:
    """Return the probability that a relevant list has a larger score than one that is not; equal ones count half.

    Needs lists of both outcomes.
    """
    ones, others = scores[relevant], scores[~relevant]
    larger = (ones[:, None] > others).sum() + 0.5 * (ones[:, None] == others).sum()
    return float(larger) / (len(ones) * len(others))


def check_enough(lists: Lists) -> None:
    """Raise :class:`BankError` if a calibration by these lists would mean nothing."""
    right = int(np.count_nonzero(lists.relevant))
    wrong = len(lists.relevant) - right
    if right + wrong < LEAST_LISTS or min(right, wrong) < LEAST_OF_EACH:
        raise BankError(
            f"of the best candidates, {right} were judged relevant and {wrong} not ({lists.unjudged} are unjudged); "
            f"a calibration needs {LEAST_LISTS} judged lists or more, {LEAST_OF_EACH} of each"
        )
