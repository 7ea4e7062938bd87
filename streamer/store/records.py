"""The records of one read: one by one as embeddings, or joined into blocks, which is how they are scored.

A query reads a hundred to a thousand records, and making array objects of each would cost more than its
arithmetic. So one pass of plain Python looks each record up, copies it whole into a buffer and checks it there;
what remains is done for all clips of a block at once. A block's size is a compromise: it must still be in the
processor's cache when it is scored, and be worth a dozen array operations.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple, overload

import numpy as np
from xxhash import xxh3_64_intdigest

from streamer.scoring import Block
from streamer.store.record import (
    CHECKED_FROM,
    DTYPES,
    HEADER_BYTES,
    INT8,
    MAGIC,
    CorruptRecordError,
    column_bytes,
    decode,
    unpack_shape,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterator

    from streamer.store.protocol import Embedding

BLOCK_BYTES = 1 << 20
"""What a block holds at most; a larger record is a block of its own, and not copied."""
_WORD_BYTES = 4


class _Layout(NamedTuple):
    """What the records of a block share; ``row_bytes`` of a vector, ``column_bytes`` of its time and scale."""

    code: int
    dim: int
    row_bytes: int
    column_bytes: int

    @classmethod
    def of(cls, code: int, dim: int) -> _Layout:
        return cls(code, dim, dim * DTYPES[code].itemsize, column_bytes(code))


_NO_LAYOUT = _Layout.of(INT8, 1)


class _Buffer:
    """Memory for the records of one block at a time, and the place of each in it."""

    def __init__(self) -> None:
        self.bytes = np.zeros(BLOCK_BYTES, np.uint8)
        self.memory = memoryview(self.bytes.data)
        self.words = self.bytes.view("<u4")
        self.floats = self.bytes.view("<f4")
        self.positions, self.starts, self.lengths = array("q"), array("q"), array("q")

    def block(self, layout: _Layout) -> Block:
        """Describe what lies in the buffer, and begin anew."""
        code, dim, row_bytes, column = layout
        positions, starts, lengths = (
            np.frombuffer(column, np.int64) for column in (self.positions, self.starts, self.lengths)
        )
        self.positions, self.starts, self.lengths = array("q"), array("q"), array("q")
        first_times = (starts + HEADER_BYTES) // _WORD_BYTES
        first_rows = (starts + (HEADER_BYTES + column * lengths + 7 & ~7)) // row_bytes
        rows = first_rows[-1] + lengths[-1]
        return Block(
            positions=positions,
            lengths=lengths,
            matrix=self.bytes[: rows * row_bytes].view(DTYPES[code]).reshape(rows, dim),
            first_rows=first_rows,
            times_ms=self.words,
            first_times=first_times,
            scales=self.floats if code == INT8 else None,
            first_scales=first_times + lengths,
        )


_buffers: list[_Buffer] = []
"""Those that nobody uses just now: as many as there ever were reads at the same time."""


class Records(Sequence["Embedding | None"]):
    """The records of some clips in one snapshot, looked up when they are asked for; None for what is not there.

    ``get`` gives the value under a key; ``corrupt`` is told the position of each corrupt record that is met, and
    what is wrong with it. Neither this nor what comes out of it may be used after the snapshot has ended.
    """

    def __init__(
        self,
        get: Callable[[bytes], memoryview | None],
        keys: Sequence[bytes],
        clip_ids: Sequence[str],
        dim: int | None,
        corrupt: Callable[[int, CorruptRecordError], None],
    ) -> None:
        self._get = get
        self._keys = keys
        self._clip_ids = clip_ids
        self._dim = dim
        self._corrupt = corrupt
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

    def blocks(self) -> Iterator[Block]:
        """Give the clips that are there, joined; each block is valid until the next one is asked for."""
        try:
            buffer = _buffers.pop()
        except IndexError:
            buffer = _Buffer()
        waiting: Sequence[int] = range(len(self._keys))
        # A block has one precision. One round for each, since clips of different ones may alternate.
        while waiting:
            waiting = yield from self._round(waiting, self._layout(waiting), buffer)
        # A read that was left in the middle may still look into its buffer.
        _buffers.append(buffer)

    def _round(
        self, positions: Sequence[int], layout: _Layout, buffer: _Buffer
    ) -> Generator[Block, None, Sequence[int]]:
        """Give what has the layout; returns the positions of the rest."""
        get, keys, memory = self._get, self._keys, buffer.memory
        code, dim, row_bytes, column = layout
        largest = 0 if row_bytes % _WORD_BYTES else BLOCK_BYTES - row_bytes
        rest: list[int] = []
        end = 0
        for position in positions:
            value = get(keys[position])
            if value is None:
                continue
            size = len(value)
            if HEADER_BYTES < size <= largest:
                magic, checksum, length, n, id_length, precision = unpack_shape(value)
                matrix_at = HEADER_BYTES + n * column + 7 & ~7
                if (
                    size == matrix_at + n * row_bytes
                    and length == dim
                    and precision == code
                    and n
                    and not id_length
                    and magic == MAGIC
                ):
                    # A matrix begins on a multiple of its rows' size: so the buffer is one matrix, some rows of
                    # which are what stands before the vectors of a record.
                    start = end + -matrix_at % row_bytes
                    if start + size > BLOCK_BYTES:
                        yield buffer.block(layout)
                        start = -matrix_at % row_bytes
                    after = start + size
                    memory[start:after] = value
                    # Of the copy, so that what is scored is what was checked.
                    if xxh3_64_intdigest(memory[start + CHECKED_FROM : after]) == checksum:
                        end = after
                        buffer.positions.append(position)
                        buffer.starts.append(start)
                        buffer.lengths.append(n)
                        continue
            embedding = self._embedding(position)
            if embedding is None:
                continue
            if embedding.matrix.dtype == DTYPES[code] and embedding.matrix.shape[1] == dim:
                yield Block.of(position, embedding)
            else:
                rest.append(position)
        if buffer.positions:
            yield buffer.block(layout)
        return rest

    def _layout(self, positions: Sequence[int]) -> _Layout:
        """Take the layout of the first record that seems to have one."""
        for position in positions:
            value = self._get(self._keys[position])
            if value is not None and len(value) > HEADER_BYTES:
                _, _, dim, n, _, code = unpack_shape(value)
                if dim and n and code in DTYPES:
                    return _Layout.of(code, dim)
        return _NO_LAYOUT

    def _embedding(self, position: int) -> Embedding | None:
        value = self._get(self._keys[position])
        try:
            return None if value is None else decode(value, self._clip_ids[position], self._dim)
        except CorruptRecordError as error:
            self._corrupt(position, error)
            return None
