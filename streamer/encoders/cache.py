"""An LRU cache of query vectors in front of an encoder's text tower."""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from collections.abc import Sequence

    from streamer.encoders.protocol import Encoder

MAX_TEXT_BATCH = 64
"""Most queries in one call of the text encoder: larger batches gain little and take more memory."""


class QueryVectors:
    """The vectors of the ``size`` most recently requested queries; 0 caches none.

    For one thread. ``hits`` and ``misses`` sum to the requested queries; a miss is a query that had to be encoded, so a
    query that is repeated in one call is at most one miss.
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

        Exceptions of the encoder pass through; vectors encoded before them are kept.
        """
        distinct = dict.fromkeys(queries)
        found = {query: self._vectors[query] for query in distinct if query in self._vectors}
        missing = [query for query in distinct if query not in found]
        for query in found:
            self._vectors.move_to_end(query)
        for start in range(0, len(missing), MAX_TEXT_BATCH):
            chunk = missing[start : start + MAX_TEXT_BATCH]
            for query, vector in zip(chunk, self._encoder.encode_texts(chunk), strict=True):
                # A view of a row would keep the whole batch in memory.
                found[query] = self._vectors[query] = vector.copy()
            while len(self._vectors) > self._size:
                self._vectors.popitem(last=False)
        self.misses += len(missing)
        self.hits += len(queries) - len(missing)
        if not queries:
            return np.empty((0, self._encoder.dim), np.float32)
        return np.stack([found[query] for query in queries])
