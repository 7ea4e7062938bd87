"""The records of one read: one by one as embeddings, or joined into blocks for scoring.

A query reads a hundred to a thousand records, and creating array objects for each would cost more than its arithmetic.
So a short loop copies each record whole into a buffer and computes its checksum there; headers are checked, and
everything else is done, for all records of a block at once. The size of a block is a compromise: it should still be in
the CPU cache when it is scored, and large enough to amortize two dozen array operations.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, NoReturn, overload

import numpy as np
from xxhash import xxh3_64_intdigest

from streamer.pooling import MAX
from streamer.scoring import ClipScores, FrameScorer
from streamer.store import record_format
from streamer.store.protocol import StoreError
from streamer.store.record_format import CHECKED_FROM, HEADER_BYTES
from streamer.vectors import Block

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterator

    import numpy.typing as npt

    from streamer.store.protocol import Embedding

BLOCK_BYTES = 1 << 21
"""The largest size of a block; a larger record is a separate block, which is not copied."""
_QUAD_BYTES, _WORD_BYTES = 8, 4
_HEAD = np.array([[0], [1], [6], [7]])
"""The 8-byte words of a record's header that are checked: magic, checksum, d and n, id length and precision."""
_MAGIC = int.from_bytes(record_format.MAGIC, "little")


class _Layout:
    """How records of one precision and length of vectors lie in a buffer.

    Each matrix begins at a multiple of its row size, so the buffer is one matrix in which some rows are the headers and
    columns of records.
    """

    def __init__(self, code: int, dim: int) -> None:
        self.code = code
        self.dim = dim
        self.dtype = record_format.DTYPES[code]
        self.row_bytes = dim * self.dtype.itemsize
        self.places: dict[int, tuple[int, int]] = {}
        """For a record's size, its padding after the previous record and its number of vectors."""

    def place(self, size: int) -> tuple[int, int] | None:
        """Compute the entry of ``places``; None if a record of this size has another layout or is too large."""
        vectors = (size - HEADER_BYTES) // (self.row_bytes + record_format.column_bytes(self.code))
        if vectors < 1 or self.row_bytes % _QUAD_BYTES or size > BLOCK_BYTES - self.row_bytes:
            return None
        matrix_at = record_format.matrix_at(0, vectors, self.code)
        if matrix_at + vectors * self.row_bytes != size:
            return None
        return self.places.setdefault(size, (-matrix_at % self.row_bytes, vectors))


_layout = lru_cache(maxsize=8)(_Layout)


class _Buffer:
    """The buffer for the records of one block at a time, with the lists that describe them."""

    def __init__(self) -> None:
        self.bytes = np.zeros(BLOCK_BYTES, np.uint8)
        self.memory = memoryview(self.bytes.data)
        self.quads = self.bytes.view("<u8")
        self.words = self.bytes.view("<u4")
        self.floats = self.bytes.view("<f4")
        self.clear()

    def clear(self) -> None:
        """Empty the buffer."""
        self.places: list[int] = []
        """Three numbers per record: its clip's position, its start, and its number of vectors."""
        self.checksums: list[int] = []

    def block(self, layout: _Layout) -> tuple[Block | None, list[int]]:
        """Return the buffer's block and empty it; the list contains the records that are corrupt.

        Sizes have been checked already. This makes the other checks of :func:`streamer.store.record_format.decode`.
        """
        positions, starts, lengths = np.array(self.places, np.int64).reshape(-1, 3).T
        magic, checksum, shape, kind = self.quads.take(starts // _QUAD_BYTES + _HEAD)
        good = checksum == np.array(self.checksums, np.uint64)
        good &= magic == _MAGIC
        good &= shape == (lengths << 32) + layout.dim
        good &= kind == layout.code << 16
        bad: list[int] = []
        if np.count_nonzero(good) != len(good):
            bad = positions[~good].tolist()
            positions, starts, lengths = positions[good], starts[good], lengths[good]
        self.clear()
        if not len(positions):
            return None, bad
        first_rows = (starts + record_format.matrix_at(0, lengths, layout.code)) // layout.row_bytes
        rows = int(first_rows[-1] + lengths[-1])
        first_times = (starts + HEADER_BYTES) // _WORD_BYTES
        block = Block(
            positions=positions,
            lengths=lengths,
            matrix=self.bytes[: rows * layout.row_bytes].view(layout.dtype).reshape(rows, layout.dim),
            first_rows=first_rows,
            times_ms=self.words,
            first_times=first_times,
            scales=self.floats if layout.code == record_format.INT8 else None,
            first_scales=first_times + lengths,
        )
        return block, bad


_buffers: list[_Buffer] = []
"""Unused buffers: as many as there ever were concurrent reads."""


def _refuse(_: bytes) -> NoReturn:
    raise StoreError("these records cannot be used after their read has ended")


class Records(Sequence["Embedding | None"]):
    """The records of some clips in one snapshot, looked up lazily; None for an absent one.

    Implements :class:`~streamer.store.StoredClips`. ``get`` returns the value under a key; ``on_corrupt`` is called
    with the position of each corrupt record and its error. The snapshot's owner calls :meth:`end`, after which nothing
    returned by this object may be used; later calls raise.
    """

    def __init__(
        self,
        get: Callable[[bytes], memoryview | None],
        keys: Sequence[bytes],
        clip_ids: Sequence[str],
        dim: int | None,
        on_corrupt: Callable[[int, record_format.CorruptRecordError], None],
        *,
        cache_hits: int = 0,
        cache_misses: int = 0,
    ) -> None:
        self.corrupt = 0
        self.cache_hits = cache_hits
        self.cache_misses = cache_misses
        self._get = get
        self._keys = keys
        self._clip_ids = clip_ids
        self._dim = dim
        self._on_corrupt = on_corrupt
        self._embeddings: list[Embedding | None] | None = None

    def __len__(self) -> int:
        return len(self._keys)

    @overload
    def __getitem__(self, index: int) -> Embedding | None: ...
    @overload
    def __getitem__(self, index: slice) -> list[Embedding | None]: ...
    def __getitem__(self, index: int | slice) -> Embedding | list[Embedding | None] | None:
        if self._embeddings is None:
            self._embeddings = [self._embedding(position) for position in range(len(self._keys))]
        return self._embeddings[index]

    def end(self) -> None:
        """Release the snapshot; later calls raise StoreError."""
        self._get = _refuse
        self._embeddings = None

    def scores(self, query: npt.NDArray[np.float32], pooling: str = MAX) -> ClipScores:
        """Score all clips against an L2-normalised query (d,). Raises ValueError if the query is not finite."""
        scorer = FrameScorer(query, len(self), pooling)
        for block in self.blocks():
            scorer.add(block)
        counts = self.corrupt, self.cache_hits, self.cache_misses
        return ClipScores(scorer.scores, (), "", scorer.seconds, *counts)

    def blocks(self) -> Iterator[Block]:
        """Yield the present clips in blocks; each block is valid until the next one is requested."""
        try:
            buffer = _buffers.pop()
        except IndexError:
            buffer = _Buffer()
        positions: Sequence[int] = range(len(self._keys))
        # A block has one precision; there is one round for each, because clips of different precisions may alternate.
        while positions:
            positions = yield from self._round(positions, buffer)
        # Not after an error, when the buffer may be half full.
        _buffers.append(buffer)

    def _round(self, positions: Sequence[int], buffer: _Buffer) -> Generator[Block, None, Sequence[int]]:
        """Yield all records with the layout of the first one; returns the positions of the others."""
        layout = self._layout(positions)
        places, memory = layout.places, buffer.memory
        others: list[int] = []
        keys = self._keys if len(positions) == len(self._keys) else [self._keys[position] for position in positions]
        end = 0
        for position, value in zip(positions, map(self._get, keys), strict=True):
            if value is None:
                continue
            size = len(value)
            place = places.get(size) or layout.place(size)
            if place is None:
                yield from self._apart([position], layout, others)
                continue
            gap, length = place
            start = end + gap
            end = start + size
            if end > BLOCK_BYTES:
                yield from self._joined(buffer, layout, others)
                start = gap
                end = start + size
            memory[start:end] = value
            buffer.places += position, start, length
            # The checksum is of the copy, so that exactly the checked bytes are scored.
            buffer.checksums.append(xxh3_64_intdigest(memory[start + CHECKED_FROM : end]))
        yield from self._joined(buffer, layout, others)
        return others

    def _joined(self, buffer: _Buffer, layout: _Layout, others: list[int]) -> Iterator[Block]:
        if buffer.places:
            block, bad = buffer.block(layout)
            if block is not None:
                yield block
            yield from self._apart(bad, layout, others)

    def _apart(self, positions: Sequence[int], layout: _Layout, others: list[int]) -> Iterator[Block]:
        """Yield the clips that cannot be joined, each as a block; those of another layout are added to the others."""
        for position in positions:
            embedding = self._embedding(position)
            if embedding is None:
                continue
            if embedding.matrix.dtype == layout.dtype and embedding.matrix.shape[1] == layout.dim:
                yield Block.of(position, embedding)
            else:
                others.append(position)

    def _layout(self, positions: Sequence[int]) -> _Layout:
        """Return the layout in the header of the first plausible record."""
        for position in positions:
            value = self._get(self._keys[position])
            if value is not None and len(value) > HEADER_BYTES:
                dim, vectors, code = record_format.unpack_shape(value)
                if dim and vectors and code in record_format.DTYPES and self._dim in {None, dim}:
                    return _layout(code, dim)
        return _layout(record_format.INT8, 1)

    def _embedding(self, position: int) -> Embedding | None:
        value = self._get(self._keys[position])
        try:
            return None if value is None else record_format.decode(value, self._clip_ids[position], self._dim)
        except record_format.CorruptRecordError as error:
            self.corrupt += 1
            self._on_corrupt(position, error)
            return None
