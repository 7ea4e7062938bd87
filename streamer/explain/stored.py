"""What the store holds of the candidates now: their scores, and the records of those that are shown."""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

import numpy as np

from streamer.method import score_clips
from streamer.pooling import MAX
from streamer.scoring import ClipScores, FrameScorer, FrameScores
from streamer.store import record_format
from streamer.store.admin import PAGE_RECORDS
from streamer.vectors import Block, ClipList

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    import numpy.typing as npt

    from streamer.store import Embedding
    from streamer.store.admin import StoreAdmin


class State(StrEnum):
    """What is stored of a clip."""

    LIVE = "live"
    DELETED = "deleted"
    ABSENT = "absent"
    DAMAGED = "damaged"


@dataclass(frozen=True, slots=True)
class Stored:
    """A clip's entry in the store; ``embedding``: its record where it is live, which stays valid, being a copy."""

    state: State
    embedding: Embedding | None = None


class Snapshot:
    """The records of one model, scored as the services score them (:class:`streamer.method.ClipScorer`).

    Reads through :class:`~streamer.store.admin.StoreAdmin`, which also tells a deleted clip from one that never was.
    Keeps the entries of ``keep``; all others are dropped after they were scored, so that memory holds one page.
    """

    def __init__(self, admin: StoreAdmin, model_id: str, keep: Collection[str]) -> None:
        self._admin = admin
        self._prefix = record_format.model_prefix(model_id)
        self._keep = frozenset(keep)
        self.kept: dict[str, Stored] = {}
        """The entries of the clips in ``keep`` that were scored or looked up."""

    def score(
        self, clip_ids: Sequence[str], vector: npt.NDArray[np.float32], _deadline: float | None, pooling: str = MAX
    ) -> ClipScores:
        """Score clips against a query's vector (d,)."""
        cosines, moments = np.full(len(clip_ids), np.nan), np.zeros(len(clip_ids), np.int64)
        for start in range(0, len(clip_ids), PAGE_RECORDS):
            page = clip_ids[start : start + PAGE_RECORDS]
            clips = ClipList([each.embedding for each in self.look_up(page, len(vector))])
            scores = score_clips(vector, clips, pooling)
            cosines[start : start + len(page)], moments[start : start + len(page)] = scores
        return ClipScores(FrameScores(cosines, moments))

    def look_up(self, clip_ids: Sequence[str], dim: int | None) -> list[Stored]:
        """Return the entries of at most a page of clips whose vectors have the length ``dim``."""
        values = self._admin.get(record_format.keys(self._prefix, clip_ids))
        found = [_stored(clip_id, value, dim) for clip_id, value in zip(clip_ids, values, strict=True)]
        self.kept.update(
            (clip_id, each) for clip_id, each in zip(clip_ids, found, strict=True) if clip_id in self._keep
        )
        return found


def _stored(clip_id: str, value: bytes | None, dim: int | None) -> Stored:
    if value is None:
        return Stored(State.ABSENT)
    try:
        embedding = record_format.decode(memoryview(value), clip_id, dim)
    except record_format.CorruptRecordError:
        return Stored(State.DAMAGED)
    return Stored(State.DELETED) if embedding is None else Stored(State.LIVE, embedding)


@dataclass(frozen=True, slots=True)
class Curve:
    """A clip's score along its time: ``cosines`` (n,) with the query at the frames' times ``times_ms`` (n,)."""

    times_ms: list[int]
    cosines: list[float]


def curve(vector: npt.NDArray[np.float32], embedding: Embedding) -> Curve:
    """Return the cosine of each frame with an L2-normalised query (d,); of several vectors of a frame, the largest.

    Each vector is scored as a clip of its own, so that the numbers are those of the services, to the last bit.
    """
    count = len(embedding.matrix)
    every, one = np.arange(count, dtype=np.int64), np.ones(count, np.int64)
    scorer = FrameScorer(vector, count)
    scorer.add(Block(every, one, embedding.matrix, every, embedding.times_ms, every, embedding.scales, every))
    times, starts = np.unique(embedding.times_ms, return_index=True)
    cosines = np.maximum.reduceat(scorer.scores.cosines, starts).tolist()
    if not all(map(math.isfinite, cosines)):
        raise ValueError("a stored vector is not finite")
    return Curve(times.tolist(), cosines)
