"""A bank: the vectors of some clips of the store, with which the best frame score of a list is compared."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from streamer.match.percentile import TAIL, percentile
from streamer.scoring import FrameScorer
from streamer.vectors import Block

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy.typing as npt

    from streamer.events import MatchKind
    from streamer.scoring import FloatArray

LEAST_CLIPS = 50
"""The fewest clips of a bank. A small store has few; then a percentile says little, but what it says is right."""
LEAST_OTHERS = TAIL + 1
"""The fewest clips of a bank that are not in a list, for the list to have a match."""
_CACHED = 1_024
"""Queries whose scores for a bank are kept: 10 MB for 1,000 clips."""


class Match(NamedTuple):
    """How well the best candidate matches: ``value`` (0 to 1), what it is, and the bank's version."""

    value: float
    kind: MatchKind
    bank: str


@dataclass(frozen=True, slots=True)
class Calibration:
    """From a percentile to the probability that the candidate with the best frame score is relevant.

    ``percentiles``: 1 or more, increasing; ``probabilities``: the same number, not decreasing. All are from 0 to 1. It
    is a straight line between two of them, and flat beyond the first and the last. It holds for one ``pooling``.
    ``topics``: how many have been judged.
    """

    pooling: str
    topics: int
    percentiles: tuple[float, ...]
    probabilities: tuple[float, ...]

    def of(self, value: float) -> float:
        """Return the probability at a percentile."""
        xs, ys = self.percentiles, self.probabilities
        after = int(np.searchsorted(xs, value, "right"))
        if after in (0, len(xs)):
            return ys[min(after, len(xs) - 1)]
        (low, high), (at_low, at_high) = xs[after - 1 : after + 1], ys[after - 1 : after + 1]
        return min(at_high, at_low + (at_high - at_low) * ((value - low) / (high - low)))


class Bank:
    """Clips of one model, drawn at random from a store.

    ``clip_ids`` (m,) are distinct. ``lengths`` (m,): each one's number of vectors, 1 or more, which follow each other
    in ``matrix`` (sum of lengths, d), float16, of length 1. ``version`` identifies the bank in results. Without a
    ``calibration``, a match is a percentile. For one thread.
    """

    def __init__(
        self,
        *,
        model_id: str,
        version: str,
        clip_ids: Sequence[str],
        lengths: npt.NDArray[np.int64],
        matrix: npt.NDArray[np.float16],
        calibration: Calibration | None = None,
    ) -> None:
        self.model_id = model_id
        self.version = version
        self.clip_ids = tuple(clip_ids)
        self.lengths = lengths
        self.matrix = matrix
        self.calibration = calibration
        self._positions = {clip_id: position for position, clip_id in enumerate(self.clip_ids)}
        # What users often ask is in the cache of query vectors too, and needs no product then.
        self._cached = lru_cache(maxsize=_CACHED)(self._score)

    def calibrated(self, calibration: Calibration | None) -> Bank:
        """Return the same clips with another calibration, and without a version."""
        return Bank(
            model_id=self.model_id,
            version="",
            clip_ids=self.clip_ids,
            lengths=self.lengths,
            matrix=self.matrix,
            calibration=calibration,
        )

    def scores(self, vector: npt.NDArray[np.float32], pooling: str) -> FloatArray:
        """Return the clips' frame scores (m,) for a query (d,), which must not be written to.

        Raises ValueError if the query is not finite or has another length.
        """
        if vector.shape != self.matrix.shape[1:]:
            raise ValueError(f"the query has {vector.shape} numbers, the bank's vectors {self.matrix.shape[1]}")
        return self._cached(vector.astype(np.float32).tobytes(), pooling)

    def _score(self, vector: bytes, pooling: str) -> FloatArray:
        scorer = FrameScorer(np.frombuffer(vector, np.float32), len(self.lengths), pooling)
        starts = self.lengths.cumsum() - self.lengths
        # A match says nothing of moments.
        times = np.zeros(len(self.matrix), np.uint32)
        scorer.add(Block(np.arange(len(self.lengths)), self.lengths, self.matrix, starts, times, starts, None, starts))
        return scorer.scores.cosines

    def match(
        self, clip_ids: Sequence[str], cosines: FloatArray, vector: npt.NDArray[np.float32], pooling: str
    ) -> Match | None:
        """Say how well the best of some candidates matches a query (d,).

        ``cosines`` (n,): the candidates' frame scores by ``pooling``, NaN where there is none. A clip of the bank that
        is itself a candidate is left out of the comparison. None if no candidate has a score, or too few clips of the
        bank are left.
        """
        known = cosines[~np.isnan(cosines)]
        if not len(known):
            return None
        others = self.scores(vector, pooling)
        listed = [self._positions[clip_id] for clip_id in clip_ids if clip_id in self._positions]
        if listed:
            others = np.delete(others, listed)
        if len(others) < LEAST_OTHERS:
            return None
        found = percentile(float(known.max()), others, len(known))
        if self.calibration is None or self.calibration.pooling != pooling:
            return Match(found, "percentile", self.version)
        return Match(self.calibration.of(found), "probability", self.version)
