"""Detects sampled frames that nearly equal an earlier one, by a cheap difference.

A record has a row for each sampled frame all the same, with its own time; those of a run have one vector. One row with
the run's first time would score the same and be smaller, but what a record holds could then no longer be told from the
clip and the sampling alone, and the moments at which something is still in view would be lost; what is to be saved is
the encoder's time, some 20 ms of a processor for a frame, against less than a microsecond that a row costs a query.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy.typing as npt

BLOCK = 16
"""Side of the blocks that are compared, in pixels of the prepared frame: half a patch of the usual ViT-B-32."""


def distinct(frames: Sequence[Any], threshold: float) -> tuple[list[Any], list[int]]:
    """Return the frames without near-duplicates, and for each given frame the index of the one that stands for it.

    ``frames``: prepared, (height, width, channels) uint8 of one shape, n >= 1, in the order of their times; with a
    ``threshold`` of 0 they may be anything and all are kept. A run is a frame and those right after it whose
    :func:`difference` to that *first* one is at most the threshold: compared with the one before, a slow movement
    would never be noticed.
    """
    kept = [frames[0]]
    stands_for = [0]
    for frame in frames[1:]:
        if not threshold or difference(kept[-1], frame) > threshold:
            kept.append(frame)
        stands_for.append(len(kept) - 1)
    return kept, stands_for


def difference(one: npt.NDArray[np.uint8], other: npt.NDArray[np.uint8]) -> float:
    """Return the largest mean absolute difference of a block, 0 to 255, over its pixels and channels.

    The mean over the whole frame, which is never larger, would miss what is small: an object of 12 x 12 pixels moves it
    by a three hundredth of what it moves its block.
    """
    apart = np.maximum(one, other) - np.minimum(one, other)
    height, width, channels = apart.shape
    rows, columns = np.arange(0, height, BLOCK), np.arange(0, width, BLOCK)
    by_rows = np.add.reduceat(apart.reshape(height, -1), rows, axis=0, dtype=np.uint32)
    sums = np.add.reduceat(by_rows, columns * channels, axis=1)
    pixels = np.minimum(BLOCK, height - rows)[:, None] * np.minimum(BLOCK, width - columns)
    return float((sums / (pixels * channels)).max())
