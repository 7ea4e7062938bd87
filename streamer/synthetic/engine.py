"""The stand-in base engine: one vector per clip, like the engines whose results CLIPRerank reranks.

It uses a degraded view of each clip (few, small and blurred frames) and averages their vectors, so the moment that a
query describes is diluted by the rest of the clip. Its scores are the cosines between the query and these whole-clip
vectors.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
from PIL import Image

from streamer.video.errors import ClipError
from streamer.video.sampling.sample import Sampling, sample

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from streamer.encoders import Encoder, Prepared

_INTERVAL_S = 2.0
_MAX_FRAMES = 16
_VIEW_PIXELS = 48
"""Longer side of the engine's reduced frames, in pixels."""


class BaseEngine:
    """An in-memory index of whole clips, built once."""

    NAME = "whole-clip-mean"

    def __init__(self, encoder: Encoder, clips: Mapping[str, Path]) -> None:
        """Index the clips by id; a file that cannot be decoded is not in the index."""
        self._encoder = encoder
        self._clip_ids: list[str] = []
        vectors = []
        for clip_id, path in clips.items():
            try:
                sampled = sample(path, Sampling(_INTERVAL_S, _MAX_FRAMES), self._see)
            except ClipError:
                continue
            mean = encoder.encode_images(sampled.frames).reshape(-1, encoder.dim).mean(axis=0)
            self._clip_ids.append(clip_id)
            vectors.append(mean / np.linalg.norm(mean))
        self._vectors = np.array(vectors, dtype=np.float32).reshape(-1, encoder.dim)

    def _see(self, frame: npt.NDArray[np.uint8]) -> Prepared:
        picture = Image.fromarray(frame)
        small = picture.copy()
        small.thumbnail((_VIEW_PIXELS, _VIEW_PIXELS))
        # Enlarged again, because a model's preprocessing expects larger frames; the lost detail is not restored.
        return self._encoder.prepare(np.asarray(small.resize(picture.size, Image.Resampling.BILINEAR)))

    def rank(self, query: str, *, top: int) -> list[tuple[str, float]]:
        """Return the ``top`` best clips as (clip_id, cosine), best first, ties in the order of indexing."""
        scores = self._vectors @ self._encoder.encode_texts([query])[0]
        best = np.argsort(-scores, kind="stable")[:top]
        return [(self._clip_ids[position], float(scores[position])) for position in best]
