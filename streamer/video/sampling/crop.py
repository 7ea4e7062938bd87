"""The part of a picture that its container says is to be shown: MP4's clean aperture and Matroska's PixelCrop.

libavformat knows it and PyAV does not tell it, so it is read from the file. What cannot be read crops nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterator

    import av
    import numpy.typing as npt
    from av.container import InputContainer

    from streamer.video.sampling.container import Reader, Source

    Image = npt.NDArray[Any]

_MOST_PARTS = 100_000
"""How many boxes or elements are looked at."""
_LARGEST_HEADER = 1 << 20
"""Bytes of a header that are read at once: more than any description of a track."""
_ENTRY_FIELDS = 78
"""Bytes of a visual sample entry before its boxes (ISO/IEC 14496-12, section 12.1.3)."""
_TRACKS, _ENTRY, _TYPE, _VIDEO = 0x1654AE6B, 0xAE, 0x83, 0xE0
_IS_VIDEO = 1
_CROPS = {0x54CC: 0, 0x54BB: 1, 0x54DD: 2, 0x54AA: 3}
_SEGMENT = 0x18538067


class Crop(NamedTuple):
    """Pixels that are cut off on each side, of a picture of ``size`` (width, height) as it is coded."""

    left: int
    top: int
    right: int
    bottom: int
    size: tuple[int, int]

    def applied(self, image: Image, size: tuple[int, int]) -> Image:
        """Cut a picture (height, width, ...), which was ``size`` when it was decoded, and may be smaller now."""
        if size != self.size:
            return image
        height, width = image.shape[:2]
        across, down = width / size[0], height / size[1]
        rows = slice(round(self.top * down), height - round(self.bottom * down))
        return image[rows, round(self.left * across) : width - round(self.right * across)]


def stated_crop(source: Source, container: InputContainer, stream: av.VideoStream) -> Crop | None:
    """Return the crop of a stream of a container that was opened from ``source``; None if there is none."""
    file, size = source.reader(), (stream.codec_context.width, stream.codec_context.height)
    if container.format.name.startswith("mov"):
        found = _clean_aperture(file, source.size, stream.id, size)
    elif container.format.name.startswith("matroska"):
        found = _pixel_crop(file, source.size, container.streams.video.index(stream), size)
    else:
        return None
    if found is None or not any(found[:4]) or min(found[:4]) < 0:
        return None
    return found if found.left + found.right < size[0] and found.top + found.bottom < size[1] else None


# -- MP4 and QuickTime -------------------------------------------------------------------------------------------


def _boxes(file: Reader, begin: int, end: int) -> Iterator[tuple[bytes, int, int]]:
    """Yield type, and begin and end of the content, of the boxes between two offsets."""
    for _ in range(_MOST_PARTS):
        if begin + 8 > end:
            return
        file.seek(begin)
        head = file.read(16)
        length, size = int.from_bytes(head[:4]), 8
        if length == 1:
            length, size = int.from_bytes(head[8:16]), 16
        length = length or end - begin
        if length < size or begin + length > end:
            return
        yield head[4:8], begin + size, begin + length
        begin += length


def _inside(file: Reader, begin: int, end: int, *path: bytes) -> Iterator[tuple[int, int]]:
    """Yield begin and end of the content of all boxes at a path of types."""
    for kind, first, last in _boxes(file, begin, end):
        if kind == path[0]:
            if len(path) == 1:
                yield first, last
            else:
                yield from _inside(file, first, last, *path[1:])


def _content(file: Reader, begin: int, end: int) -> bytes:
    file.seek(begin)
    return file.read(min(end - begin, _LARGEST_HEADER))


def _clean_aperture(file: Reader, length: int, track: int, size: tuple[int, int]) -> Crop | None:
    for begin, end in _inside(file, 0, length, b"moov", b"trak"):
        header = next((_content(file, *place) for place in _inside(file, begin, end, b"tkhd")), b"")
        at = 20 if header[:1] == b"\1" else 12
        if int.from_bytes(header[at : at + 4]) != track:
            continue
        for first, last in _inside(file, begin, end, b"mdia", b"minf", b"stbl", b"stsd"):
            for _, entry, until in _boxes(file, first + 8, last):
                for place in _inside(file, entry + _ENTRY_FIELDS, until, b"clap"):
                    return _crop_of(_content(file, *place), size)
    return None


def _crop_of(aperture: bytes, size: tuple[int, int]) -> Crop | None:
    """Read a clean aperture box (ISO/IEC 14496-12, section 12.1.4): width, height and offset of the centre."""
    numbers = [int.from_bytes(aperture[at : at + 4], signed=at in {16, 24}) for at in range(0, 32, 4)]
    if len(aperture) < 32 or not all(numbers[1::2]):  # noqa: PLR2004
        return None
    wide, high, across, down = (top / bottom for top, bottom in zip(numbers[::2], numbers[1::2], strict=True))
    left, top = round((size[0] - wide) / 2 + across), round((size[1] - high) / 2 + down)
    return Crop(left, top, size[0] - left - round(wide), size[1] - top - round(high), size)


# -- Matroska ----------------------------------------------------------------------------------------------------


def _elements(file: Reader, begin: int, end: int) -> Iterator[tuple[int, int, int]]:
    """Yield id, and begin and end of the content, of the elements between two offsets (RFC 8794)."""
    for _ in range(_MOST_PARTS):
        if begin >= end:
            return
        file.seek(begin)
        head = file.read(12)
        length = 9 - head[0].bit_length() if head else 9
        size = head[length : length + 1]
        extra = 9 - size[0].bit_length() if size else 9
        if length > 4 or extra > 8:  # noqa: PLR2004 - an id has four bytes at most, a length eight
            return
        value = int.from_bytes(head[length : length + extra]) & ((1 << 7 * extra) - 1)
        first = begin + length + extra
        last = end if value == (1 << 7 * extra) - 1 else first + value
        last = min(last, end)
        yield int.from_bytes(head[:length]), first, last
        begin = last


def _pixel_crop(file: Reader, length: int, number: int, size: tuple[int, int]) -> Crop | None:
    """Return the crop of the video track with that number, counted from 0."""
    segment = next((place for kind, *place in _elements(file, 0, length) if kind == _SEGMENT), None)
    tracks = next((place for kind, *place in _elements(file, *segment) if kind == _TRACKS), None) if segment else None
    entries = [place for kind, *place in _elements(file, *tracks) if kind == _ENTRY] if tracks else []
    parts = [{kind: place for kind, *place in _elements(file, *entry)} for entry in entries]
    videos = [each for each in parts if _TYPE in each and _number(file, *each[_TYPE]) == _IS_VIDEO]
    if number >= len(videos) or _VIDEO not in videos[number]:
        return None
    found = [0, 0, 0, 0]
    for kind, *place in _elements(file, *videos[number][_VIDEO]):
        if kind in _CROPS:
            found[_CROPS[kind]] = _number(file, *place)
    left, top, right, bottom = found
    return Crop(left, top, right, bottom, size)


def _number(file: Reader, begin: int, end: int) -> int:
    file.seek(begin)
    return int.from_bytes(file.read(min(end - begin, 8)))
