"""Query vectors, encoded once: an LRU cache in front of an encoder's text tower."""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from collections.abc import Sequence

    from streamer.encoders.protocol import Encoder

MAX_TEXT_BATCH = 64
"""Most queries in one call of the text encoder: beyond it a batch gains little and only takes memory."""


class QueryVectors:
    """The vectors of queries, the ``size`` most recently asked for kept; 0 keeps none.

    For one thread. ``hits`` and ``misses`` add up to the queries asked for; a miss is one that had to be
    encoded, so a query that comes twice in one call is at most one miss.
    """

    def __init__(self, encoder: Encoder, size: int) -> None:
        self.hits = 0
        self.misses = 0
        self._encoder = encoder
        self._size = size
        self._vectors: OrderedDict[str, npt.NDArray[np.float32]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._vectors)

    def get(self, queries: Sequence[str]) -> npt.NDArray[np.float32]:
        """Return the vectors of ``queries``: (n, dim) float32, L2-normalised, a copy.

        What the encoder raises passes through; what was encoded before that is kept.
        """
        distinct = dict.fromkeys(queries)
        found = {query: self._vectors[query] for query in distinct if query in self._vectors}
        missing = [query for query in distinct if query not in found]
        for query in found:
            self._vectors.move_to_end(query)
        for start in range(0, len(missing), MAX_TEXT_BATCH):
            chunk = missing[start : start + MAX_TEXT_BATCH]
            for query, vector in zip(chunk, self._encoder.encode_texts(chunk), strict=True):
                # A row of the batch would keep all of the batch in memory.
                found[query] = self._vectors[query] = vector.copy()
            while len(self._vectors) > self._size:
                self._vectors.popitem(last=False)
        self.misses += len(missing)
        self.hits += len(queries) - len(missing)
        if not queries:
            return np.empty((0, self._encoder.dim), np.float32)
        return np.stack([found[query] for query in queries])
