"""Evaluates a model: retrieval and attributes on held-out stills, and reranking of new clips."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from streamer.method import score_clips
from streamer.scoring import rerank
from streamer.store import Embedding
from streamer.synthetic.clips import make_queries, render_clips
from streamer.synthetic.engine import BaseEngine
from streamer.synthetic.measures import average_precision
from streamer.synthetic.scenes import BACKGROUNDS, COLOURS, OBJECTS, Scene, describe
from streamer.vectors import ClipList
from streamer.video.sampling.sample import Sampling, sample

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from streamer.encoders import Encoder
    from streamer.synthetic.stills import Still

FloatArray = npt.NDArray[np.float32]

_BATCH = 64
_INTERVAL_S, _MAX_FRAMES, _ALPHA, _DEPTH = 0.5, 64, 0.4, 100
"""The service's default settings."""


@dataclass(frozen=True, slots=True)
class RerankFigures:
    """Mean average precision over all queries, before and after reranking, and that of chance."""

    chance: float
    before: float
    after: float


def recall(encoder: Encoder, stills: Sequence[Still], *, at: Sequence[int]) -> dict[str, dict[int, float]]:
    """Compute recall@k for retrieving each still's own caption among all, and each caption's own still.

    If stills happen to share a caption, retrieving the other one counts as a miss.
    """
    similarities = _images(encoder, stills) @ _texts(encoder, [still.caption for still in stills]).T
    return {
        "frame to caption": {k: _recall(similarities, k) for k in at},
        "caption to frame": {k: _recall(similarities.T, k) for k in at},
    }


def _recall(similarities: FloatArray, k: int) -> float:
    own = np.diagonal(similarities)[:, None]
    return float(((similarities > own).sum(axis=1) < k).mean())


def _with_item(scene: Scene, **changes: object) -> Scene:
    return replace(scene, items=(replace(scene.items[0], **changes),))  # type: ignore[arg-type]


def _with_colours_swapped(scene: Scene) -> Scene:
    first, second = scene.items
    swapped = replace(first, colour=second.colour), replace(second, colour=first.colour)
    return replace(scene, items=swapped)


def _is_alone(scene: Scene) -> bool:
    return len(scene.items) == 1


@dataclass(frozen=True, slots=True)
class _Question:
    """A choice between captions that differ in one attribute; one of them is true."""

    fits: Callable[[Scene], bool]
    choices: Callable[[Scene], list[Scene]]


_QUESTIONS: dict[str, _Question] = {
    "object": _Question(_is_alone, lambda scene: [_with_item(scene, object=name) for name in OBJECTS]),
    "colour": _Question(_is_alone, lambda scene: [_with_item(scene, colour=name) for name in COLOURS]),
    "count": _Question(
        lambda scene: _is_alone(scene) and scene.items[0].size is None,
        lambda scene: [_with_item(scene, count=count) for count in (1, 2, 3)],
    ),
    "size": _Question(
        lambda scene: _is_alone(scene) and scene.items[0].size is not None,
        lambda scene: [_with_item(scene, size=size) for size in ("small", "large")],
    ),
    "background": _Question(_is_alone, lambda scene: [replace(scene, background=name) for name in BACKGROUNDS]),
    "whose colour": _Question(
        lambda scene: len({item.colour for item in scene.items}) > 1,
        lambda scene: [scene, _with_colours_swapped(scene)],
    ),
}


def attribute_accuracy(encoder: Encoder, stills: Sequence[Still]) -> dict[str, tuple[float, int]]:
    """Compute how often the true value of an attribute scores best, with the rest of the caption given.

    Uses scenes with one kind of object; "whose colour" uses those with two, where the other choice has their colours
    swapped. Returns the share of correct choices and the number of stills by attribute.
    """
    images = _images(encoder, stills)
    result = {}
    for attribute, question in _QUESTIONS.items():
        answers = []
        for still, image in zip(stills, images, strict=True):
            if question.fits(still.scene):
                choices = question.choices(still.scene)
                # The same words for all choices except for the tested attribute.
                texts = [describe(choice, np.random.default_rng(0)) for choice in choices]
                best = int((_texts(encoder, texts) @ image).argmax())
                answers.append(choices[best] == still.scene)
        result[attribute] = (sum(answers) / len(answers), len(answers))
    return result


def rerank_fresh_clips(encoder: Encoder, folder: Path, *, clips: int, queries: int, seed: int) -> RerankFigures:
    """Render clips, let the stand-in engine rank them, rerank, and measure both, with the service's defaults."""
    rendered = render_clips(folder, count=clips, seed=seed)
    asked = make_queries(rendered, count=queries, seed=seed)
    paths = {clip.clip_id: clip.path for clip in rendered}
    engine = BaseEngine(encoder, paths)
    vectors = {clip_id: _embed(encoder, path) for clip_id, path in paths.items()}
    shuffled = np.random.default_rng(seed).permutation(list(paths)).tolist()
    precisions = []
    for query, vector in zip(asked, _texts(encoder, [query.text for query in asked]), strict=True):
        initial = engine.rank(query.text, top=len(paths))
        candidates = [clip_id for clip_id, _ in initial]
        frame_scores, _ = score_clips(vector, ClipList(vectors[clip_id] for clip_id in candidates[:_DEPTH]))
        ranking = rerank(
            np.array([score for _, score in initial]), frame_scores, alpha=_ALPHA, depth=_DEPTH, normalization="minmax"
        )
        after = [candidates[position] for position in ranking.order]
        precisions.append([average_precision(each, query.relevant) for each in (shuffled, candidates, after)])
    return RerankFigures(*(float(mean) for mean in np.mean(precisions, axis=0)))


def _embed(encoder: Encoder, path: Path) -> Embedding:
    sampled = sample(path, Sampling(_INTERVAL_S, _MAX_FRAMES), encoder.prepare)
    vectors = encoder.encode_images(sampled.frames).reshape(-1, encoder.dim)
    times_ms = np.repeat(sampled.times_ms, encoder.vectors_per_frame)
    return Embedding(vectors, None, times_ms, uploaded_us=0, duration_ms=sampled.duration_ms)


def _images(encoder: Encoder, stills: Sequence[Still]) -> FloatArray:
    prepared = [encoder.prepare(still.frame) for still in stills]
    batches = range(0, len(prepared), _BATCH)
    return np.concatenate([encoder.encode_images(prepared[start : start + _BATCH])[:, 0] for start in batches])


def _texts(encoder: Encoder, texts: Sequence[str]) -> FloatArray:
    batches = range(0, len(texts), _BATCH)
    return np.concatenate([encoder.encode_texts(texts[start : start + _BATCH]) for start in batches])
