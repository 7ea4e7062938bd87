"""A simple reranker as one would write it in an afternoon: open_clip, float32 vectors in LMDB, numpy, no code of ours.

Text vectors are cached, as in this project. A clip's record consists of its frames' vectors only, with a frame each
half second; lmdb returns it as bytes, which is its default.
"""

from __future__ import annotations

import argparse
import functools
import os
from datetime import UTC, datetime
from typing import Any

import lmdb
import numpy as np
import numpy.typing as npt
import open_clip
import torch

INPUT, OUTPUT, GROUP = "query.results", "query.reranked", "streamer-rerank"
ALPHA, DEPTH = 0.4, 100
MS_A_FRAME = 500


def arguments() -> argparse.Namespace:
    """Parse the command line, which all peers share."""
    parser = argparse.ArgumentParser()
    parser.add_argument("servers")
    parser.add_argument("prefix")
    parser.add_argument("mode", choices=["throughput", "latency"])
    parser.add_argument("vectors", help="LMDB folder: clip_id -> (n, dim) float32")
    return parser.parse_args()


class Reranker:
    """The method, one event at a time."""

    def __init__(self, vectors: str) -> None:
        model, pretrained = os.environ["STREAMER_MODEL"], os.environ.get("STREAMER_PRETRAINED")
        self._model = open_clip.create_model_and_transforms(model, pretrained=pretrained)[0].eval()
        self._tokenizer = open_clip.get_tokenizer(model)
        self._vectors = lmdb.open(vectors, readonly=True, lock=False, map_size=1 << 40)
        self._text = functools.lru_cache(20_000)(self._encode)

    def _encode(self, query: str) -> npt.NDArray[np.float32]:
        with torch.inference_mode():
            vector = self._model.encode_text(self._tokenizer([query]), normalize=True)
        array: npt.NDArray[np.float32] = vector[0].float().numpy()
        return array

    def __call__(self, event: dict[str, Any]) -> dict[str, Any]:
        """Rerank one query.results event into a query.reranked event."""
        results = event["results"]
        top = results[:DEPTH]
        query = self._text(event["query"])
        frame_scores, moments = np.full(len(top), np.nan), np.zeros(len(top), dtype=int)
        with self._vectors.begin() as transaction:
            for position, candidate in enumerate(top):
                value = transaction.get(candidate["clip_id"].encode())
                if value is None:
                    continue
                cosines = np.frombuffer(value, np.float32).reshape(-1, len(query)) @ query
                best = int(cosines.argmax())
                frame_scores[position] = cosines[best]
                moments[position] = best * MS_A_FRAME
        known = ~np.isnan(frame_scores)
        scores = _minmax(np.array([each["score"] for each in top]))
        scores[known] = ALPHA * scores[known] + (1 - ALPHA) * _minmax(frame_scores[known])
        order = [*np.argsort(-scores, kind="stable"), *range(len(top), len(results))]
        return {
            "query_id": event["query_id"],
            "query": event["query"],
            "engine": event["engine"],
            "issued_at": event["issued_at"],
            "reranked_at": datetime.now(UTC).isoformat(),
            "model_id": os.environ["STREAMER_MODEL"],
            "alpha": ALPHA,
            "depth": DEPTH,
            "normalization": "minmax",
            "degraded": None,
            "results": [
                {
                    "clip_id": results[position]["clip_id"],
                    "rank": rank,
                    "score": float(scores[position]) if position < DEPTH else None,
                    "initial_rank": int(position) + 1,
                    "initial_score": results[position]["score"],
                    "frame_score": float(frame_scores[position]) if position < DEPTH and known[position] else None,
                    "moment_ms": int(moments[position]) if position < DEPTH and known[position] else None,
                    "status": "below_depth" if position >= DEPTH else "reranked" if known[position] else "not_embedded",
                }
                for rank, position in enumerate(order, start=1)
            ],
        }


def _minmax(values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    if not values.size:
        return values
    low, high = values.min(), values.max()
    return (values - low) / (high - low) if high > low else np.full_like(values, 0.5)
