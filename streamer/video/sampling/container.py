"""Opening a video file: its bytes, which containers, which stream, and whether the file is whole.

The bytes are those of one file, by a descriptor that is open: only :func:`open_clip` opens a path. So the process that
decodes needs no right to open anything, and the file that was checked is the one that is read.
"""

from __future__ import annotations

import os
import stat
from typing import TYPE_CHECKING

import av
from av.stream import Disposition

from streamer.events import Reason
from streamer.video.errors import ClipError, Retry, machine_error

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from fractions import Fraction
    from pathlib import Path

    from av.container import InputContainer

_FORMATS = (
    "mov,matroska,avi,mpegts,mpeg,mxf,flv,asf,ogg,ivf,obu,h264,hevc,m4v,mpegvideo,mjpeg,dv,"
    "gif,apng,webp_pipe,webp_anim,yuv4mpegpipe,mp3,aac,flac,wav"
)
"""Containers that are opened (audio among them, to be told apart from garbage). Not among them are those that
name further files or hosts to read, such as playlists (hls, dash, concat) and image sequences."""

CODECS = frozenset({
    # What cameras, phones and web encoders write.
    "h264", "hevc", "vp8", "vp9", "libdav1d", "mpeg4", "mjpeg",
    # What editing and broadcast hand over.
    "prores", "dnxhd", "mpeg2video", "mpeg1video", "dvvideo", "ffv1", "rawvideo", "v210",
    # Archives of the last decades' web video.
    "theora", "h263", "flv", "vp6", "vp6f", "msmpeg4v2", "msmpeg4", "wmv1", "wmv2", "wmv3", "vc1",
    # Moving pictures.
    "gif", "apng", "png", "webp",
})  # fmt: skip
"""FFmpeg's decoders that may be opened, for whatever stream: of its 304 for video those whose files people have.

The others (of games, of screen recorders, of scientific pictures) are where most faults of memory are found, since
nobody's files use them. Audio and subtitles are never decoded.
"""
CODEC_WHITELIST = ",".join(sorted(CODECS))

_BUFFER_BYTES = 1 << 16
"""Read at a time. Each read is a call of Python, 2 us beside the millisecond in which so many bytes are decoded."""

DAMAGE = (av.error.FFmpegError, ArithmeticError, AssertionError, LookupError, RuntimeError, ValueError)
"""What PyAV raises for a file's content: FFmpeg's own errors, and those of the bindings for values that they
did not expect. Some of them are MemoryErrors too, which are no fault of the content and come first."""


_TS_PACKET = 188
"""Bytes of a packet of an MPEG transport stream."""

_MOST_PARTS = 200_000
"""Of a file that are looked at for its end: more than the fragments of any honest one."""


def open_container(source: Source, max_pixels: int, **probing: str) -> InputContainer:
    """Open a container; ``probing`` replaces the options of the decoders by which FFmpeg probes its streams.

    Raises :class:`ClipError`: DECODE_FAILED.
    """
    try:
        container = av.open(
            source.reader(),
            mode="r",
            # No protocol at all: what a file names is not opened, be it another file or a host.
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


def check_unread_size(source: Source, max_pixels: int) -> None:
    """Refuse a video of which no size was found because it is over the limit. Raises as :func:`pick` does."""
    # Without the limit, and without decoding, the size can be told.
    with open_container(source, max_pixels, skip_frame="all") as container:
        pick(container, max_pixels)


def pick(container: InputContainer, max_pixels: int) -> av.VideoStream:
    """Choose the video stream. Raises :class:`ClipError`: NO_VIDEO, DECODE_FAILED or CLIP_TOO_LARGE."""
    videos = [s for s in container.streams.video if not s.disposition & Disposition.attached_pic]
    if not videos:
        raise ClipError(Reason.NO_VIDEO, "the file has no video stream")
    stream = next((s for s in videos if s.disposition & Disposition.default), videos[0])
    context = stream.codec_context
    if context is None:  # which PyAV's type does not say
        raise decode_failed("no decoder for the video's codec")
    if context.codec.name not in CODECS:
        raise decode_failed(f"{context.codec.name} is no accepted video codec")
    check_pixels(context.width, context.height, max_pixels)
    return stream


def check_pixels(width: int, height: int, max_pixels: int) -> None:
    """Raise CLIP_TOO_LARGE for a frame over the limit."""
    if width * height > max_pixels:
        raise ClipError(Reason.CLIP_TOO_LARGE, f"{width} x {height} pixels a frame, the limit is {max_pixels} pixels")


def stores_pts(container: InputContainer) -> bool:
    """Whether presentation times are from the file; for AVI, which stores none, libavformat makes them up."""
    return container.format.name != "avi"


def time_base(stream: av.VideoStream) -> Fraction:
    """Return the length of one tick in seconds. Raises :class:`ClipError`: DECODE_FAILED."""
    if not stream.time_base:
        raise decode_failed("the video stream has no time base")
    return stream.time_base


def packets(
    container: InputContainer, stream: av.VideoStream, note: Callable[[BaseException], None]
) -> Iterator[av.Packet[av.VideoStream]]:
    """Give the packets that hold something; ``note`` is told the error by which the container breaks off."""
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


def breaks_off(source: Source) -> bool:
    """Whether the container's own structure says that the file goes on behind its end.

    Told by the boxes of an MP4 or QuickTime file, a Matroska segment, an AVI's RIFF chunks and the packets of an
    MPEG transport stream. FFmpeg takes such an end for the regular one, as it does for the other containers.
    """
    file, size = source.reader(), source.size
    head = file.read(_TS_PACKET * 2 + 1)
    if head[::_TS_PACKET] == b"GGG":  # each packet's first byte
        return size % _TS_PACKET > 0
    if head[:4] == b"RIFF":
        return _riff_end(file, size) > size
    if head[:4] == b"\x1a\x45\xdf\xa3":
        return _segment_end(file) > size
    if head[4:8] in {b"ftyp", b"moov", b"mdat", b"wide", b"free", b"skip"}:
        return _boxes_end(file, size) > size
    return False


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
    """Return where the last RIFF chunk ends; files over 1 GB have several (OpenDML)."""
    at = 0
    for _ in range(_MOST_PARTS):
        if at >= size:
            break
        file.seek(at)
        head = file.read(8)
        length = int.from_bytes(head[4:], "little")
        # A file that was written to a pipe states no length.
        if head[:4] != b"RIFF" or length in {0, 0xFFFFFFFF}:
            return size
        at += 8 + length
    return at


def _segment_end(file: Reader) -> int:
    """Return where the Matroska segment ends, 0 where it does not say."""
    file.seek(4)
    _, header = _ebml_length(file)
    file.seek(header, os.SEEK_CUR)
    if file.read(4) != b"\x18\x53\x80\x67":
        return 0
    known, length = _ebml_length(file)
    return file.tell() + length if known else 0


def _ebml_length(file: Reader) -> tuple[bool, int]:
    """Read a variable-length integer (RFC 8794, section 4); all ones mean that it is not known."""
    first = file.read(1)
    extra = 8 - first[0].bit_length() if first else 8
    if extra > 7:  # noqa: PLR2004 - at most seven bytes follow
        return False, 0
    bits = 7 * (extra + 1)
    value = int.from_bytes(first + file.read(extra)) & ((1 << bits) - 1)
    return value != (1 << bits) - 1, value


def _boxes_end(file: Reader, size: int) -> int:
    """Return the furthest that a box of media reaches (ISO/IEC 14496-12, section 4.2)."""
    at = end = 0
    for _ in range(_MOST_PARTS):
        if at + 8 > size:
            break
        file.seek(at)
        head = file.read(16)
        length = int.from_bytes(head[:4])
        if length == 1:  # a 64-bit length follows
            length = int.from_bytes(head[8:])
        elif length == 0:  # up to the end
            return end
        if length < 8:  # noqa: PLR2004 - its own head
            return end
        at += length
        if head[4:8] in {b"mdat", b"moof", b"moov"}:
            end = max(end, at)
    return end


# -- the bytes -----------------------------------------------------------------------------------------------


def open_clip(path: Path) -> int:
    """Open a file for reading and return the descriptor, which is the caller's to close.

    Raises :class:`ClipError`: NOT_FOUND or DECODE_FAILED; :class:`MachineError` where no descriptor is to be had.
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
    """A regular file that is open for reading; several readers may be at it at the same time.

    ``size``: bytes. Only pread(2) and lseek(2) are called: what tells more of a file (fstat) takes paths too, as far as
    a filter of system calls can see.
    """

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor
        self.size = os.lseek(descriptor, 0, os.SEEK_END)

    def reader(self) -> Reader:
        """Return a new reader that stands at the beginning."""
        return Reader(self)


class Reader:
    """Reads a source from a place of its own; what PyAV takes for a file."""

    name = ""
    """By which FFmpeg guesses at formats; a stranger's name tells it nothing."""

    def __init__(self, source: Source) -> None:
        self._descriptor = source.descriptor
        self._size = source.size
        self._at = 0

    def read(self, size: int) -> bytes:
        """Return up to ``size`` bytes, none at the end. Raises :class:`ClipError`: FETCH_FAILED."""
        try:
            read = os.pread(self._descriptor, size, self._at)
        except OSError as error:
            # Of the disk, or the file server behind it.
            detail = f"the file cannot be read: {error.strerror}"
            raise ClipError(Reason.FETCH_FAILED, detail, Retry.FOR_A_WHILE) from error
        self._at += len(read)
        return read

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Move to ``offset`` from the beginning, from here or from the end; return the place. OSError if before 0."""
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self._size}[whence]
        if base + offset < 0:
            raise OSError("a place before the file's beginning")
        self._at = base + offset
        return self._at

    def tell(self) -> int:
        """Return the place."""
        return self._at
