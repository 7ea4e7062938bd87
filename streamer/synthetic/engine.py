"""The stand-in base engine: one vector per clip, like the engines whose results CLIPRerank reranks.

It uses a degraded view of each clip (few, small and blurred frames) and averages their vectors, so the moment that a
query describes is diluted by the rest of the clip. Its scores are the cosines between the query and these whole-clip
vectors.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from streamer.synthetic.weaker_view import WeakerView
from streamer.video.errors import ClipError
from streamer.video.isolation.pool import decoder_of_one
from streamer.video.sampling.sample import Sampling

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from streamer.encoders import Encoder
    from streamer.settings import Sandbox

_INTERVAL_S = 2.0
_MAX_FRAMES = 16


class BaseEngine:
    """An in-memory index of whole clips, built once."""

    NAME = "whole-clip-mean"

    def __init__(self, encoder: Encoder, clips: Mapping[str, Path], *, sandbox: Sandbox = "require") -> None:
        """Index the clips by id; a file that cannot be decoded is not in the index."""
        self._encoder = encoder
        self._clip_ids: list[str] = []
        vectors = []
        sampling = Sampling(_INTERVAL_S, _MAX_FRAMES)
        with decoder_of_one(sampling, WeakerView(encoder.prepare), sandbox=sandbox) as decoder:
            for clip_id, path in clips.items():
                try:
                    with decoder.sampled(path) as sampled:
                        mean = encoder.encode_images(sampled.frames).reshape(-1, encoder.dim).mean(axis=0)
                except ClipError:
                    continue
                self._clip_ids.append(clip_id)
                vectors.append(mean / np.linalg.norm(mean))
        self._vectors = np.array(vectors, dtype=np.float32).reshape(-1, encoder.dim)

    def rank(self, query: str, *, top: int) -> list[tuple[str, float]]:
        """Return the ``top`` best clips as (clip_id, cosine), best first, ties in the order of indexing."""
        scores = self._vectors @ self._encoder.encode_texts([query])[0]
        best = np.argsort(-scores, kind="stable")[:top]
        return [(self._clip_ids[position], float(scores[position])) for position in best]
