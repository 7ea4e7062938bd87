"""Mutations of Matroska and WebM: a tree of EBML elements, whose ids and sizes are numbers of variable length."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from random import Random

_SEGMENT, _TRACKS, _TRACK, _VIDEO, _CLUSTER = 0x18538067, 0x1654AE6B, 0xAE, 0xE0, 0x1F43B675
_PARENTS = {_SEGMENT, _TRACKS, _TRACK, _VIDEO, _CLUSTER, 0x1549A966, 0x114D9B74, 0x1C53BB6B, 0x4DBB, 0xBB, 0xB7, 0xA0}
_WIDTH, _HEIGHT, _TIMECODE_SCALE, _TIMECODE, _DEFAULT_DURATION = 0xB0, 0xBA, 0x2AD7B1, 0xE7, 0x23E383
_UNKNOWN = b"\x01" + b"\xff" * 7


@dataclass(slots=True)
class _Element:
    id: int
    body: bytes = b""
    inside: list[_Element] = field(default_factory=list)
    size: bytes | None = None
    """How the size is written, if not as it is."""

    def pack(self) -> bytes:
        body = self.body + b"".join(element.pack() for element in self.inside)
        return _id(self.id) + (_size(len(body)) if self.size is None else self.size) + body


def _id(number: int) -> bytes:
    return number.to_bytes((number.bit_length() + 7) // 8, "big")


def _size(number: int) -> bytes:
    return (1 << 56 | number).to_bytes(8, "big")


def _read(content: bytes, at: int, *, keep_marker: bool) -> tuple[int, int]:
    """Read a number of variable length; return it and where it ends."""
    length = 9 - content[at].bit_length()
    number = int.from_bytes(content[at : at + length], "big")
    return number if keep_marker else number & ~(1 << 7 * length), at + length


def _parse(content: bytes) -> list[_Element]:
    elements, at = [], 0
    while at < len(content) and content[at]:
        identifier, at = _read(content, at, keep_marker=True)
        if at >= len(content) or not content[at]:
            break
        size, at = _read(content, at, keep_marker=False)
        body = content[at : at + size]
        is_parent = identifier in _PARENTS
        elements.append(_Element(identifier, inside=_parse(body)) if is_parent else _Element(identifier, body))
        at += size
    return elements


def _lists(elements: list[_Element]) -> Iterator[list[_Element]]:
    yield elements
    for element in elements:
        if element.inside:
            yield from _lists(element.inside)


def _pack(elements: list[_Element]) -> bytes:
    return b"".join(element.pack() for element in elements)


def _any_list(rng: Random, elements: list[_Element]) -> list[_Element]:
    return rng.choice(list(_lists(elements)))


def _all(elements: list[_Element]) -> list[_Element]:
    return [element for siblings in _lists(elements) for element in siblings]


def element_removed(rng: Random, content: bytes) -> bytes:
    elements = _parse(content)
    siblings = _any_list(rng, elements)
    del siblings[rng.randrange(len(siblings))]
    return _pack(elements)


def element_duplicated(rng: Random, content: bytes) -> bytes:
    elements = _parse(content)
    siblings = _any_list(rng, elements)
    element = rng.choice(siblings)
    copy = _Element(element.id, b"".join(each.pack() for each in element.inside) or element.body)
    at = rng.randrange(len(siblings) + 1)
    siblings[at:at] = [copy] * rng.choice([1, 1, 2, 1000])
    return _pack(elements)


def element_moved(rng: Random, content: bytes) -> bytes:
    elements = _parse(content)
    siblings = _any_list(rng, elements)
    element = siblings.pop(rng.randrange(len(siblings)))
    other = _any_list(rng, elements)
    other.insert(rng.randrange(len(other) + 1), element)
    return _pack(elements)


def element_size(rng: Random, content: bytes) -> bytes:
    """Let an element lie about its size, or leave it open, as live streams do."""
    elements = _parse(content)
    element = rng.choice(_all(elements))
    element.size = rng.choice([_UNKNOWN, b"\xff", b"\x80", b"\x81", b"\x01\x7f" + b"\xff" * 6, _size(2**31), b"\0"])
    return _pack(elements)


def element_depth(rng: Random, content: bytes) -> bytes:
    elements = _parse(content)
    identifier = rng.choice([_SEGMENT, _CLUSTER, 0xA0, 0x1043A770, 0x1254C367, 0x45B9, 0xB6])
    nested = _Element(identifier)
    packed = b""
    for _ in range(rng.choice([50, 5_000])):
        packed = _Element(nested.id, packed).pack()
    _any_list(rng, elements).insert(0, _Element(identifier, packed))
    return _pack(elements)


def element_number(rng: Random, content: bytes) -> bytes:
    """Give an element that is not a parent an extreme number."""
    elements = _parse(content)
    element = rng.choice([each for each in _all(elements) if not each.inside])
    element.body = rng.choice(
        [b"", b"\0", b"\xff" * 4, b"\x7f" + b"\xff" * 7, b"\xff" * 8, b"\x80" + bytes(7), b"\xff" * 9]
    )
    return _pack(elements)


def element_bomb(rng: Random, content: bytes) -> bytes:
    """Claim 32k x 32k pixels, or a clock in which frames last for years or no time."""
    elements = _parse(content)
    which = rng.choice([(_WIDTH, _HEIGHT), (_TIMECODE_SCALE,), (_TIMECODE,), (_DEFAULT_DURATION,)])
    for element in _all(elements):
        if element.id in which:
            element.body = rng.choice([32_768, 65_535, 2**31 - 1, 2**63 - 1, 1]).to_bytes(8, "big")
    return _pack(elements)


ELEMENT_MUTATIONS: Sequence[Callable[[Random, bytes], bytes]] = (
    element_removed, element_duplicated, element_moved, element_size, element_depth, element_number, element_bomb,
)  # fmt: skip
