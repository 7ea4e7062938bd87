"""Vectors of clips: the types that stores give and scoring takes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from contextlib import AbstractContextManager


class ClipVectors(Protocol):
    """What is scored of a clip: :class:`streamer.store.Embedding` is one.

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
    """Some clips of one precision, whose vectors lie in one matrix, between rows that mean nothing.

    ``positions`` (m,): which clips. ``lengths`` (m,): how many vectors each has, 1 or more; ``first_rows`` (m,):
    where they begin in ``matrix`` (r, d), ``first_times`` (m,) and ``first_scales`` (m,) where their times and
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
        """Make a block of one clip, without copying."""
        start = np.zeros(1, np.int64)
        lengths = np.array([len(clip.matrix)])
        return cls(np.array([position]), lengths, clip.matrix, start, clip.times_ms, start, clip.scales, start)


class Blocks(Protocol):
    """Some clips, numbered from 0, whose vectors are given in blocks; a clip that is absent is in none of them."""

    def __len__(self) -> int:
        """Return the number of clips, absent ones included."""
        ...

    def blocks(self) -> Iterator[Block]:
        """Give each clip that is present in one block; a block is valid until the next one is asked for.

        A block is complete when it is given: what uses it calls nothing of the one who gave it.
        """
        ...


class VectorReader(Protocol):
    """What reads clips by their ids: each :class:`streamer.store.Store` does."""

    def read(self, clip_ids: Sequence[str]) -> AbstractContextManager[Blocks]:
        """Read clips, in the order of their ids; they may be used until the context ends."""
        ...


class ClipList(list["ClipVectors | None"]):
    """Clips that lie in memory one by one, as :class:`Blocks`; None for an absent one."""

    def blocks(self) -> Iterator[Block]:
        """Give each clip as a block of its own, without copying."""
        return (Block.of(position, clip) for position, clip in enumerate(self) if clip is not None)
