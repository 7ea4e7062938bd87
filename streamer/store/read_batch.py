"""The records of one read: one by one as embeddings, or joined into blocks, which is how they are scored.

A query reads a hundred to a thousand records, and making array objects of each would cost more than its
arithmetic. So one short pass of plain Python copies each record whole into a buffer and takes its checksum there;
heads are checked, and everything else is done, for all records of a block at once. A block's size is a
compromise: it should still be in the processor's cache when it is scored, and be worth two dozen array operations.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, NoReturn, overload

import numpy as np
from xxhash import xxh3_64_intdigest

from streamer.store import record_format
from streamer.store.protocol import StoreError
from streamer.store.record_format import CHECKED_FROM, HEADER_BYTES
from streamer.vectors import Block

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterator

    from streamer.store.protocol import Embedding

BLOCK_BYTES = 1 << 21
"""What a block holds at most; a larger record is a block of its own, and not copied."""
_QUAD_BYTES, _WORD_BYTES = 8, 4
_HEAD = np.array([[0], [1], [6], [7]])
"""The quads of a record's head that are checked: magic, checksum, d and n, length of the id and precision."""
_MAGIC = int.from_bytes(record_format.MAGIC, "little")


class _Layout:
    """How records of one precision and length of vectors lie in a buffer.

    A matrix begins on a multiple of its rows' size: so the buffer is one matrix, of which some rows are what
    stands before the vectors of a record.
    """

    def __init__(self, code: int, dim: int) -> None:
        self.code = code
        self.dim = dim
        self.dtype = record_format.DTYPES[code]
        self.row_bytes = dim * self.dtype.itemsize
        self.places: dict[int, tuple[int, int]] = {}
        """For a record's size, how far it keeps from the record before it, and how many vectors it has."""

    def place(self, size: int) -> tuple[int, int] | None:
        """Find what belongs into ``places``; None where a record of this size has another layout or is too large."""
        vectors = (size - HEADER_BYTES) // (self.row_bytes + record_format.column_bytes(self.code))
        if vectors < 1 or self.row_bytes % _QUAD_BYTES or size > BLOCK_BYTES - self.row_bytes:
            return None
        matrix_at = record_format.matrix_at(0, vectors, self.code)
        if matrix_at + vectors * self.row_bytes != size:
            return None
        return self.places.setdefault(size, (-matrix_at % self.row_bytes, vectors))


_layout = lru_cache(maxsize=8)(_Layout)


class _Buffer:
    """Memory for the records of one block at a time, and what is known of each: all that is appended to."""

    def __init__(self) -> None:
        self.bytes = np.zeros(BLOCK_BYTES, np.uint8)
        self.memory = memoryview(self.bytes.data)
        self.quads = self.bytes.view("<u8")
        self.words = self.bytes.view("<u4")
        self.floats = self.bytes.view("<f4")
        self.clear()

    def clear(self) -> None:
        """Begin anew."""
        self.places: list[int] = []
        """Of each record three numbers: its clip's position, where it starts, and how many vectors it has."""
        self.checksums: list[int] = []

    def block(self, layout: _Layout) -> tuple[Block | None, list[int]]:
        """Describe what is in the buffer, and begin anew; the list tells of which records it is not good.

        Sizes fit already. What else :func:`streamer.store.record_format.decode` asks for is asked here.
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
"""Those that nobody uses just now: as many as there ever were reads at the same time."""


def _refuse(_: bytes) -> NoReturn:
    raise StoreError("the read has ended in which these records were looked up")


class Records(Sequence["Embedding | None"]):
    """The records of some clips in one snapshot, looked up when they are asked for; None for what is not there.

    A :class:`~streamer.store.StoredClips`. ``get`` gives the value under a key; ``on_corrupt`` is called with the
    position of each corrupt record that is met, and what is wrong with it. The snapshot's owner calls :meth:`end`,
    after which nothing that came out of this may be used, and this says so itself.
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
        """Let go of the snapshot; StoreError for whoever asks for more."""
        self._get = _refuse
        self._embeddings = None

    def blocks(self) -> Iterator[Block]:
        """Give the clips that are there, joined; each block is valid until the next one is asked for."""
        try:
            buffer = _buffers.pop()
        except IndexError:
            buffer = _Buffer()
        positions: Sequence[int] = range(len(self._keys))
        # A block has one precision. One round for each, since clips of different ones may alternate.
        while positions:
            positions = yield from self._round(positions, buffer)
        # Not where an error ended this before: the buffer may be half full.
        _buffers.append(buffer)

    def _round(self, positions: Sequence[int], buffer: _Buffer) -> Generator[Block, None, Sequence[int]]:
        """Give all records of the layout of the first one; returns the positions of the others."""
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
            # Of the copy: what is scored is what was checked.
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
        """Give the clips that cannot be joined, each as a block; those of another layout are put with the others."""
        for position in positions:
            embedding = self._embedding(position)
            if embedding is None:
                continue
            if embedding.matrix.dtype == layout.dtype and embedding.matrix.shape[1] == layout.dim:
                yield Block.of(position, embedding)
            else:
                others.append(position)

    def _layout(self, positions: Sequence[int]) -> _Layout:
        """Return the layout that the first record claims which seems to be one."""
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
