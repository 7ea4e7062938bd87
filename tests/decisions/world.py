"""The synthetic benchmark's engines with every clip's true relevance, and orders that gain or harm."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from streamer.encoders import DEMO, load_encoder
from streamer.scoring import rerank
from streamer.synthetic import avs
from tests.support import small_avs

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    import numpy.typing as npt

    FloatArray = npt.NDArray[np.float64]
    IntArray = npt.NDArray[np.intp]
    BoolArray = npt.NDArray[np.bool_]
    Reorder = Callable[[FloatArray, FloatArray, BoolArray, np.random.Generator], IntArray]

DEPTH = 100
"""The length of an engine's list."""
VERSIONS = 3
"""An engine's index changes: it has as many lists for each topic."""
GAINING, HARMFUL = "reranked", ("frames of other clips", "opposite frames", "relevant results fall")
KEPT = 3
"""The last harmful order leaves so many first results where they are."""


@dataclass(frozen=True)
class Engine:
    """One engine's lists: (v, t, n) for v versions, t topics and n ranks.

    ``clips``: the clip at each rank. ``relevant``: whether it is. ``ranks``: for each order its rank there, from 1.
    """

    name: str
    clips: IntArray
    relevant: BoolArray
    ranks: Mapping[str, IntArray]

    def __str__(self) -> str:
        """Return its AP and that of each order."""
        values = ", ".join(f"{order} {self.average_precision(order):.3f}" for order in self.ranks)
        return f"engine {self.name}: AP {self.average_precision():.3f}; {values}"

    def average_precision(self, order: str | None = None) -> float:
        """Return the mean AP of the engine's order or of another one, over the relevant clips of its lists."""
        relevant = self.relevant
        if order is not None:
            relevant = np.take_along_axis(relevant, np.argsort(self.ranks[order], axis=-1), axis=-1)
        precision = relevant.cumsum(axis=-1) / np.arange(1, relevant.shape[-1] + 1)
        found = relevant.sum(axis=-1)
        return float(((precision * relevant).sum(axis=-1)[found > 0] / found[found > 0]).mean())


def build(*, clips: int, topics: int, seed: int) -> list[Engine]:
    """Draw clips and topics, and let engines C, D and E search and the small model rerank."""
    encoder = load_encoder(DEMO, dtype="float32")
    drawn = [small_avs.draw(number, encoder) for number in range(clips)]
    asked = avs.draw_topics([clip for clip, _ in drawn], count=topics, seed=seed)
    texts = [encoder.encode_texts([topic.text])[0] for topic in asked]
    ids = [clip.clip_id for clip, _ in drawn]
    wholes = np.array([small_avs.whole(vectors) for _, vectors in drawn])
    answers = {
        topic.query_id: list(zip(ids, (wholes @ text).astype(float).tolist(), strict=True))
        for topic, text in zip(asked, texts, strict=True)
    }
    frames = np.array([[(vectors @ text).max() for _, vectors in drawn] for text in texts], np.float64)
    number_of = {clip_id: number for number, clip_id in enumerate(ids)}
    versions = [avs.base_runs(answers, asked, seed=seed + version) for version in range(VERSIONS)]
    engines = []
    for name in ("C", "D", "E"):
        rng = np.random.default_rng(seed)
        shape = (VERSIONS, len(asked), min(DEPTH, clips))
        clip, relevant = np.empty(shape, np.intp), np.empty(shape, np.bool_)
        ranks = {order: np.empty(shape, np.intp) for order in _ORDERS}
        for version, runs in enumerate(versions):
            for row, topic in enumerate(asked):
                best = runs[name].topics[topic.query_id].ranked()
                shown, scores = [number_of[shot] for shot in best.shots[:DEPTH]], best.scores[:DEPTH]
                clip[version, row] = shown
                relevant[version, row] = [ids[each] in topic.relevant for each in shown]
                for order, reorder in _ORDERS.items():
                    new = reorder(scores, frames[row, shown], relevant[version, row], rng)
                    ranks[order][version, row, new] = np.arange(1, len(new) + 1)
        engines.append(Engine(name, clip, relevant, ranks))
    return engines


def _rerank(scores: FloatArray, frames: FloatArray) -> IntArray:
    return rerank(scores, frames, alpha=0.4, depth=DEPTH, normalization="minmax").order


def _relevant_fall(
    _scores: FloatArray, _frames: FloatArray, relevant: BoolArray, _rng: np.random.Generator
) -> IntArray:
    return np.argsort(relevant & (np.arange(len(relevant)) >= KEPT), kind="stable")


_ORDERS: Mapping[str, Reorder] = {
    GAINING: lambda scores, frames, _relevant, _rng: _rerank(scores, frames),
    HARMFUL[0]: lambda scores, frames, _relevant, rng: _rerank(scores, rng.permutation(frames)),
    HARMFUL[1]: lambda scores, frames, _relevant, _rng: _rerank(scores, -frames),
    HARMFUL[2]: _relevant_fall,
}
