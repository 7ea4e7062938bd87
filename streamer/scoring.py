"""The method: pool, normalise, blend, rank. Pure functions on arrays.

Source: Chen et al., "CLIPRerank: An Extremely Simple Method for Improving Ad-hoc Video Search",
ICASSP 2024, arXiv 2401.08449. For a query q and a clip v with frames f, S(q, v) = max over f of
cos(text(q), image(f)); the new score is alpha * M(q, v) + (1 - alpha) * S(q, v), M being the engine's own
score. The paper adds the raw scores; normalising both first makes one alpha fit engines of any scale.
"""

from __future__ import annotations

import math
import sys
import time
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numkong
import numpy as np
import numpy.typing as npt

from streamer.pooling import MAX, softmax_mean, temperature

if TYPE_CHECKING:
    from collections.abc import Sequence

    from streamer.vectors import Block

Normalization = Literal["minmax", "zscore", "none"]
Missing = Literal["own", "impute"]
IMPUTE: Missing = "impute"
"""What is done by default."""
FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.intp]

_WIDENED = 1 << 17
"""Most components that are float64 at once: 1 MiB, which fits a processor's cache."""


class FrameScores(NamedTuple):
    """The frame scores of n clips for a query.

    ``cosines`` (n,) float64: each clip's pooled cosine, NaN for an absent clip. ``moments_ms`` (n,) int64: the time of
    the best vector's frame, 0 for an absent clip.
    """

    cosines: FloatArray
    moments_ms: npt.NDArray[np.int64]


class ClipScores(NamedTuple):
    """What a store answers to a query: for each of n clips a frame score, or that it has none, or could not look.

    ``unavailable``: the positions of the clips that could not be looked up in time, ``why``: the first reason. All
    other clips without a cosine are not embedded. ``seconds``: the time for scoring, without the store's. The counts
    are the store's: ``corrupt`` records, records from this process's cache and from servers (``cache_hits``,
    ``cache_misses``), and ``replica_reads``, the answers of replicas.
    """

    frame: FrameScores
    unavailable: Sequence[int] = ()
    why: str = ""
    seconds: float = 0.0
    corrupt: int = 0
    cache_hits: int = 0
    cache_misses: int = 0
    replica_reads: int = 0


class FrameScorer:
    """Pools the vectors of clips by their cosines with an L2-normalised query (d,), block by block.

    ``count`` is the number of clips, ``pooling`` one of :mod:`streamer.pooling`. The moment is that of the best vector,
    whatever the pooling; of tied vectors, the first one's. Blocks may have different precisions. ``scores`` holds the
    results so far, ``seconds`` the time spent in :meth:`add`.

    A cosine is computed from :func:`on_grid` of both vectors in float64 (for int8: from the row's integers, times its
    scale). None of its products and sums is rounded, so that it is identical to the last bit in any order of summation
    and on any processor. For the largest cosine, a fast approximate product first selects the vectors that can be the
    best; for a mean, all cosines are needed.

    Raises ValueError if the query is not finite.
    """

    def __init__(self, query: npt.NDArray[np.float32], count: int, pooling: str = MAX) -> None:
        if not np.isfinite(query).all():
            raise ValueError("the query's vector is not finite")
        self.scores = FrameScores(np.full(count, np.nan), np.zeros(count, np.int64))
        self.seconds = 0.0
        self._dots = _Dots(query)
        self._temperature = None if pooling == MAX else temperature(pooling)

    def add(self, block: Block) -> None:
        """Score the clips of a block."""
        began = time.perf_counter()
        lengths = block.lengths
        ends = lengths.cumsum()
        starts = ends - lengths
        # From here on, the clips' vectors are contiguous: vector i of a clip is at its start + i.
        every = np.arange(ends[-1])
        rows = every + (block.first_rows - starts).repeat(lengths)
        scales = None
        if block.scales is not None:
            scales = block.scales.take(every + (block.first_scales - starts).repeat(lengths))
        if self._temperature is None:
            pooled, first = self._largest(block.matrix, rows, scales, starts, lengths)
        else:
            cosines = self._dots.exactly(block.matrix, rows)
            if scales is not None:
                cosines *= scales
            best = np.maximum.reduceat(cosines, starts)
            (is_best,) = (cosines == best.repeat(lengths)).nonzero()
            first = is_best.take(is_best.searchsorted(starts))
            pooled = softmax_mean(cosines, best, starts, lengths, self._temperature)
        self.scores.cosines[block.positions] = pooled
        self.scores.moments_ms[block.positions] = block.times_ms.take(block.first_times + first - starts)
        self.seconds += time.perf_counter() - began

    def _largest(
        self,
        matrix: npt.NDArray[Any],
        rows: IntArray,
        scales: npt.NDArray[np.float32] | None,
        starts: IntArray,
        lengths: IntArray,
    ) -> tuple[FloatArray, IntArray]:
        """Return each clip's largest cosine (m,), and the first vector (m,) that has it."""
        dots = self._dots
        similarities = dots.of(matrix, rows)
        if scales is not None:
            similarities *= scales
        best = np.maximum.reduceat(similarities, starts)
        (near,) = (similarities >= (best - dots.margin(matrix.dtype)).repeat(lengths)).nonzero()
        first_near = near.searchsorted(starts)  # inside the clip, because every clip has one
        if len(near) > len(starts):
            # Equal vectors have equal products; a static clip has many, and computing the first one is enough.
            is_new = similarities.take(near) != similarities.take(near - 1)
            is_new[first_near] = True
            near = near[is_new]
            first_near = near.searchsorted(starts)
        cosines = dots.exactly(matrix, rows.take(near))
        if scales is not None:
            cosines *= scales.take(near)
        if len(near) == len(starts):
            return cosines, near
        best = np.maximum.reduceat(cosines, first_near)
        (is_best,) = (cosines == best.repeat(np.diff(first_near, append=len(near)))).nonzero()
        return best, near.take(is_best.take(is_best.searchsorted(first_near)))


def on_grid(vectors: npt.NDArray[Any]) -> FloatArray:
    """Round the components of unit vectors to multiples of 2**-26, as float64; float16 and int8 already are.

    Products of components are then multiples of 2**-52, and no partial sum exceeds 1 by more than rounding has added to
    the vectors' lengths, so that float64 represents all of them exactly.
    """
    if vectors.dtype == np.float16:
        return _widened(vectors)
    exact = vectors.astype(np.float64)
    return np.rint(exact * 2.0**26) * 2.0**-26 if vectors.dtype == np.float32 else exact


def _widened(halves: npt.NDArray[np.float16]) -> FloatArray:
    """Convert float16 to float64; numpy's own conversion, one number at a time, takes five times as long."""
    bits = np.ascontiguousarray(halves).view(np.int16).astype(np.int32)  # move the sign bit to the front
    bits <<= 13
    bits &= ~0x70001FFF
    wide = bits.view(np.float32).astype(np.float64)
    wide *= 2.0**112  # correct for the difference of the exponent biases
    return wide


class _Dots:
    """Dot products of one query with matrices of any precision.

    A kernel multiplies numbers of one precision, the stored one. Rounding the query to it would double the error of
    storing, so the query is passed as two vectors, the second being the remainder of the first: exact to 1/64,516 of
    its largest component for int8, to 2**-22 for float16. A kernel computes a few columns in the time of one. Equal
    rows get equal products at any position, so that ties remain ties.
    """

    def __init__(self, query: npt.NDArray[np.float32]) -> None:
        self._query = query
        self._exact = on_grid(query)
        self._packed: dict[np.dtype[Any], tuple[numkong.PackedMatrix, float, float]] = {}

    def exactly(self, matrix: npt.NDArray[Any], rows: IntArray) -> FloatArray:
        """Return the products (m,) with the ``rows`` (m,) of ``matrix``, exact except for the rounding to the grid."""
        at_once = max(1, _WIDENED // len(self._exact))
        if len(rows) <= at_once:
            return np.asarray(on_grid(matrix.take(rows, axis=0)) @ self._exact)
        parts = [
            on_grid(matrix.take(rows[start : start + at_once], axis=0)) @ self._exact
            for start in range(0, len(rows), at_once)
        ]
        return np.concatenate(parts)

    def margin(self, dtype: np.dtype[Any]) -> float:
        """Bound how far a worse unit vector's fast product can exceed a better one's; call :meth:`of` first."""
        _, _, fine = self._packed[dtype]
        length = len(self._query)
        # int8: half a step of the fine column for each component. Else: a kernel's sums, in whatever order.
        return fine * length**0.5 if dtype == np.int8 else length * 2.0**-23 + 2.0**-21

    def of(self, matrix: npt.NDArray[Any], rows: npt.NDArray[np.int64]) -> FloatArray:
        """Return the products (m,) of the query (d,) with the ``rows`` (m,) of ``matrix`` (n, d)."""
        packed, coarse, fine = self._packed.get(matrix.dtype) or self._pack(matrix.dtype)
        products = np.asarray(numkong.dots_packed(matrix, packed)).take(rows, axis=0)
        return np.asarray(products[:, 0] * coarse + products[:, 1] * fine)

    def _pack(self, dtype: np.dtype[Any]) -> tuple[numkong.PackedMatrix, float, float]:
        query = self._query
        columns = np.empty((2, len(query)), dtype)
        if dtype == np.int8:
            coarse = float(np.abs(query).max()) / 127 or 1.0
            fine = coarse / 254
            columns[0] = np.rint(query / coarse)
            columns[1] = np.rint((query - columns[0] * coarse) / fine)
        else:
            coarse, fine = 1.0, 2.0**-11
            columns[0] = query
            columns[1] = (query - columns[0]) / fine
        self._packed[dtype] = packed = numkong.dots_pack(columns), coarse, fine
        return packed


def normalize(scores: FloatArray, how: Normalization) -> FloatArray:
    """Bring finite scores (n,) to a common scale.

    ``minmax``: to [0, 1], 0.5 if all are equal. ``zscore``: mean 0 and (population) standard deviation 1, 0 if all are
    equal. ``none``: unchanged. Finite for any finite input.
    """
    if how == "none" or scores.size == 0:
        return scores
    # Not scores.min(), whose Python wrapper takes as long as the reduction itself.
    low, high = float(np.minimum.reduce(scores)), float(np.maximum.reduce(scores))
    if low == high:
        return np.full_like(scores, 0.5 if how == "minmax" else 0.0)
    if how == "minmax":
        spread = high - low
        return (scores - low) / spread if math.isfinite(spread) else normalize(scores / 2, how)
    with np.errstate(over="ignore", under="ignore"):
        centred = scores - scores.mean()
        deviation = np.sqrt(np.mean(centred * centred))
    if not np.isfinite(deviation) or deviation < 1e-150:  # noqa: PLR2004 - its square is no longer exact
        # Squares overflowed or underflowed; a z-score does not depend on the scale, and minmax values are in range.
        return normalize(normalize(scores, "minmax"), how)
    return np.asarray(centred / deviation)


def blend(
    initial: FloatArray,
    frame: FloatArray,
    alpha: float | FloatArray,
    normalization: Normalization,
    missing: Missing = IMPUTE,
) -> FloatArray:
    """Normalise the scores of the n candidates within the depth and blend them; several alphas (a, 1) give (a, n).

    ``frame`` (n,) is NaN for a candidate without a record. Its blended score is its normalised initial score (``own``),
    or has a frame score predicted from it (``impute``, :func:`predict`).
    """
    own = normalize(initial, normalization)
    absent = np.isnan(frame)
    if not absent.any():
        return alpha * own + (1 - alpha) * normalize(frame, normalization)
    scored = ~absent
    seen = np.zeros(len(frame))
    seen[scored] = known = normalize(frame[scored], normalization)
    if missing == IMPUTE and len(known):
        predicted = predict(own[scored], known, own[absent])
        low, high = (0.0, 1.0) if normalization == "minmax" else (-sys.float_info.max, sys.float_info.max)
        seen[absent] = predicted.clip(low, high)
        return alpha * own + (1 - alpha) * seen
    return np.where(scored, alpha * own + (1 - alpha) * seen, own)


def predict(own: FloatArray, known: FloatArray, of: FloatArray) -> FloatArray:
    """Predict the frame scores (m,) of candidates without a record from their own scores ``of`` (m,).

    By least squares over the n >= 1 candidates of the list that have one: ``own`` (n,) and ``known`` (n,) are their own
    and their frame scores, all normalised. A prediction is mean(known) + b * (of - mean(own)) with the slope
    b = cov(own, known) / var(own), 0 where the variance is 0. Each of the four sums is exact and rounded once, so that
    anybody gets the same digits. Where a prediction exceeds what a float holds, it is infinite.
    """
    # By powers of two, which changes no digit, so that no square overflows.
    wide, high = (2.0 ** max(0, math.frexp(float(np.abs(each).max()))[1] - 1) for each in (np.append(own, of), known))
    own, known, of = own / wide, known / high, of / wide
    count = len(own)
    mean_own, mean_known = math.fsum(own.tolist()) / count, math.fsum(known.tolist()) / count
    from_mean = own - mean_own
    variance = math.fsum((from_mean * from_mean).tolist())
    slope = math.fsum((from_mean * (known - mean_known)).tolist()) / variance if variance else 0.0
    with np.errstate(over="ignore"):
        return np.asarray((mean_known + slope * (of - mean_own)) * high)


class Ranking(NamedTuple):
    """A result list after reranking, in the order of the *input*.

    ``order`` (n,): the input positions, best first, a permutation. ``scores`` (n,): the blended score of
    each input position, NaN below the depth.
    """

    order: IntArray
    scores: FloatArray


def rerank(
    initial: FloatArray,
    frame: FloatArray,
    *,
    alpha: float,
    depth: int,
    normalization: Normalization,
    missing: Missing = IMPUTE,
) -> Ranking:
    """Blend and rank one result list.

    ``initial`` (n,): the engine's finite scores in its order. ``frame`` (min(n, depth),): the frame scores of the first
    ``depth`` candidates, NaN for a candidate without a record, which ``missing`` treats as :func:`blend` says.
    Candidates below the depth follow in their initial order; ties keep it too.
    """
    top = min(len(initial), depth)
    if frame.shape != (top,):
        raise ValueError(f"expected {top} frame scores, got shape {frame.shape}")
    scores = np.full(len(initial), np.nan)
    scores[:top] = blended = blend(initial[:top], frame, alpha, normalization, missing)
    order = np.arange(len(initial))
    order[:top] = (-blended).argsort(kind="stable")
    return Ranking(order, scores)
