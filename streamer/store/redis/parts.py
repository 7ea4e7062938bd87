"""Records in two parts, for servers whose allocator has coarse size classes.

jemalloc, the allocator of most builds of Redis and Valkey, rounds an allocation up to one of four classes per power of
two: 16,385 bytes take 20,480. A record of 16 vectors of length 512 in float16 has 16,512 bytes and would waste 19 % of
its memory; so would one of 64 vectors, the most that a clip has by default. Two allocations do not: a first part that
fills a class exactly, and the rest.

The first part is stored under the record's key. It begins with the record's header, so whatever needs only that (which
version is stored, is it live, has it changed) is as it is for a whole record. The rest has a key of its own, in the
same bucket and slot. Both are written by one script, read by one command, and replicated together. A record whose first
part is as long as its header says is whole, whatever is stored under the key of the rest: so a record can always be
written whole, which takes one key only, as a cluster requires while its slot migrates.
"""

from __future__ import annotations

from typing import Final

from streamer.store import record_format

_GROUP: Final = 4
"""Size classes per power of two."""
_SMALL: Final = 128
"""Up to this size, classes are a multiple of 16 bytes apart."""
_QUANTUM: Final = 16
_HEADS: Final = ((1 << 8, 3), (1 << 16, 5), (1 << 32, 9))
"""A string shorter than the first number has a header of so many bytes before it; a NUL follows it."""
_KEY_BYTES: Final = 176
"""What a second key takes: the key itself, its entry in the server's table, and the string object."""
LEAST_BYTES: Final = 2_048
"""Shorter records are not worth a second key; the first part of a longer one holds its header and id."""
_LEAST_GAIN: Final = 0.03
"""The least share of a record's memory that parts must save: each costs a reader a look-up."""


def is_rounded(allocator: str) -> bool:
    """Return whether servers with this allocator, as INFO names it, have the size classes of :func:`size_class`."""
    return allocator.startswith("jemalloc")


def size_class(size: int) -> int:
    """Return the bytes that jemalloc takes for an allocation of ``size`` bytes."""
    if size <= _SMALL:
        return max(8, -(-size // _QUANTUM) * _QUANTUM)
    step = (1 << (size - 1).bit_length() - 1) // _GROUP
    return -(-size // step) * step


def string_bytes(length: int) -> int:
    """Return the bytes that a server with jemalloc takes for a string, without its key."""
    return size_class(length + _around(length))


def split(value: bytes) -> tuple[bytes, bytes]:
    """Return the two parts of a record that together take the least memory; the second is empty if one is better."""
    length = len(value)
    if length < LEAST_BYTES:
        return value, b""
    whole = string_bytes(length)
    best, at = whole * (1 - _LEAST_GAIN), length
    room = whole
    for _ in range(_GROUP):
        room = _class_below(room)
        first = room - _around(room)
        if first < length and (total := room + string_bytes(length - first) + _KEY_BYTES) < best:
            best, at = total, first
    return value[:at], value[at:]


def join(first: bytes, rest: bytes | None) -> bytes:
    """Return the record of a first part, and of what is stored under the key of the rest."""
    if rest is None or len(first) >= record_format.size(first):
        return first
    return first + rest


def _around(length: int) -> int:
    return next(head for limit, head in _HEADS if length < limit) + 1


def _class_below(size: int) -> int:
    step = (1 << (size - 1).bit_length() - 1) // _GROUP
    return size - step
