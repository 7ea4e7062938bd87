"""Small banks for tests, of 60 clips with vectors of length 8."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from streamer.match import Bank

if TYPE_CHECKING:
    import numpy.typing as npt

    from streamer.match import Calibration

DIM = 8
LENGTHS = [1 + number % 4 for number in range(60)]
"""The clips' numbers of vectors."""


class Vectors(NamedTuple):
    """A clip's vectors, without times."""

    matrix: npt.NDArray[np.float16]
    scales: None = None

    @property
    def times_ms(self) -> npt.NDArray[np.uint32]:
        """All are of the clip's start."""
        return np.zeros(len(self.matrix), np.uint32)


def unit_vectors(rng: np.random.Generator, count: int, dim: int = DIM) -> npt.NDArray[np.float32]:
    """Draw vectors (count, dim) of length 1."""
    drawn = rng.standard_normal((count, dim)).astype(np.float32)
    unit: npt.NDArray[np.float32] = drawn / np.linalg.norm(drawn, axis=1, keepdims=True)
    return unit


def bank(calibration: Calibration | None = None, *, model_id: str = "axes", dim: int = DIM) -> Bank:
    """Return always the same bank."""
    matrix = unit_vectors(np.random.default_rng(0), sum(LENGTHS), dim).astype(np.float16)
    return Bank(
        model_id=model_id,
        version="0123456789abcdef",
        clip_ids=[f"bank-{number}" for number in range(len(LENGTHS))],
        lengths=np.array(LENGTHS, np.int64),
        matrix=matrix,
        calibration=calibration,
    )
