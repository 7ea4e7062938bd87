"""Frames of which a part is masked; computed in the decoder process, which imports only this module."""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy.typing as npt

    Frame = npt.NDArray[np.uint8]

SHARE = 0.1
"""The masked share of a picture."""


@dataclass(frozen=True, slots=True)
class Masked:
    """Prepares frames as ``prepare`` does, after a rectangle of the frame's shape got the frame's mean colour.

    Its place follows from ``seed`` and the frame, so that it is the same each time, and another one in each frame.
    """

    prepare: Callable[[Frame], Frame]
    seed: int
    share: float = SHARE

    def __call__(self, frame: Frame) -> Frame:
        """Prepare one frame (height, width, 3)."""
        return self.prepare(masked(frame, self.seed, self.share))


def masked(frame: Frame, seed: int, share: float = SHARE) -> Frame:
    """Return a copy of a frame (height, width, 3) with ``share`` of its area in its mean colour."""
    height, width = frame.shape[:2]
    tall, wide = (max(1, round(side * share**0.5)) for side in (height, width))
    rng = np.random.default_rng([seed, zlib.crc32(frame.tobytes())])
    top, left = int(rng.integers(height - tall + 1)), int(rng.integers(width - wide + 1))
    changed = frame.copy()
    changed[top : top + tall, left : left + wide] = frame.reshape(-1, frame.shape[2]).mean(axis=0).round()
    return changed
