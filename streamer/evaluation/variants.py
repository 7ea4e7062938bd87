"""One topic's frame scores by several frame intervals and precisions, from one read of its candidates' records."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt

from streamer.method import score_clips
from streamer.pooling import MAX
from streamer.store.record_format import quantize
from streamer.vectors import Block, ClipList

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from streamer.scoring import FloatArray
    from streamer.settings import Precision
    from streamer.store import Embedding, Store
    from streamer.vectors import Blocks, ClipVectors

AT_ONCE = 100
"""Number of candidates whose vectors are in memory at once."""
COUNTED = 2_000
"""Number of clips whose costs are counted if only the stored variant is measured."""
_WIDTHS: dict[Precision, int] = {"float32": 4, "float16": 2, "int8": 1}


class Variant(NamedTuple):
    """A way of embedding clips: ``interval_ms`` between frames and ``precision``; None means as stored."""

    interval_ms: int | None = None
    precision: Precision | None = None

    @property
    def is_stored(self) -> bool:
        """Whether this is the stored variant."""
        return self == Variant()


class _Vectors(NamedTuple):
    """A clip of a variant; a :class:`streamer.vectors.ClipVectors`."""

    matrix: npt.NDArray[np.float32 | np.float16 | np.int8]
    scales: npt.NDArray[np.float32] | None
    times_ms: npt.NDArray[np.uint32]


@dataclass(slots=True)
class Cost:
    """Sums over the embedded candidates of a variant; ``seconds``: by pooling, time for scoring them from memory."""

    clips: int = 0
    frames: int = 0
    bytes: int = 0
    seconds: dict[str, float] = field(default_factory=dict)


@dataclass(slots=True)
class Costs:
    """The costs of each variant; ``read_s``: by pooling, the seconds for reading and scoring the records as stored."""

    of: dict[Variant, Cost] = field(default_factory=dict)
    read_s: dict[str, float] = field(default_factory=dict)
    candidates: int = 0
    scored: int = 0
    """The number of candidates with a record."""


def frame_scores(
    store: Store,
    clip_ids: Sequence[str],
    query: npt.NDArray[np.float32],
    variants: Sequence[Variant],
    costs: Costs,
    poolings: Sequence[str] = (MAX,),
) -> dict[Variant, dict[str, FloatArray]]:
    """Pool clips against a query (d,) for each variant by each pooling: (n,), NaN without a record.

    Each record is read once for each pooling. If only the stored variant is measured, costs are counted for the first
    clips only. Raises :class:`~streamer.store.StoreUnavailableError`, and ValueError if vectors are stored with a lower
    precision than a variant's.
    """
    found = {variant: {pooling: np.full(len(clip_ids), np.nan) for pooling in poolings} for variant in variants}
    costs.candidates += len(clip_ids)
    sampled = costs.of.get(Variant(), Cost()).clips >= COUNTED
    only_stored = sampled and all(variant.is_stored for variant in variants)
    size = len(clip_ids) if only_stored else AT_ONCE
    for start in range(0, len(clip_ids), size):
        part = slice(start, start + size)
        with store.read(clip_ids[part]) as records:
            stored = {pooling: _scored(query, records, pooling, costs.read_s) for pooling in poolings}
            costs.scored += int(np.count_nonzero(~np.isnan(stored[poolings[0]])))
            for variant in variants:
                scores = stored
                if not only_stored:
                    clips = _Joined(None if record is None else derive(record, variant) for record in records)
                    cost = costs.of.setdefault(variant, Cost())
                    scores = {pooling: _scored(query, clips, pooling, cost.seconds) for pooling in poolings}
                    _count(clips, cost)
                for pooling in poolings:
                    found[variant][pooling][part] = scores[pooling]
    return found


class _Joined(ClipList):
    """Clips that are contiguous in memory, as a store returns them."""

    def __init__(self, clips: Iterable[ClipVectors | None]) -> None:
        super().__init__(clips)
        by_dtype: dict[np.dtype[Any], list[int]] = {}
        for position, clip in enumerate(self):
            if clip is not None:
                by_dtype.setdefault(clip.matrix.dtype, []).append(position)
        self._blocks = [self._block(positions) for positions in by_dtype.values()]

    def blocks(self) -> Iterator[Block]:
        """Yield the clips of each precision."""
        return iter(self._blocks)

    def _block(self, positions: Sequence[int]) -> Block:
        clips = [clip for position in positions if (clip := self[position]) is not None]
        lengths = np.array([len(clip.matrix) for clip in clips])
        starts = lengths.cumsum() - lengths
        scales = [clip.scales for clip in clips if clip.scales is not None]
        return Block(
            positions=np.array(positions),
            lengths=lengths,
            matrix=np.concatenate([clip.matrix for clip in clips]),
            first_rows=starts,
            times_ms=np.concatenate([clip.times_ms for clip in clips]),
            first_times=starts,
            scales=np.concatenate(scales) if scales else None,
            first_scales=starts,
        )


def _scored(query: npt.NDArray[np.float32], clips: Blocks, pooling: str, seconds: dict[str, float]) -> FloatArray:
    began = time.perf_counter()
    cosines = score_clips(query, clips, pooling).cosines
    seconds[pooling] = seconds.get(pooling, 0.0) + time.perf_counter() - began
    return cosines


def _count(clips: _Joined, cost: Cost) -> None:
    there = [clip for clip in clips if clip is not None]
    cost.clips += len(there)
    cost.frames += sum(len(np.unique(clip.times_ms)) for clip in there)
    cost.bytes += sum(
        clip.matrix.nbytes + clip.times_ms.nbytes + (0 if clip.scales is None else clip.scales.nbytes) for clip in there
    )


def derive(record: Embedding, variant: Variant) -> ClipVectors:
    """Convert a stored clip to what the embedder would have stored with another interval or precision.

    An interval that is a multiple of the stored one selects exactly the frames that would have been sampled; other
    intervals select the nearest earlier stored frames.
    """
    matrix, scales, times = record.matrix, record.scales, record.times_ms
    if variant.interval_ms is not None:
        samples = np.arange(int(times[0]), int(times[-1]) + 1, variant.interval_ms)
        taken = np.unique(times[np.searchsorted(times, samples, side="right") - 1])
        keep = np.isin(times, taken)
        matrix, times = matrix[keep], times[keep]
        scales = None if scales is None else scales[keep]
    if variant.precision is not None and matrix.dtype != np.dtype(variant.precision):
        if _WIDTHS[variant.precision] > matrix.dtype.itemsize:
            raise ValueError(f"the store's vectors are {matrix.dtype}, a lower precision than {variant.precision}")
        matrix, scales = quantize(matrix.astype(np.float32), variant.precision)
    return _Vectors(matrix, scales, times)
