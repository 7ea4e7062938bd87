"""Vectors of clips: the types that stores return and scoring takes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from collections.abc import Iterator


class ClipVectors(Protocol):
    """The vectors of one clip, such as a :class:`streamer.store.Embedding`.

    ``matrix``: (n, d) float32, float16 or int8, n >= 1. ``scales``: (n,) float32 for int8 (vector = row * scale),
    else None. ``times_ms``: (n,) the time of each vector's frame.
    """

    @property
    def matrix(self) -> npt.NDArray[Any]: ...  # noqa: D102 - told above
    @property
    def scales(self) -> npt.NDArray[np.float32] | None: ...  # noqa: D102
    @property
    def times_ms(self) -> npt.NDArray[np.uint32]: ...  # noqa: D102


class Block(NamedTuple):
    """Clips of one precision whose vectors are in one matrix, between unused rows.

    ``positions`` (m,): the clips' numbers. ``lengths`` (m,): the number of vectors of each, 1 or more; ``first_rows``
    (m,): where they begin in ``matrix`` (r, d), ``first_times`` (m,) and ``first_scales`` (m,) where their times and
    scales do in ``times_ms`` and ``scales``. Dtypes and meaning as in :class:`ClipVectors`.
    """

    positions: npt.NDArray[np.int64]
    lengths: npt.NDArray[np.int64]
    matrix: npt.NDArray[Any]
    first_rows: npt.NDArray[np.int64]
    times_ms: npt.NDArray[np.uint32]
    first_times: npt.NDArray[np.int64]
    scales: npt.NDArray[np.float32] | None
    first_scales: npt.NDArray[np.int64]

    @classmethod
    def of(cls, position: int, clip: ClipVectors) -> Block:
        """Return one clip as a block, without copying."""
        start = np.zeros(1, np.int64)
        lengths = np.array([len(clip.matrix)])
        return cls(np.array([position]), lengths, clip.matrix, start, clip.times_ms, start, clip.scales, start)


class Blocks(Protocol):
    """Clips, numbered from 0, whose vectors are read in blocks; an absent clip is in no block."""

    def __len__(self) -> int:
        """Return the number of clips, absent ones included."""
        ...

    def blocks(self) -> Iterator[Block]:
        """Yield blocks, each present clip in exactly one; a block is valid until the next one is requested.

        A yielded block is complete: its consumer calls nothing of its producer.
        """
        ...


class ClipList(list["ClipVectors | None"]):
    """Separate clips in memory as :class:`Blocks`; None for an absent one."""

    def blocks(self) -> Iterator[Block]:
        """Yield each clip as its own block, without copying."""
        return (Block.of(position, clip) for position, clip in enumerate(self) if clip is not None)
