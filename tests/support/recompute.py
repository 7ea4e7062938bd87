"""Every number of the contract, worked out again with open_clip, PyAV and numpy alone.

Nothing of the product is imported: what is shared with it is the page that defines the method, the sampling
and the normalisations. Times are exact (`Fraction` seconds), so a frame that lies precisely on a sample time
is one case and not two.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from typing import TYPE_CHECKING, Any

import av
import numpy as np
import open_clip
import torch
from PIL import Image

from tests.support.recompute_scores import pooled, predicted

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    Vectors = NDArray[np.float64]

SCORE_TOLERANCE = 2e-3
"""Of a blended score or a raw cosine, vectors stored as float16."""


COSINE_TIE = 1e-3
"""Frames whose cosines are this close may each be called the moment."""


@dataclass(frozen=True, slots=True)
class Video:
    """A file as a platform knows it, with what its maker says about it.

    Attributes:
        path: The file.
        clockwise_turns: Quarter turns that its rotation metadata asks a player for.

    """

    path: Path
    clockwise_turns: int = 0


@dataclass(frozen=True, slots=True)
class Sampled:
    """The frames of a video that the sampling rule takes.

    Attributes:
        times: Seconds from the first frame, one per sampled frame.
        last_time: Seconds from the first frame to the last one.
        end: The same to the last one's end.
        vectors: L2-normalised image embeddings, (frames, dimension).

    """

    times: tuple[Fraction, ...]
    last_time: Fraction
    end: Fraction
    vectors: Vectors


@dataclass(frozen=True, slots=True)
class Method:
    """The knobs of a reranker, as its settings name them."""

    normalization: str = "minmax"
    alpha: float = 0.4
    depth: int = 100
    missing: str = "impute"
    pooling: str = "max"


@dataclass(frozen=True, slots=True)
class Expectation:
    """What the definition says of one candidate; `moments` are the exact milliseconds that are acceptable."""

    status: str
    score: float | None
    frame_score: float | None = None
    moments: tuple[Fraction, ...] = ()


def sample_indices(times: Sequence[Fraction], interval: Fraction, max_frames: int, end: Fraction) -> list[int]:
    """Return the frames taken: for every k * interval before the end, the last frame not after it."""
    if end > interval * max_frames:
        interval = end / max_frames
    taken: list[int] = []
    frame = 0
    sample = 0
    while sample < max_frames and (sample * interval < end or sample * interval <= times[-1]):
        while frame + 1 < len(times) and times[frame + 1] <= sample * interval:
            frame += 1
        if not taken or taken[-1] != frame:
            taken.append(frame)
        sample += 1
    return taken


class Oracle:
    """Plain open_clip on single files and single queries, in float32, remembering what it has seen."""

    def __init__(self, model_dir: Path, *, interval: Fraction = Fraction(1, 2), max_frames: int = 64) -> None:
        name = f"local-dir:{model_dir}"
        self._model, _, self._preprocess = open_clip.create_model_and_transforms(name)
        self._model.eval()
        self._tokenizer = open_clip.get_tokenizer(name)
        self._interval = interval
        self._max_frames = max_frames
        self._videos: dict[Video, Sampled] = {}
        self._texts: dict[str, Vectors] = {}

    def video(self, video: Video) -> Sampled:
        """Sample and encode a file."""
        if video not in self._videos:
            self._videos[video] = self._encode(video)
        return self._videos[video]

    def text(self, query: str) -> Vectors:
        """Encode a query: (dimension,), L2-normalised."""
        if query not in self._texts:
            with torch.inference_mode():
                vector = self._model.encode_text(self._tokenizer([query]), normalize=True)[0]
            self._texts[query] = np.asarray(vector, np.float64)
        return self._texts[query]

    def _encode(self, video: Video) -> Sampled:
        with av.open(video.path) as container:
            stream = container.streams.video[0]
            tick: Any = stream.time_base
            frames: list[Any] = [(frame.pts, frame.duration) for frame in container.decode(stream)]
        first = frames[0][0]
        times = [(pts - first) * tick for pts, _ in frames]
        end = times[-1] + frames[-1][1] * tick
        taken = sample_indices(times, self._interval, self._max_frames, end)
        with av.open(video.path) as container:
            wanted = set(taken)
            images = [
                Image.fromarray(np.rot90(frame.to_ndarray(format="rgb24"), k=-video.clockwise_turns))
                for index, frame in enumerate(container.decode(video=0))
                if index in wanted
            ]
        with torch.inference_mode():
            batch = torch.stack([self._preprocess(image) for image in images])
            vectors = np.asarray(self._model.encode_image(batch, normalize=True), np.float64)
        return Sampled(tuple(times[index] for index in taken), times[-1], end, vectors)


def normalised(values: Vectors, normalization: str) -> Vectors:
    """Return one side of the blend on the scale that `normalization` names."""
    if normalization == "none" or not values.size:
        return values
    if np.all(values == values[0]):
        return np.full_like(values, 0.5 if normalization == "minmax" else 0.0)
    scaled = values / np.abs(values).max()  # both are blind to scale, and the squares stay finite
    if normalization == "minmax":
        return np.asarray((scaled - scaled.min()) / (scaled.max() - scaled.min()), np.float64)
    return np.asarray((scaled - scaled.mean()) / scaled.std(), np.float64)


@dataclass(frozen=True)
class Ranking:
    """One query's results as the engine gave them, and the method that reranks them.

    Attributes:
        query: The query's vector, (dimension,).
        results: The engine's candidates, in its order.
        records: The sampled frames of each clip that the store should hold.
        method: The reranker's knobs.

    """

    query: Vectors
    results: Sequence[Mapping[str, Any]]
    records: Mapping[str, Sampled]
    method: Method

    @cached_property
    def expected(self) -> list[Expectation]:
        """One expectation per candidate, in the engine's order."""
        within = self.results[: self.method.depth]
        found = [self.records.get(result["clip_id"]) for result in within]
        cosines = [None if record is None else record.vectors @ self.query for record in found]
        scores = [None if cosine is None else pooled(cosine.tolist(), self.method.pooling) for cosine in cosines]
        known = normalised(np.array([score for score in scores if score is not None]), self.method.normalization)
        initial = normalised(np.array([result["score"] for result in within], float), self.method.normalization)
        there = np.array([score is not None for score in scores], bool)
        frame_side = initial.copy()
        frame_side[there] = known
        if self.method.missing == "impute" and there.any() and not there.all():
            imputed = np.array(predicted(initial[there].tolist(), known.tolist(), initial[~there].tolist()))
            frame_side[~there] = imputed.clip(0, 1) if self.method.normalization == "minmax" else imputed
        blends = self.method.alpha * initial + (1 - self.method.alpha) * frame_side
        expected = []
        for record, cosine, score, blended in zip(found, cosines, scores, blends, strict=True):
            if record is None or cosine is None:
                expected.append(Expectation("not_embedded", float(blended)))
                continue
            near = np.flatnonzero(cosine >= cosine.max() - COSINE_TIE)
            moments = tuple(1000 * record.times[index] for index in near)
            expected.append(Expectation("reranked", float(blended), score, moments))
        below = len(self.results) - len(within)
        return expected + [Expectation("below_depth", None)] * below

    def check(self, reranked: Sequence[Mapping[str, Any]]) -> None:
        """Compare what the service emitted with the expectation, candidate by candidate and as an order."""
        assert [result["rank"] for result in reranked] == list(range(1, len(self.results) + 1))
        ranks = [result["initial_rank"] for result in reranked]
        assert sorted(ranks) == list(range(1, len(self.results) + 1))
        for result in reranked:
            position = result["initial_rank"] - 1
            given = self.results[position]
            assert (result["clip_id"], result["initial_score"]) == (given["clip_id"], given["score"])
            check_candidate(result, self.expected[position])
        inside = min(self.method.depth, len(self.results))
        assert ranks[inside:] == list(range(inside + 1, len(self.results) + 1)), "the rest follows in its old order"
        check_order(reranked[:inside], [self.expected[rank - 1] for rank in ranks[:inside]])


def close(actual: float, expected: float) -> bool:
    """Tell whether two scores agree: absolutely, and for an engine's huge scores to a double's precision."""
    return abs(actual - expected) < max(SCORE_TOLERANCE, 1e-9 * abs(expected))


def check_candidate(result: Mapping[str, Any], expected: Expectation) -> None:
    """Compare one emitted candidate with what the definition says of it."""
    assert result["status"] == expected.status, result
    if expected.score is None:
        assert result["score"] is None, result
    else:
        assert close(result["score"], expected.score), (result, expected)
    if expected.frame_score is None:
        assert result["frame_score"] is None, result
        assert result["moment_ms"] is None, result
    else:
        assert abs(result["frame_score"] - expected.frame_score) < SCORE_TOLERANCE, (result, expected)
        # A frame's exact time is rarely a whole millisecond; the nearest one is meant.
        nearest = [moment for moment in expected.moments if abs(result["moment_ms"] - moment) <= Fraction(1, 2)]
        assert nearest, (result, [float(moment) for moment in expected.moments])


def check_order(reranked: Sequence[Mapping[str, Any]], expected: Sequence[Expectation]) -> None:
    """Show that scores fall, ties keep the engine's order and no real gap is the wrong way round."""
    for before, after in itertools.pairwise(reranked):
        assert before["score"] >= after["score"]
        if before["score"] == after["score"]:
            assert before["initial_rank"] < after["initial_rank"], "ties keep the initial order"
    for higher, lower in itertools.pairwise(expected):
        assert higher.score is not None
        assert lower.score is not None
        assert higher.score >= lower.score or close(higher.score, lower.score), (higher, lower)
