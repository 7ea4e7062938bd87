"""The method: max-pool, normalise, blend, rank. Pure functions on arrays.

Source: Chen et al., "CLIPRerank: An Extremely Simple Method for Improving Ad-hoc Video Search",
ICASSP 2024, arXiv 2401.08449. For a query q and a clip v with frames f, S(q, v) = max over f of
cos(text(q), image(f)); the new score is alpha * M(q, v) + (1 - alpha) * S(q, v), M being the engine's own
score. The paper adds the raw scores; normalising both first makes one alpha fit engines of any scale.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from collections.abc import Sequence

Normalization = Literal["minmax", "zscore", "none"]
FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.intp]


class ClipVectors(Protocol):
    """What is scored of a clip: :class:`streamer.store.Embedding` is one.

    ``matrix``: (n, d) float32, float16 or int8, n >= 1. ``scales``: (n,) float32 for int8 (vector = row * scale),
    else None. ``times_ms``: (n,) the time of each vector's frame.
    """

    @property
    def matrix(self) -> npt.NDArray[Any]: ...  # noqa: D102 - told above
    @property
    def scales(self) -> npt.NDArray[np.float32] | None: ...  # noqa: D102
    @property
    def times_ms(self) -> npt.NDArray[np.uint32]: ...  # noqa: D102


class FrameScores(NamedTuple):
    """What the frames of n clips say about a query.

    ``cosines`` (n,) float64: of each clip's best vector, NaN where there is no clip. ``moments_ms`` (n,) int64:
    the time of that vector's frame, 0 where there is no clip.
    """

    cosines: FloatArray
    moments_ms: npt.NDArray[np.int64]


def score_clips(query: npt.NDArray[np.float32], clips: Sequence[ClipVectors | None]) -> FrameScores:
    """Max-pool clips against an L2-normalised query (d,); of vectors that tie, the first gives the moment."""
    scores = FrameScores(np.full(len(clips), np.nan), np.zeros(len(clips), np.int64))
    found = [(position, clip) for position, clip in enumerate(clips) if clip is not None]
    best, rows = max_pool(query, [clip.matrix for _, clip in found], [clip.scales for _, clip in found])
    for (position, clip), cosine, row in zip(found, best.tolist(), rows.tolist(), strict=True):
        scores.cosines[position] = cosine
        scores.moments_ms[position] = clip.times_ms[row]
    return scores


def max_pool(
    query: npt.NDArray[np.float32],
    matrices: Sequence[npt.NDArray[Any]],
    scales: Sequence[npt.NDArray[np.float32] | None],
) -> tuple[FloatArray, IntArray]:
    """Score a query against clips and keep each clip's best vector.

    ``query``: (d,), L2-normalised. ``matrices``: one (n_i, d) array a clip, n_i >= 1, float32, float16 or
    int8; ``scales``: for int8 the (n_i,) factors that restore the vectors, else None. Returns the cosines
    (m,) and the index (m,) of the vector that gave each, the first one where several tie.
    """
    if not matrices:
        return np.empty(0), np.empty(0, dtype=np.intp)
    lengths = [len(matrix) for matrix in matrices]
    starts = np.concatenate(([0], np.cumsum(lengths)[:-1]))
    # One product over the joined rows costs a fraction of one product a clip.
    similarities = np.concatenate(matrices).astype(np.float32, copy=False) @ query
    if any(scale is not None for scale in scales):
        similarities *= np.concatenate(
            [
                np.ones(length, np.float32) if scale is None else scale
                for scale, length in zip(scales, lengths, strict=True)
            ]
        )
    best = np.maximum.reduceat(similarities, starts)
    is_best = np.flatnonzero(similarities == np.repeat(best, lengths))
    # The first hit at or after each clip's start is inside that clip, since every clip has one.
    first = is_best[np.searchsorted(is_best, starts)] - starts
    return best.astype(np.float64), first.astype(np.intp)


def normalize(scores: FloatArray, how: Normalization) -> FloatArray:
    """Bring finite scores (n,) to a common scale.

    ``minmax``: to [0, 1], 0.5 where all are equal. ``zscore``: mean 0 and (population) standard deviation 1,
    0 where all are equal. ``none``: unchanged. Finite for any finite input.
    """
    if how == "none" or scores.size == 0:
        return scores
    low, high = float(scores.min()), float(scores.max())
    if low == high:
        return np.full_like(scores, 0.5 if how == "minmax" else 0.0)
    with np.errstate(over="ignore", under="ignore"):
        if how == "minmax":
            spread = high - low
            if not np.isfinite(spread):
                return normalize(scores / 2, how)
            return np.asarray((scores - low) / spread)
        centred = scores - scores.mean()
        deviation = np.sqrt(np.mean(centred * centred))
        if not np.isfinite(deviation) or deviation < 1e-150:  # noqa: PLR2004 - its square is no longer exact
            # Squares left the range of doubles; a z-score does not depend on the scale, a minmax is in range.
            return normalize(normalize(scores, "minmax"), how)
        return np.asarray(centred / deviation)


class Ranking(NamedTuple):
    """A result list after reranking, in the order of the *input*.

    ``order`` (n,): the input positions, best first, a permutation. ``scores`` (n,): the blended score of
    each input position, NaN below the depth.
    """

    order: IntArray
    scores: FloatArray


def rerank(
    initial: FloatArray, frame: FloatArray, *, alpha: float, depth: int, normalization: Normalization
) -> Ranking:
    """Blend and rank one result list.

    ``initial`` (n,): the engine's finite scores in its order. ``frame`` (min(n, depth),): the max-pooled
    cosines of the first ``depth`` candidates, NaN where a candidate has no record: it keeps its normalised
    initial score alone. The rest follow in their initial order, and ties keep it.
    """
    top = min(len(initial), depth)
    if frame.shape != (top,):
        raise ValueError(f"expected {top} frame scores, got shape {frame.shape}")
    scores = np.full(len(initial), np.nan)
    blended = normalize(initial[:top], normalization).copy()
    scored = ~np.isnan(frame)
    blended[scored] = alpha * blended[scored] + (1 - alpha) * normalize(frame[scored], normalization)
    scores[:top] = blended
    order = np.arange(len(initial))
    order[:top] = np.argsort(-blended, kind="stable")
    return Ranking(order, scores)
