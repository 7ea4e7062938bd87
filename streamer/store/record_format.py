"""The binary format of one stored clip, the same for every engine, and its key.

Layout of a record, little-endian, offsets from its start; gaps are zero:

    0   8s   magic; its last byte is the format's version
    8   u64  xxh3_64 of everything that follows
    16  i64  uploaded_at, microseconds since 1970 UTC: the version of the clip
    24  u64  xxh3_64 of the name of the partition of the upload or delete
    32  i64  its order in that partition (:class:`~streamer.store.protocol.Position`)
    40  u64  duration_ms
    48  u32  d, the length of a vector
    52  u32  n, the number of vectors; 0 makes the record a tombstone
    56  u16  length of the id, 0 if the key contains it
    58  u8   precision: 1 float32, 2 float16, 3 int8
    64       id, UTF-8, padded to 4
             times_ms, n x u32
             scales, n x f32, for int8 alone; then padding to 8
             matrix, n x d

The checksum also covers version, position and shape, so that a record that decodes is complete and undamaged.

A key is the model's hash (8 bytes), a tag of 1 or 2 bytes and the id. The tag makes the key's length even: LMDB stores
a small value directly after its key on a 2-byte boundary, and rows of float16 must be aligned. An id that does not fit
into LMDB's limit of 511 bytes is replaced by its hash, and the record contains the id.
"""

from __future__ import annotations

import datetime as dt
import struct
from functools import lru_cache
from hashlib import blake2b
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt
from xxhash import xxh3_64_intdigest

from streamer.store.protocol import EPOCH, Embedding, Position

if TYPE_CHECKING:
    from collections.abc import Sequence

    from streamer.settings import Precision
    from streamer.store.protocol import Clip

IntOrInts = TypeVar("IntOrInts", int, npt.NDArray[np.int64])

MAX_ID_BYTES = 512
"""Longest clip id in bytes of UTF-8; :mod:`streamer.events` sets the same limit."""
PREFIX_BYTES = 8
"""Length of a model's hash, the prefix of its records' keys."""

MAGIC = b"clipvec\x02"
"""The first bytes of every record."""
HEADER_BYTES = 64
"""Length of the header."""
CHECKED_FROM = 16
"""The first byte that the checksum covers."""
_HEADER = struct.Struct("<8sQqQqQIIHB5x")
_SHAPE = struct.Struct("<IIHB5x")
_SHAPE_AT = HEADER_BYTES - _SHAPE.size
_COUNT = struct.Struct("<I")
_COUNT_AT = 52
_LONGEST_TOMBSTONE = HEADER_BYTES + MAX_ID_BYTES

_CODES: dict[Precision, int] = {"float32": 1, "float16": 2, "int8": 3}
DTYPES: dict[int, np.dtype[Any]] = {1: np.dtype("<f4"), 2: np.dtype("<f2"), 3: np.dtype("i1")}
"""The dtype of a matrix by the code of its precision."""
_WIDTHS = {code: dtype.itemsize for code, dtype in DTYPES.items()}
INT8 = _CODES["int8"]
"""The code of the one precision that has scales."""
_TIME = np.dtype("<u4")
_SCALE = np.dtype("<f4")

_ODD, _EVEN, _HASHED = b"\x01", b"\x02\x00", b"\x03\x00"
_MAX_KEY_BYTES = 511
_MAX_PLAIN_ID_BYTES = _MAX_KEY_BYTES - PREFIX_BYTES - len(_EVEN)
_ID_HASH_BYTES = 32


unpack_shape = struct.Struct("<48xII2xB5x").unpack_from
"""Read d, n and the precision's code from a record's header, unchecked."""


class CorruptRecordError(Exception):
    """The bytes are not a record of the requested clip: truncated, foreign, damaged or with other vectors."""


class Version(NamedTuple):
    """What orders events of one clip: microseconds since 1970 UTC, clip or tombstone, and the writer's position."""

    uploaded_us: int
    live: bool
    position: Position


def model_prefix(model_id: str) -> bytes:
    """Return the prefix of the keys of a model's records."""
    return blake2b(model_id.encode(), digest_size=PREFIX_BYTES).digest()


def key(prefix: bytes, clip_id: str) -> bytes:
    """Return the key of a clip's record, of even length. Raises ValueError for an invalid ``clip_id``."""
    raw = clip_id.encode()
    length = len(raw)
    if not 0 < length <= _MAX_PLAIN_ID_BYTES:
        if not 0 < length <= MAX_ID_BYTES:
            raise ValueError(f"a clip id has 1 to {MAX_ID_BYTES} bytes of UTF-8, not {length}")
        # A cryptographic hash, because an uploader who chooses ids could otherwise make two clips share a record.
        return prefix + _HASHED + blake2b(raw, digest_size=_ID_HASH_BYTES).digest()
    return prefix + (_ODD if length & 1 else _EVEN) + raw


def keys(prefix: bytes, clip_ids: Sequence[str]) -> list[bytes]:
    """Return :func:`key` of many ids, faster."""
    by_parity = prefix + _EVEN, prefix + _ODD
    return [
        by_parity[len(raw) & 1] + raw if 0 < len(raw) <= _MAX_PLAIN_ID_BYTES else key(prefix, clip_id)
        for clip_id in clip_ids
        for raw in (clip_id.encode(),)
    ]


def hides_id(at: bytes) -> bool:
    """Return whether this key contains no id, so that only its record does."""
    return at.startswith(_HASHED, PREFIX_BYTES)


def clip_id(at: bytes, value: memoryview) -> str:
    """Return the id of the clip whose record ``value`` was found under the key ``at``."""
    tag = at[PREFIX_BYTES:]
    if tag.startswith(_ODD):
        return tag[len(_ODD) :].decode()
    if tag.startswith(_EVEN):
        return tag[len(_EVEN) :].decode()
    *_, id_length, _ = _open(value)
    return _id_bytes(value, id_length).decode()


def checked(at: bytes, value: memoryview) -> Version:
    """Return the version of the record ``value`` that was found under the key ``at``.

    Raises :class:`CorruptRecordError` if it is damaged or belongs under another key.
    """
    *_, id_length, _ = _open(value)
    try:
        expected = clip_id(at, value)
        belongs = key(at[:PREFIX_BYTES], expected) == at and id_length == len(_carried(expected))
    except ValueError as error:  # not UTF-8, or not a valid id
        raise CorruptRecordError(f"invalid key or id: {error}") from error
    if not belongs:
        raise CorruptRecordError("it is the record of another clip")
    return _version(value)


def named(at: bytes) -> str:
    """Return a key's id in printable form; for a key without an id, the key in hexadecimal."""
    for tag in (_ODD, _EVEN):
        if at.startswith(tag, PREFIX_BYTES):
            return repr(at[PREFIX_BYTES + len(tag) :].decode(errors="backslashreplace"))
    return f"key {at.hex()}"


def microseconds(moment: dt.datetime) -> int:
    """Count the microseconds from 1970 UTC to ``moment``, exactly."""
    return (moment - EPOCH) // dt.timedelta(microseconds=1)


def quantize(
    vectors: npt.NDArray[np.float32], precision: Precision
) -> tuple[npt.NDArray[Any], npt.NDArray[np.float32] | None]:
    """Cast vectors (n, d) to a precision, with the scales (n,) of int8, else None.

    int8: a vector's largest component becomes 127 or -127, and its scale restores it.
    """
    if precision != "int8":
        return vectors.astype(DTYPES[_CODES[precision]], copy=False), None
    scales = np.abs(vectors).max(axis=1) / np.float32(127)
    scales[scales == 0] = 1
    return np.rint(vectors / scales[:, None]).clip(-127, 127).astype(np.int8), scales


def encode(clip: Clip, precision: Precision) -> bytes:
    """Write a clip's record, its vectors cast to ``precision``.

    Raises ValueError if the clip is not as :class:`~streamer.store.protocol.Clip` says.
    """
    vectors = clip.vectors
    if vectors.ndim != 2 or not vectors.size or clip.times_ms.shape != vectors.shape[:1]:  # noqa: PLR2004 - a matrix
        raise ValueError(f"vectors {vectors.shape} and times {clip.times_ms.shape} do not fit together")
    if not np.isfinite(vectors).all():
        raise ValueError(f"the vectors of clip {clip.clip_id!r} are not finite")
    code = _CODES[precision]
    matrix, scales = quantize(vectors, precision)
    times = clip.times_ms.astype(_TIME, copy=False).tobytes()
    if scales is not None:
        times += scales.astype(_SCALE, copy=False).tobytes()
    n, dim = vectors.shape
    raw_id = _carried(clip.clip_id)
    uploaded_us = microseconds(clip.uploaded_at)
    log, order = clip.position.log, clip.position.order
    header = _Header(MAGIC, 0, uploaded_us, log, order, clip.duration_ms, dim, n, len(raw_id), code)
    return _seal(header, raw_id, times, matrix.tobytes())


def encode_tombstone(clip_id: str, tombstone: Version) -> bytes:
    """Write the tombstone of a deleted clip."""
    raw_id = _carried(clip_id)
    log, order = tombstone.position.log, tombstone.position.order
    header = _Header(MAGIC, 0, tombstone.uploaded_us, log, order, 0, 0, 0, len(raw_id), _CODES["float32"])
    return _seal(header, raw_id, b"", b"")


def decode(value: memoryview, clip_id: str, dim: int | None) -> Embedding | None:
    """Read the record of ``clip_id`` without copying; None for a tombstone.

    Raises :class:`CorruptRecordError`, also if the vectors' length is not ``dim``; None accepts any length.
    """
    _, _, uploaded_us, _, _, duration_ms, length, n, id_length, code = _open(value)
    if id_length and _id_bytes(value, id_length) != clip_id.encode():
        raise CorruptRecordError("it is the record of another clip")
    if not n:
        return None
    if dim is not None and length != dim:
        raise CorruptRecordError(f"vectors of length {length}, not {dim}")
    times_at = _times_at(id_length)
    scales = np.ndarray((n,), _SCALE, value, times_at + 4 * n) if code == INT8 else None
    matrix = np.ndarray((n, length), DTYPES[code], value, matrix_at(id_length, n, code))
    return Embedding(matrix, scales, np.ndarray((n,), _TIME, value, times_at), uploaded_us, duration_ms)


def column_bytes(code: int) -> int:
    """Return the bytes that a record has per vector besides its row: a time, and for int8 a scale."""
    return 8 if code == INT8 else 4


def matrix_at(id_length: int, vectors: IntOrInts, code: int) -> IntOrInts:
    """Return the offset of the matrix in a record with ``n`` vectors; also for arrays."""
    return _times_at(id_length) + vectors * column_bytes(code) + 7 & ~7


def version(stored: memoryview | None) -> Version | None:
    """Read a record's version; None if nothing readable is stored."""
    try:
        return None if stored is None else _version(stored)
    except CorruptRecordError:
        return None


def version_at(at: bytes, stored: bytes | memoryview | None) -> Version | None:
    """As :func:`version`, but None if the record stored under ``at`` belongs under another key."""
    try:
        return None if stored is None else checked(at, memoryview(stored))
    except CorruptRecordError:
        return None


def admits(there: Version | None, uploaded_us: int, position: Position) -> bool:
    """Return whether an upload replaces the stored record, by the rules of :class:`~streamer.store.Store`.

    A corrupt record counts as absent: the next upload repairs it.
    """
    if there is None:
        return True
    is_earlier = position.precedes(there.position)
    if there.live:
        return uploaded_us > there.uploaded_us or (uploaded_us == there.uploaded_us and not is_earlier)
    return uploaded_us > there.uploaded_us and not is_earlier


def tombstone(there: Version | None, deleted_us: int, position: Position) -> Version | None:
    """Return the tombstone by which a delete replaces the stored record, None if the delete is ignored."""
    if there is None:
        return Version(deleted_us, False, position)
    if position.precedes(there.position):
        return None
    return Version(there.uploaded_us, False, position)


def outranks(copied: Version, there: Version | None) -> bool:
    """Return whether a record from another store replaces the record stored here.

    A live record counts as its upload, repeated, and a tombstone as its delete, with the tombstone's version. Unlike
    events, copied records arrive in no meaningful order: of equal records the stored one is kept, and for positions in
    different partitions the version decides and then the tombstone, never the order of arrival. No record outranks
    itself, and of two records at most one outranks the other.
    """
    if there is None:
        return True
    if copied.live:
        if there.live and copied.uploaded_us == there.uploaded_us:
            return there.position.precedes(copied.position)
        return copied.uploaded_us > there.uploaded_us and (there.live or not copied.position.precedes(there.position))
    if copied.position.log == there.position.log:
        return there.position.precedes(copied.position)
    return copied.uploaded_us > there.uploaded_us or (copied.uploaded_us == there.uploaded_us and there.live)


def peek(head: bytes) -> tuple[int | None, bool]:
    """Read a clip's upload time, and whether it is a clip, from the header of its record, unchecked.

    A record that is too short counts as a clip without a time.
    """
    if len(head) < HEADER_BYTES:
        return None, True
    _, _, uploaded_us, _, _, _, _, n, _, _ = _HEADER.unpack_from(head)
    return uploaded_us, n > 0


def size(head: bytes) -> int:
    """Return the size of a whole record by its header, unchecked; 0 if the header is not one."""
    return _size(head[_SHAPE_AT:HEADER_BYTES]) if head.startswith(MAGIC) and len(head) >= HEADER_BYTES else 0


@lru_cache(maxsize=1024)
def _size(shape: bytes) -> int:
    """Compute :func:`size` from the end of a header; few of them differ, and a query has a hundred to a thousand."""
    dim, n, id_length, code = _SHAPE.unpack_from(shape)
    if code not in _WIDTHS:
        return 0
    return int(matrix_at(id_length, n, code) + n * dim * _WIDTHS[code])


def largest(dim: int, vectors: int, precision: Precision) -> int:
    """Return the size of the largest record with so many vectors of that length."""
    code = _CODES[precision]
    return matrix_at(MAX_ID_BYTES, vectors, code) + vectors * dim * _WIDTHS[code]


def kind(value: bytes) -> str:
    """Return the precision and length of a record's vectors, such as ``float16 x 512``."""
    dim, _, code = unpack_shape(value)
    return f"{DTYPES[code].name} x {dim}"


def is_live(value: memoryview) -> bool:
    """Return whether a record is a clip, unchecked; mostly by its length alone, without touching its pages."""
    if len(value) > _LONGEST_TOMBSTONE:
        return True
    return len(value) >= HEADER_BYTES and _COUNT.unpack_from(value, _COUNT_AT) != (0,)


class _Header(NamedTuple):
    magic: bytes
    checksum: int
    uploaded_us: int
    log: int
    order: int
    duration_ms: int
    dim: int
    vectors: int
    id_length: int
    code: int


def _carried(clip_id: str) -> bytes:
    raw = clip_id.encode()
    return raw if len(raw) > _MAX_PLAIN_ID_BYTES else b""


def _version(value: memoryview) -> Version:
    _, _, uploaded_us, log, order, _, _, n, _, _ = _open(value)
    return Version(uploaded_us, n > 0, Position(log, order))


def _id_bytes(value: memoryview, length: int) -> bytes:
    return bytes(value[HEADER_BYTES : HEADER_BYTES + length])


def _times_at(id_length: int) -> int:
    return HEADER_BYTES + (id_length + 3 & ~3)


def _seal(header: _Header, raw_id: bytes, columns: bytes, matrix: bytes) -> bytes:
    """Join the parts of a record and insert the checksum; ``columns``: the times and scales."""
    times_at, rows_at = _times_at(header.id_length), matrix_at(header.id_length, header.vectors, header.code)
    record = bytearray(rows_at + len(matrix))
    _HEADER.pack_into(record, 0, *header)
    record[HEADER_BYTES : HEADER_BYTES + len(raw_id)] = raw_id
    record[times_at : times_at + len(columns)] = columns
    record[rows_at:] = matrix
    checksum = xxh3_64_intdigest(memoryview(record)[CHECKED_FROM:])
    _HEADER.pack_into(record, 0, *header._replace(checksum=checksum))
    return bytes(record)


def _open(value: memoryview) -> tuple[bytes, int, int, int, int, int, int, int, int, int]:
    """Return the fields of :class:`_Header` of an undamaged record; a plain tuple for speed."""
    size = len(value)
    if size < HEADER_BYTES:
        raise CorruptRecordError(f"{size} bytes are too few")
    header: tuple[bytes, int, int, int, int, int, int, int, int, int] = _HEADER.unpack_from(value)
    magic, checksum, _, _, _, _, dim, n, id_length, code = header
    if magic != MAGIC:
        raise CorruptRecordError(f"begins with {magic!r}")
    if xxh3_64_intdigest(value[CHECKED_FROM:]) != checksum:
        raise CorruptRecordError("the checksum does not match")
    if code not in _WIDTHS:
        raise CorruptRecordError(f"unknown precision {code}")
    if matrix_at(id_length, n, code) + n * dim * _WIDTHS[code] != size:
        raise CorruptRecordError(f"{n} vectors of length {dim} in {size} bytes")
    return header
