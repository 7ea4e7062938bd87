"""Mutations of mp4 and mov: a tree of boxes, each of which says its size and its kind."""

from __future__ import annotations

import struct
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from random import Random

_PARENTS = {b"moov", b"trak", b"mdia", b"minf", b"stbl", b"edts", b"udta", b"dinf", b"mvex", b"moof", b"traf"}
_TABLES = {b"stts", b"stsc", b"stsz", b"stco", b"co64", b"ctts", b"stss", b"elst", b"stsd", b"trun", b"dref", b"sdtp"}
"""Boxes that begin with version, flags and how many entries there are."""


@dataclass(slots=True)
class _Box:
    kind: bytes
    body: bytes = b""
    inside: list[_Box] = field(default_factory=list)
    size: int | None = None
    """What the box claims, if not the truth."""
    wide: bool = False
    """Whether the size stands in 64 bits."""

    def pack(self) -> bytes:
        body = self.body + b"".join(box.pack() for box in self.inside)
        size = len(body) + (16 if self.wide else 8) if self.size is None else self.size
        if self.wide:
            return struct.pack(">I4sQ", 1, self.kind, size) + body
        return struct.pack(">I4s", size, self.kind) + body


def _parse(content: bytes) -> list[_Box]:
    boxes, at = [], 0
    while at + 8 <= len(content):
        size, kind = struct.unpack_from(">I4s", content, at)
        size = size if size >= 8 else len(content) - at
        body = content[at + 8 : at + size]
        boxes.append(_Box(kind, inside=_parse(body)) if kind in _PARENTS else _Box(kind, body))
        at += size
    return boxes


def _lists(boxes: list[_Box]) -> Iterator[list[_Box]]:
    """Give each list of siblings."""
    yield boxes
    for box in boxes:
        if box.inside:
            yield from _lists(box.inside)


def _pack(boxes: list[_Box]) -> bytes:
    return b"".join(box.pack() for box in boxes)


def _any_list(rng: Random, boxes: list[_Box]) -> list[_Box]:
    return rng.choice(list(_lists(boxes)))


def _any(rng: Random, boxes: list[_Box], kinds: set[bytes] | None = None) -> _Box:
    every = [box for siblings in _lists(boxes) for box in siblings]
    return rng.choice([box for box in every if kinds is None or box.kind in kinds] or every)


def box_swapped(rng: Random, content: bytes) -> bytes:
    boxes = _parse(content)
    one, other = _any_list(rng, boxes), _any_list(rng, boxes)
    i, j = rng.randrange(len(one)), rng.randrange(len(other))
    # Each keeps what is inside, so a box never comes to lie in itself.
    one[i], other[j] = (
        _Box(other[j].kind, other[j].pack()[8:]),
        _Box(one[i].kind, one[i].pack()[8:]),
    )
    return _pack(boxes)


def box_removed(rng: Random, content: bytes) -> bytes:
    boxes = _parse(content)
    siblings = _any_list(rng, boxes)
    del siblings[rng.randrange(len(siblings))]
    return _pack(boxes)


def box_duplicated(rng: Random, content: bytes) -> bytes:
    boxes = _parse(content)
    siblings = _any_list(rng, boxes)
    box = rng.choice(siblings)
    siblings[rng.randrange(len(siblings) + 1) : 0] = [_Box(box.kind, box.pack()[8:])] * rng.choice([1, 1, 2, 1000])
    return _pack(boxes)


def box_renamed(rng: Random, content: bytes) -> bytes:
    boxes = _parse(content)
    _any(rng, boxes).kind = rng.choice([*_PARENTS, *_TABLES, b"free", b"mdat", b"cmov", rng.randbytes(4)])
    return _pack(boxes)


def box_size(rng: Random, content: bytes) -> bytes:
    """Let a box lie about its size."""
    boxes = _parse(content)
    box = _any(rng, boxes)
    box.wide = rng.random() < 0.3
    sizes = [0, 1, 7, 8, 9, len(box.body) // 2, len(box.body) + 1000, 2**31 - 1, 2**32 - 1]
    box.size = rng.choice([*sizes, 2**63 - 1, 2**63, 2**64 - 1] if box.wide else sizes)
    return _pack(boxes)


def box_depth(rng: Random, content: bytes) -> bytes:
    """Nest boxes some thousand deep."""
    boxes = _parse(content)
    kind = rng.choice(sorted(_PARENTS | {b"meta", b"ilst", b"wave"}))
    nested = b""
    for _ in range(rng.choice([100, 10_000])):
        nested = struct.pack(">I4s", len(nested) + 8, kind) + nested
    _any_list(rng, boxes).insert(0, _Box(kind, nested))
    return _pack(boxes)


def table_count(rng: Random, content: bytes) -> bytes:
    """Let a table claim 2**31 entries or none: samples, chunks, edits, offsets."""
    boxes = _parse(content)
    box = _any(rng, boxes, _TABLES)
    at = 8 if box.kind == b"stsz" else 4
    count = struct.pack(">I", rng.choice([0, 1, 2**16, 2**24, 2**31 - 1, 2**31, 2**32 - 1]))
    box.body = box.body[:at] + count + box.body[at + 4 :]
    return _pack(boxes)


def table_entry(rng: Random, content: bytes) -> bytes:
    """Put an extreme number into a table's entry: a sample that lasts for years, one that is said to be 4 GB long."""
    boxes = _parse(content)
    box = _any(rng, boxes, _TABLES)
    if len(box.body) >= 12:
        at = rng.randrange(8, len(box.body) - 3, 4)
        box.body = (
            box.body[:at] + struct.pack(">I", rng.choice([0, 1, 2**31 - 1, 2**31, 2**32 - 1])) + box.body[at + 4 :]
        )
    return _pack(boxes)


def frame_bomb(rng: Random, content: bytes) -> bytes:
    """Claim 2**31 frames that are all one: a table of one run of samples of a constant size."""
    boxes = _parse(content)
    count = rng.choice([2**20, 2**24, 2**31 - 1])
    for siblings in _lists(boxes):
        for box in siblings:
            if box.kind == b"stts":
                box.body = struct.pack(">III", 0, 1, count) + struct.pack(">I", rng.choice([0, 1, 1024]))
            elif box.kind == b"stsz":
                box.body = struct.pack(">III", 0, rng.choice([1, 100]), count)
            elif box.kind == b"stsc":
                box.body = struct.pack(">IIIII", 0, 1, 1, count, 1)
    return _pack(boxes)


def size_bomb(rng: Random, content: bytes) -> bytes:
    """Claim 32k x 32k pixels in the track's header and the sample's description."""
    boxes = _parse(content)
    for siblings in _lists(boxes):
        for box in siblings:
            if box.kind == b"stsd":
                box.body = (
                    box.body[:40]
                    + struct.pack(">HH", *rng.choice([(32_768, 32_768), (65_535, 65_535)]))
                    + box.body[44:]
                )
            elif box.kind == b"tkhd":
                box.body = box.body[:-8] + struct.pack(">II", 32_768 << 16, 32_768 << 16)
    return _pack(boxes)


def clock(rng: Random, content: bytes) -> bytes:
    """Give a header an absurd time scale or duration."""
    boxes = _parse(content)
    box = _any(rng, boxes, {b"mdhd", b"mvhd"})
    at = rng.choice([12, 16])
    box.body = box.body[:at] + struct.pack(">I", rng.choice([0, 1, 2**31 - 1, 2**31, 2**32 - 1])) + box.body[at + 4 :]
    return _pack(boxes)


BOX_MUTATIONS: Sequence[Callable[[Random, bytes], bytes]] = (
    box_swapped, box_removed, box_duplicated, box_renamed, box_size, box_depth, table_count, table_entry, frame_bomb,
    size_bomb, clock,
)  # fmt: skip
