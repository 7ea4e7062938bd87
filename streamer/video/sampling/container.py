"""Opens a video file, chooses its video stream, and detects a truncated file.

The file is read through an open descriptor; only :func:`open_clip` opens a path. So the decoding process needs no
permission to open files, and the file that was checked is the file that is read.
"""

from __future__ import annotations

import itertools
import os
import stat
from fractions import Fraction
from typing import TYPE_CHECKING

import av
from av.stream import Disposition

from streamer.events import Reason
from streamer.machine import machine_error
from streamer.video.errors import ClipError, Retry

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from av.container import InputContainer

_FORMATS = (
    "mov,matroska,avi,mpegts,mpeg,mxf,flv,asf,ogg,ivf,obu,h264,hevc,m4v,mpegvideo,mjpeg,dv,"
    "gif,apng,webp_pipe,webp_anim,yuv4mpegpipe,mp3,aac,flac,wav"
)
"""Container formats that are opened. Audio formats are included so that they are reported as having no video. Formats
that refer to other files or hosts are excluded, such as playlists (hls, dash, concat) and image sequences."""

CODECS = frozenset({
    # Cameras, phones and encoders for the web.
    "h264", "hevc", "vp8", "vp9", "libdav1d", "mpeg4", "mjpeg",
    # Editing and broadcasting.
    "prores", "dnxhd", "mpeg2video", "mpeg1video", "dvvideo", "ffv1", "rawvideo", "v210",
    # Archives of web video of past decades.
    "theora", "h263", "flv", "vp6", "vp6f", "msmpeg4v2", "msmpeg4", "wmv1", "wmv2", "wmv3", "vc1",
    # Animated pictures.
    "gif", "apng", "png", "webp",
})  # fmt: skip
"""FFmpeg's decoders that may be opened for any stream: those of its 304 video decoders that are in common use.

Most memory errors are found in the others (of games, screen recorders and scientific pictures), which are rarely used
and rarely maintained. Audio and subtitles are never decoded.
"""
CODEC_WHITELIST = ",".join(sorted(CODECS))

_BUFFER_BYTES = 1 << 16
"""Bytes of one read. Each read calls into Python, which takes 2 us; decoding as many bytes takes a millisecond."""

DAMAGE = (av.error.FFmpegError, ArithmeticError, AssertionError, LookupError, RuntimeError, ValueError)
"""The exceptions that PyAV raises for a file's content: FFmpeg's own errors, and errors of the bindings for unexpected
values. Some are MemoryErrors too, which the content does not cause; they must be caught first."""


_TS_PACKET = 188
"""Bytes of a packet of an MPEG transport stream."""

_STATE_DURATION = frozenset({"mov", "matroska", "flv"})
"""The containers that state a duration in their headers."""

_SEVERAL = 2
"""A stream with so many encoded frames is a film, and no still picture."""

SEGMENT = 0x18538067
"""The id of the element that holds all of a Matroska file but its header."""
_RIFF_HEADER = 8
"""Bytes of a chunk's header, which some programs count as part of what follows."""

_MOST_PARTS = 200_000
"""How many parts of a file are examined to find its end: more than the fragments of any regular file."""


def open_container(source: Source, max_pixels: int, **probing: str) -> InputContainer:
    """Open a container; ``probing`` replaces the options of the decoders with which FFmpeg probes its streams.

    Raises :class:`ClipError`: DECODE_FAILED.
    """
    try:
        container = av.open(
            source.reader(),
            mode="r",
            # No protocol at all: files and hosts to which this file refers are not opened.
            container_options={
                "format_whitelist": _FORMATS,
                "codec_whitelist": CODEC_WHITELIST,
                "protocol_whitelist": "",
            },
            options=probing or {"max_pixels": str(max_pixels)},
            metadata_errors="replace",
            buffer_size=_BUFFER_BYTES,
        )
    except MemoryError:
        raise
    except DAMAGE as error:
        raise decode_failed("not a file of an accepted video format", error) from error
    if container.format.name == "webp_pipe" and _is_animated_webp(source):
        container.close()
        raise decode_failed("animated WebP, which the FFmpeg in use cannot decode")
    return container


def check_unread_size(source: Source, stream: int, max_pixels: int) -> None:
    """Refuse a video whose size was not found because it exceeds the limit. Raises as :func:`pick` does."""
    # Probing without the limit, and without decoding, finds the size.
    with open_container(source, max_pixels, skip_frame="all") as container:
        pick(container, stream, max_pixels)


def videos(container: InputContainer) -> list[av.VideoStream]:
    """Return the video streams without attached pictures, one at least. Raises :class:`ClipError`: NO_VIDEO."""
    found = [s for s in container.streams.video if not s.disposition & Disposition.attached_pic]
    if not found:
        raise ClipError(Reason.NO_VIDEO, "the file has no video stream")
    return found


def fullest(container: InputContainer, max_packets: int) -> int:
    """Return the index of the video stream to sample where there are several; reads up to ``max_packets`` packets.

    It is one with an accepted codec, if any; of these, one with several encoded frames, or else with one; then one that
    is marked as default; then the one with the largest picture; then the first.
    """
    found = videos(container)
    counts = {stream.index: 0 for stream in found}
    read = container.demux(*found)
    try:
        for packet in itertools.islice(read, max_packets):
            counts[packet.stream.index] += packet.size > 0
            if min(counts.values()) >= _SEVERAL:
                break
    except MemoryError:
        raise
    except DAMAGE:
        pass  # the survey reports it, if it concerns the stream that is chosen

    def rank(stream: av.VideoStream) -> tuple[bool, int, bool, int, int]:
        context = stream.codec_context
        size = context.width * context.height if context is not None else 0
        is_default = bool(stream.disposition & Disposition.default)
        return _is_accepted(stream), min(counts[stream.index], _SEVERAL), is_default, size, -stream.index

    return max(found, key=rank).index


def _is_accepted(stream: av.VideoStream) -> bool:
    context = stream.codec_context
    return context is not None and context.codec.name in CODECS


def pick(container: InputContainer, stream: int, max_pixels: int) -> av.VideoStream:
    """Return the video stream with an index. Raises :class:`ClipError`: DECODE_FAILED or CLIP_TOO_LARGE."""
    found = next(each for each in container.streams.video if each.index == stream)
    context = found.codec_context
    if context is None:  # possible, although PyAV's type annotation excludes it
        raise decode_failed("no decoder for the video's codec")
    if not _is_accepted(found):
        raise decode_failed(f"{context.codec.name} is not an accepted video codec")
    check_pixels(context.width, context.height, max_pixels)
    return found


def check_pixels(width: int, height: int, max_pixels: int) -> None:
    """Raise CLIP_TOO_LARGE if a frame exceeds the limit."""
    if width * height > max_pixels:
        raise ClipError(Reason.CLIP_TOO_LARGE, f"{width} x {height} pixels a frame, the limit is {max_pixels} pixels")


def stores_pts(container: InputContainer) -> bool:
    """Return whether presentation times come from the file; AVI stores none, and libavformat generates them."""
    return container.format.name != "avi"


def stated_duration(container: InputContainer) -> Fraction | None:
    """Return the seconds that the file states to last; None if it states nothing, or nothing of its own.

    For other containers, libavformat computes it from the timestamps.
    """
    if container.format.name.partition(",")[0] not in _STATE_DURATION or not container.duration:
        return None
    return Fraction(container.duration, av.time_base)


def time_base(stream: av.VideoStream) -> Fraction:
    """Return the length of one tick in seconds. Raises :class:`ClipError`: DECODE_FAILED."""
    if not stream.time_base:
        raise decode_failed("the video stream has no time base")
    return stream.time_base


def packets(
    container: InputContainer, stream: av.VideoStream, note: Callable[[BaseException], None]
) -> Iterator[av.Packet[av.VideoStream]]:
    """Yield the packets that are not empty; an error that ends the container early is passed to ``note``."""
    read = container.demux(stream)
    while True:
        try:
            packet = next(read, None)
        except MemoryError:
            raise
        except DAMAGE as error:
            note(error)
            return
        if packet is None:
            return
        if packet.size:
            yield packet


def breaks_off(source: Source, stream: av.VideoStream | None = None) -> bool:
    """Return whether the file is truncated: by the container's own structure it should be longer.

    Some writers state too large a box of media. That is no cut if all samples of ``stream``, which has been read, are
    in the file.

    This is known from the boxes of an MP4 or QuickTime file, a Matroska segment, the RIFF chunks of an AVI, and the
    packets of an MPEG transport stream. FFmpeg reports no error for such an end; other containers are not checked.
    """
    file, size = source.reader(), source.size
    head = file.read(_TS_PACKET * 2 + 1)
    if head[::_TS_PACKET] == b"GGG":  # each packet's first byte
        return size % _TS_PACKET > 0
    if head[:4] == b"RIFF":
        end = _riff_end(file, size)
        return end > size and end != size + _RIFF_HEADER
    if head[:4] == b"\x1a\x45\xdf\xa3":
        return _segment_end(file, size) > size
    if head[4:8] in {b"ftyp", b"moov", b"mdat", b"wide", b"free", b"skip"}:
        return _boxes_end(file, size) > size and not _is_whole(stream, size)
    return False


def _is_whole(stream: av.VideoStream | None, size: int) -> bool:
    """Return whether all samples that a stream's index lists are in a file of this size."""
    ends = [entry.pos + entry.size for entry in stream.index_entries] if stream is not None else []
    return bool(ends) and max(ends) <= size


def words(error: BaseException) -> str:
    """Return an error's message without the path that PyAV adds."""
    return (isinstance(error, av.error.FFmpegError) and error.strerror) or str(error) or type(error).__name__


def decode_failed(what: str, error: BaseException | None = None) -> ClipError:
    """Make the error of a clip that cannot be decoded."""
    return ClipError(Reason.DECODE_FAILED, what if error is None else f"{what}: {words(error)}")


def _is_animated_webp(source: Source) -> bool:
    head = source.reader().read(21)
    return len(head) == 21 and head[8:16] == b"WEBPVP8X" and bool(head[20] & 2)  # noqa: PLR2004


def _riff_end(file: Reader, size: int) -> int:
    """Return the offset at which the last RIFF chunk ends; files over 1 GB have several (OpenDML)."""
    at = 0
    for _ in range(_MOST_PARTS):
        if at >= size:
            break
        file.seek(at)
        head = file.read(8)
        length = int.from_bytes(head[4:], "little")
        # A file that was written to a pipe does not contain its length.
        if head[:4] != b"RIFF" or length in {0, 0xFFFFFFFF}:
            return size
        at += 8 + length
    return at


def _segment_end(file: Reader, size: int) -> int:
    """Return the offset at which the Matroska segment ends; 0 if the file does not state it."""
    ends = (end for kind, _, end in itertools.islice(elements(file, 0, size), 2) if kind == SEGMENT)
    return next(ends, None) or 0


def _boxes_end(file: Reader, size: int) -> int:
    """Return the largest offset at which a box of media ends."""
    ends = (end for kind, _, end in boxes(file, 0, size) if kind in {b"mdat", b"moof", b"moov"})
    return max(ends, default=0)


def boxes(file: Reader, begin: int, end: int) -> Iterator[tuple[bytes, int, int]]:
    """Yield type, and begin and end of the content, of the boxes from an offset on (ISO/IEC 14496-12, section 4.2).

    Only the last one may end after ``end``.
    """
    for _ in range(_MOST_PARTS):
        if begin + 8 > end:
            return
        file.seek(begin)
        head = file.read(16)
        length, header = int.from_bytes(head[:4]), 8
        if length == 1:  # a 64-bit length follows
            length, header = int.from_bytes(head[8:]), 16
        elif length == 0:  # the box extends to the end
            length = end - begin
        if length < 8:  # noqa: PLR2004 - the size of the box's own header
            return
        yield head[4:8], begin + min(header, length), begin + length
        begin += length


def elements(file: Reader, begin: int, end: int) -> Iterator[tuple[int, int, int | None]]:
    """Yield id, and begin and end of the content, of the Matroska elements from an offset on (RFC 8794).

    The end is None where it is not stated, and only the last one may be after ``end``.
    """
    for _ in range(_MOST_PARTS):
        if begin >= end:
            return
        file.seek(begin)
        head = file.read(12)
        id_bytes = 9 - head[0].bit_length() if head else 9
        length = head[id_bytes : id_bytes + 1]
        length_bytes = 9 - length[0].bit_length() if length else 9
        if id_bytes > 4 or length_bytes > 8:  # noqa: PLR2004 - no id and no length is longer
            return
        unknown = (1 << 7 * length_bytes) - 1
        value = int.from_bytes(head[id_bytes : id_bytes + length_bytes]) & unknown
        first = begin + id_bytes + length_bytes
        last = first + value if value != unknown else None
        yield int.from_bytes(head[:id_bytes]), first, last
        begin = end if last is None else last


# -- the bytes -----------------------------------------------------------------------------------------------


def open_clip(path: Path) -> int:
    """Open a file for reading and return the descriptor, which the caller must close.

    Raises :class:`ClipError`: NOT_FOUND or DECODE_FAILED; :class:`MachineError` if no descriptor is available.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        if stat.S_ISREG(os.fstat(descriptor).st_mode):
            return descriptor
        os.close(descriptor)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise ClipError(Reason.NOT_FOUND, error.strerror or "not found") from error
    except OSError as error:
        lacking = machine_error(error)
        if lacking is not None:
            raise lacking from error
        raise ClipError(Reason.DECODE_FAILED, f"cannot be opened: {error.strerror}") from error
    raise ClipError(Reason.DECODE_FAILED, "not a regular file")


class Source:
    """A regular file that is open for reading; several readers may use it at the same time.

    ``size``: bytes. Only pread(2) and lseek(2) are called, because fstat is a system call that can also take a path, so
    the filter of system calls has to deny it.
    """

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor
        self.size = os.lseek(descriptor, 0, os.SEEK_END)

    def reader(self) -> Reader:
        """Return a new reader, positioned at the beginning."""
        return Reader(self)


class Reader:
    """A file object for PyAV that reads a source, with its own position."""

    name = ""
    """FFmpeg guesses formats from it; empty, because an untrusted file's name must not decide."""

    def __init__(self, source: Source) -> None:
        self._descriptor = source.descriptor
        self._size = source.size
        self._at = 0

    def read(self, size: int) -> bytes:
        """Return up to ``size`` bytes, none at the end. Raises :class:`ClipError`: FETCH_FAILED."""
        try:
            read = os.pread(self._descriptor, size, self._at)
        except OSError as error:
            # An error of the disk or of the file server.
            detail = f"the file cannot be read: {error.strerror}"
            raise ClipError(Reason.FETCH_FAILED, detail, Retry.FOR_A_WHILE) from error
        self._at += len(read)
        return read

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Move to ``offset`` from the beginning, the current position or the end; return the new position.

        Raises OSError for a negative position.
        """
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self._size}[whence]
        if base + offset < 0:
            raise OSError("a position before the file's beginning")
        self._at = base + offset
        return self._at

    def tell(self) -> int:
        """Return the position."""
        return self._at
