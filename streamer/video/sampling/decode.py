"""Decodes a container's video, completely or only as far as some frames need, and converts frames to upright RGB."""

from __future__ import annotations

from fractions import Fraction
from typing import TYPE_CHECKING, Any, NamedTuple

import av
import av.filter
import numpy as np
import numpy.typing as npt
from av.codec.context import Flags
from av.video.reformatter import Interpolation

from streamer.video.errors import ClipError
from streamer.video.sampling import hdr
from streamer.video.sampling.container import (
    CODEC_WHITELIST,
    DAMAGE,
    SEGMENT,
    boxes,
    check_pixels,
    decode_failed,
    elements,
    packets,
    pick,
    stores_pts,
    time_base,
)
from streamer.video.sampling.orientation import EXIF, EXIF_CODECS, Crop, Matrix, exif_matrix, upright
from streamer.video.sampling.timeline import BestEffort, Clock

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from av.container import InputContainer

    from streamer.video.sampling.container import Reader, Source


_BT709, _BT601, _YCGCO, _BT2020 = 1, 6, 8, 9
_HD, _UHD = 720, 2160


class DeviationError(Exception):
    """The decoder's output differs from what the packets' headers predict."""


class Picture(NamedTuple):
    """A decoded frame, and the matrix that turns it, where that is not among the frame's own data."""

    frame: av.VideoFrame
    matrix: Matrix | None


class Decoder:
    """Decodes the video of a newly opened container once, by either :meth:`all` or :meth:`needed`.

    ``stream``: the index of the video stream. ``oriented``: frames turn the picture from themselves on, as the survey
    has found. ``decoded``: number of frames so far. ``damaged``: whether corrupt or undecodable data was skipped.
    ``error``: the first error of the decoder or the container; None if there was none.
    """

    def __init__(self, container: InputContainer, stream: int, *, max_pixels: int, oriented: bool) -> None:
        self._container = container
        self._max_pixels = max_pixels
        self._stream = pick(container, stream, max_pixels)
        self.time_base = time_base(self._stream)
        self.decoded = 0
        self.damaged = False
        self.error: BaseException | None = None
        context = self._stream.codec_context
        self._oriented = oriented
        self._has_exif = context.codec.canonical_name in EXIF_CODECS
        self._matrix: Matrix | None = None
        # Else a crop on the left is rounded down, to what some processor's instructions can load at once.
        context.flags |= Flags.unaligned
        # Clips are decoded in parallel, which uses the CPUs better than several threads for one clip.
        context.thread_type = "AUTO"
        context.thread_count = 1
        context.options = {"max_pixels": str(max_pixels), "codec_whitelist": CODEC_WHITELIST}

    def all(self) -> Iterator[tuple[int, Picture]]:
        """Yield (time in ticks, picture) for every frame; damaged parts are skipped."""
        clock, best_effort = Clock(self._stream), BestEffort()
        pts_stored = stores_pts(self._container)
        for packet in self._packets():
            for frame in self._decode(packet):
                time, _ = clock.place(best_effort.time(frame.pts if pts_stored else None, frame.dts), frame.duration)
                yield time, Picture(frame, self._matrix)

    def needed(self, runs: Sequence[Sequence[int]], wanted: Iterable[int]) -> Iterator[Picture]:
        """Yield the picture of each pts in ``wanted``, in ascending order, decoding only the packets in ``runs``.

        Raises :class:`DeviationError` as soon as a wanted frame is missing, or a frame is damaged or out of order.
        """
        missing = iter(sorted(wanted))
        wanted = set(wanted)
        last: int | None = None
        for frame in self._runs(runs):
            if self.damaged or frame.pts is None or (last is not None and frame.pts <= last):
                raise DeviationError
            last = frame.pts
            if last in wanted:
                if last != next(missing):
                    raise DeviationError
                yield Picture(frame, self._matrix)
        if self.damaged or next(missing, None) is not None:
            raise DeviationError

    def _runs(self, runs: Sequence[Sequence[int]]) -> Iterator[av.VideoFrame]:
        numbered = enumerate(self._packets())
        for run in runs:
            self._matrix = None  # each packet at which decoding may start has its own, or none before it has one
            numbers = set(run)
            for number, packet in numbered:
                if packet is not None and number in numbers:
                    yield from self._decode(packet)
                if number >= run[-1]:
                    break
            yield from self._decode(None)
            self._stream.codec_context.flush_buffers()

    def _packets(self) -> Iterator[av.Packet[av.VideoStream] | None]:
        """Yield all packets and finally None, which drains the decoder."""
        for packet in packets(self._container, self._stream, self._note):
            self.damaged |= packet.is_corrupt
            yield packet
        yield None

    def _decode(self, packet: av.Packet[av.VideoStream] | None) -> Iterator[av.VideoFrame]:
        context = self._stream.codec_context
        try:
            frames = context.decode(packet)
        except DAMAGE as error:
            # Some decoders store the size that they refused here; HEVC's reports the refusal as a MemoryError.
            check_pixels(context.width, context.height, self._max_pixels)
            if isinstance(error, MemoryError):
                raise
            self._note(error)
            return
        for frame in frames:
            self.decoded += 1
            self.damaged |= frame.is_corrupt
            check_pixels(frame.width, frame.height, self._max_pixels)
            if self._oriented:
                self._matrix = _own_matrix(frame) or self._matrix
            elif self._has_exif and packet is not None:
                self._matrix = exif_matrix(bytes(packet))
            yield frame

    def _note(self, error: BaseException) -> None:
        self.damaged = True
        self.error = self.error or error


class RgbConverter:
    """Converts frames to RGB exactly as the ffmpeg program of the same version does.

    The frame's own colour matrix and range are used, or else BT.601 and the limited range. Interpolation is bicubic,
    the program's default. No flags such as ACCURATE_RND are set, so 8-bit 4:2:0 and 4:2:2 use FFmpeg's fast conversion,
    as in the program. When it interpolates chroma, the program ignores the chroma location and the field order that the
    file states: it assumes samples in the centre between those of the luma, and progressive frames.

    Some files state a matrix that FFmpeg cannot apply and that does not fit their format; players ignore it. The matrix
    that is usual for the frame's size and depth is assumed then, and ``recoloured`` is set.
    """

    def __init__(self, crop: Crop | None = None) -> None:
        """``crop``: what the container cuts off."""
        self.recoloured = False
        self._crop = crop
        self._shape: tuple[int, int, str] | None = None
        self._graph = av.filter.Graph()

    def __call__(self, picture: Picture) -> npt.NDArray[np.uint8]:
        """Convert to a contiguous upright RGB array (height, width, 3), uint8. Raises ClipError: DECODE_FAILED."""
        frame, matrix = picture
        try:
            return self._converted(frame, matrix)
        except ClipError:
            if _fits(frame):
                raise
            frame.colorspace = _usual_matrix(frame)
            found = self._converted(frame, matrix)
            self.recoloured = True
            return found

    def _converted(self, frame: av.VideoFrame, matrix: Matrix | None) -> npt.NDArray[np.uint8]:
        try:
            plain = frame if _is_fast(frame) else self._plain(frame)
            image: npt.NDArray[Any]
            if frame.color_trc in {hdr.PQ, hdr.HLG}:
                image = _tone_mapped(plain, frame.color_trc, frame.color_primaries)
            else:
                image = plain.to_ndarray(format="rgb24", interpolation=Interpolation.BICUBIC, threads=1)
            matrix = matrix or _own_matrix(frame)
        except MemoryError:
            raise
        except DAMAGE as error:
            raise decode_failed(f"{frame.format.name} frames cannot be converted", error) from error
        if self._crop is not None:
            image = self._crop.applied(image, (frame.width, frame.height))
        return np.ascontiguousarray(image if matrix is None else upright(image, matrix), dtype=np.uint8)

    def _plain(self, frame: av.VideoFrame) -> av.VideoFrame:
        """Remove chroma location and field order from the frame, for which PyAV needs a filter."""
        shape = frame.width, frame.height, frame.format.name
        if shape != self._shape:
            self._shape = shape
            self._graph = av.filter.Graph()
            self._graph.threads = 1
            source = self._graph.add_buffer(
                width=frame.width, height=frame.height, format=frame.format, time_base=Fraction(1)
            )
            without = self._graph.add("setparams", "chroma_location=unspecified:field_mode=prog")
            self._graph.link_nodes(source, without, self._graph.add("buffersink")).configure()
        self._graph.push(frame)
        return self._graph.vpull()


def _is_fast(frame: av.VideoFrame) -> bool:
    """Return whether FFmpeg repeats chroma samples (yuv2rgb in libswscale) instead of interpolating them."""
    if frame.interlaced_frame or frame.height % 2:
        return False
    return frame.format.name in {"yuv420p", "yuvj420p", "yuva420p", "yuv422p", "yuvj422p"}


def _fits(frame: av.VideoFrame) -> bool:
    """Return whether a frame may well have the colour matrix that it states.

    YCgCo is used without subsampling; constant luminance and ICtCp need more than 8 bits.
    """
    if frame.colorspace == _YCGCO:
        return len({(each.width, each.height) for each in frame.format.components}) == 1
    return _is_deep(frame) or frame.colorspace == _usual_matrix(frame)


def _usual_matrix(frame: av.VideoFrame) -> int:
    """Return the number (ITU-T H.273) of the colour matrix that is usual for a frame's size and depth."""
    side = min(frame.width, frame.height)
    if side < _HD:
        return _BT601
    return _BT2020 if side >= _UHD and _is_deep(frame) else _BT709


def _is_deep(frame: av.VideoFrame) -> bool:
    return max(each.bits for each in frame.format.components) > 8  # noqa: PLR2004


def _tone_mapped(frame: av.VideoFrame, transfer: int, primaries: int) -> npt.NDArray[np.uint8]:
    """Convert a frame of high dynamic range, at most so large as :data:`streamer.video.sampling.hdr.LARGEST_SIDE`."""
    scale = min(1.0, hdr.LARGEST_SIDE / min(frame.width, frame.height))
    image: npt.NDArray[Any] = frame.to_ndarray(
        format="rgb48le",
        width=max(1, round(frame.width * scale)),
        height=max(1, round(frame.height * scale)),
        interpolation=Interpolation.BICUBIC,
        threads=1,
    )
    return hdr.tone_mapped(image, transfer, primaries)


def _own_matrix(frame: av.VideoFrame) -> Matrix | None:
    """Return the display matrix among a frame's data; None if there is none."""
    # PyAV's side data and their frame reference each other until the garbage collector runs, so large frames would pile
    # up. A copy of a few pixels has the same side data.
    small = frame.reformat(width=8, height=8, format="gray", interpolation=Interpolation.POINT, threads=1)
    try:
        side_data: Any = small.side_data.get("DISPLAYMATRIX")
    except ValueError:
        # PyAV fails on some kinds of side data (EXIF); then use the rotation that it derives from the matrix itself.
        return EXIF.get({90: 8, 180: 3, 270: 6}.get(small.rotation % 360, 1))
    return None if side_data is None else Matrix.of(bytes(side_data))


# -- what the container crops ------------------------------------------------------------------------------------------
#
# libavformat knows it and PyAV does not tell it, so it is read from the file: MP4's clean aperture and Matroska's
# PixelCrop. What cannot be read crops nothing.

_LARGEST_HEADER = 1 << 20
"""Bytes of a header that are read at once: more than any description of a track."""
_ENTRY_FIELDS = 78
"""Bytes of a visual sample entry before its boxes (ISO/IEC 14496-12, section 12.1.3)."""
_TRACKS, _ENTRY, _TYPE, _VIDEO = 0x1654AE6B, 0xAE, 0x83, 0xE0
_IS_VIDEO = 1
_CROPS = {0x54CC: 0, 0x54BB: 1, 0x54DD: 2, 0x54AA: 3}


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


def _boxes(file: Reader, begin: int, end: int) -> Iterator[tuple[bytes, int, int]]:
    """Go through the boxes that end where the one around them does, or before."""
    return (each for each in boxes(file, begin, end) if each[2] <= end)


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


def _elements(file: Reader, begin: int, end: int) -> Iterator[tuple[int, int, int]]:
    """Go through elements; each ends where the one around it does, at the latest."""
    for kind, first, last in elements(file, begin, end):
        if first <= end:
            yield kind, first, end if last is None else min(last, end)


def _pixel_crop(file: Reader, length: int, number: int, size: tuple[int, int]) -> Crop | None:
    """Return the crop of the video track with that number, counted from 0."""
    segment = next((place for kind, *place in _elements(file, 0, length) if kind == SEGMENT), None)
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
