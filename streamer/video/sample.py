"""From a local video file to sampled RGB frames.

The definition, so that anyone can recompute it from what a plain decoder shows:

- The video is the container's first stream marked as default, or else its first one; attached pictures (cover
  art) are not counted. Its frames are all that the decoder gives, in the order given.
- p, a frame's presentation time, is FFmpeg's best-effort timestamp: the pts, as long as pts advance from frame
  to frame; where they are missing or were found to step back, the dts; where that is missing too, the end of
  the frame before. A frame that steps back all the same is passed over. Times are exact, in ticks of the
  stream's time base.
- duration = (p + d of the packet that ends last) - (p of the packet that begins first), over the stream's
  packets, without those that an edit list discards; p is a packet's pts, or else its dts, or else the end of
  the packet before, and d its duration, or one frame at the stream's average rate where none is stated.
- step = ``interval`` (the decimal number as written), or duration / ``max_frames`` where that is longer.
- t_k = p of the first frame + k * step, for k = 0 .. ``max_frames`` - 1, as far as t_k is not after p of the
  last frame. The frame of t_k is the last one with p <= t_k; a frame is taken once.
- A sample's time is its frame's p minus the first frame's, rounded to milliseconds (half to even).
- Pixels are what PyAV's ``to_ndarray(format="rgb24")`` gives, then turned and mirrored by the frame's display
  matrix, if that is made of quarter turns. The sample aspect ratio is not applied.

Damage: packets that do not decode are passed over, as the ffmpeg program does, and where the container breaks
off the stream ends. What is left is sampled.
"""

from __future__ import annotations

import contextlib
import math
from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import av
import numpy as np
import numpy.typing as npt
from av.stream import Disposition

from streamer.events import Reason
from streamer.video.errors import ClipError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from pathlib import Path

    from av.container import InputContainer

T = TypeVar("T")

_FORMATS = (
    "mov,matroska,avi,mpegts,mpeg,mxf,flv,asf,ogg,nut,ivf,obu,h264,hevc,m4v,mpegvideo,mjpeg,dv,rm,"
    "gif,apng,webp_pipe,yuv4mpegpipe,mp3,aac,flac,wav"
)
"""Containers that are opened (audio among them, to be told apart from garbage). Not among them are those that
name further files or hosts to read, such as playlists (hls, dash, concat) and image sequences."""

_DAMAGE = (av.error.FFmpegError, ArithmeticError, AssertionError, MemoryError, RuntimeError, ValueError)
"""What PyAV raises for a file's content: FFmpeg's own errors, and those of the bindings for values that they
did not expect."""


@dataclass(frozen=True, slots=True)
class Sampling:
    """How clips are sampled, and how large they may be.

    ``interval``: seconds between samples, > 0. ``max_frames``: most samples of a clip, >= 1. ``max_pixels``: of a
    frame; ``max_seconds``: of a clip; ``max_packets``: encoded frames of a clip.
    """

    interval: float
    max_frames: int
    max_pixels: int = 8192 * 4352
    max_seconds: float = 12 * 3600
    max_packets: int = 2_000_000


@dataclass(frozen=True, slots=True)
class SampledClip(Generic[T]):
    """The sampled frames of a clip, n >= 1, in the order of their times.

    ``times_ms`` (n,): each frame's time from the first frame. ``frames``: what ``prepare`` made of each.
    ``duration_ms``: the clip's length. ``decoded``: how many frames the decoder produced for them. ``partial``:
    something of the video was damaged, and these frames are of what is left.
    """

    times_ms: npt.NDArray[np.uint32]
    frames: list[T]
    duration_ms: int
    decoded: int
    partial: bool


def sample(path: Path, sampling: Sampling, prepare: Callable[[npt.NDArray[np.uint8]], T]) -> SampledClip[T]:
    """Decode a file and sample it as the module's text defines.

    ``prepare`` gets each sampled frame, (height, width, 3) RGB, as soon as it is decoded, so that full-size
    frames never pile up; what it raises passes through.
    Raises :class:`ClipError` and nothing else for whatever the file holds: NOT_FOUND, NO_VIDEO,
    DECODE_FAILED or CLIP_TOO_LARGE.
    """
    with _open(path, sampling) as container:
        if not _pick(container, sampling).codec_context.width:
            # A size over the limit reads as none. Without the limit, and without decoding, it can be told.
            with _open(path, sampling, skip_frame="all") as undecoded:
                _pick(undecoded, sampling)
        duration = _duration(container, sampling)
    step = max(Fraction(str(sampling.interval)), duration / sampling.max_frames)
    with _open(path, sampling) as container:
        video = _Decoder(container, sampling)
        times: list[Fraction] = []
        frames: list[T] = []
        for ticks, frame in select(video, step / video.time_base, sampling.max_frames):
            times.append(ticks * video.time_base)
            frames.append(prepare(_to_rgb(frame)))
        if not frames:
            raise _decode_failed("no frame could be decoded", video.damage)
    times_ms = np.array([round(time * 1000) for time in times], dtype=np.uint32)
    return SampledClip(times_ms, frames, round(duration * 1000), video.decoded, video.damage is not None)


def select(frames: Iterable[tuple[int, T]], step: Fraction, limit: int) -> Iterator[tuple[int, T]]:
    """Pick from (time, frame) pairs in presentation order those that ``step`` samples, at most ``limit``.

    Times and ``step`` share one unit. Gives (time from the first frame, frame), each as soon as the frame
    after it is known; one frame is held at a time.
    """
    start: int | None = None
    held: tuple[int, T] | None = None
    k = 0
    for time, frame in frames:
        if start is None:
            start = time
        offset = time - start
        if held is not None:
            if offset < held[0]:
                continue
            # No t_k that is left is before the held frame, so it is the frame of all those before the new one.
            if k * step < offset:
                yield held
                k = math.ceil(offset / step)
                if k >= limit:
                    return
        held = offset, frame
    if held is not None and k * step <= held[0]:
        yield held


def _open(path: Path, sampling: Sampling, **probing: str) -> InputContainer:
    """Open a container; ``probing`` replaces the options of the decoders by which FFmpeg probes its streams."""
    try:
        return av.open(
            f"file:{path}",
            # A prefix keeps a name such as "concat:a|b" from being read as one of FFmpeg's protocols.
            container_options={"format_whitelist": _FORMATS, "protocol_whitelist": "file"},
            options=probing or {"max_pixels": str(sampling.max_pixels)},
            metadata_errors="replace",
        )
    except av.error.FileNotFoundError as error:
        raise ClipError(Reason.NOT_FOUND, _words(error)) from error
    except _DAMAGE as error:
        raise _decode_failed("not a file of an accepted video format", error) from error


def _pick(container: InputContainer, sampling: Sampling) -> av.VideoStream:
    """Choose the video stream, within the limit of pixels."""
    videos = [s for s in container.streams.video if not s.disposition & Disposition.attached_pic]
    if not videos:
        raise ClipError(Reason.NO_VIDEO, "the file has no video stream")
    stream = next((s for s in videos if s.disposition & Disposition.default), videos[0])
    context = stream.codec_context
    if context is None:  # which PyAV's type does not say
        raise _decode_failed("no decoder for the video's codec")
    if context.width * context.height > sampling.max_pixels:
        raise ClipError(
            Reason.CLIP_TOO_LARGE,
            f"{context.width} x {context.height} pixels a frame, the limit is {sampling.max_pixels} pixels",
        )
    return stream


def _time_base(stream: av.VideoStream) -> Fraction:
    if not stream.time_base:
        raise _decode_failed("the video stream has no time base")
    return stream.time_base


def _frame_ticks(stream: av.VideoStream) -> int:
    """Return the length of one frame at the stream's average rate, in ticks; 0 where no rate is known."""
    rate = stream.average_rate or stream.guessed_rate
    return round(1 / (rate * _time_base(stream))) if rate else 0


class _Timeline:
    """Gives each packet or frame of a stream its presentation time and its end, in ticks."""

    def __init__(self, stream: av.VideoStream) -> None:
        self._period = _frame_ticks(stream)
        self._end = 0

    def place(self, time: int | None, duration: int | None) -> tuple[int, int]:
        time = self._end if time is None else time
        self._end = time + (duration or self._period)
        return time, self._end


class _BestEffort:
    """FFmpeg's best-effort timestamp (guess_correct_pts in libavcodec/decode.c), which PyAV does not show."""

    def __init__(self) -> None:
        self._last_pts: float = -math.inf
        self._last_dts: float = -math.inf
        self._pts_faults = 0  # by how many they exceed those of the dts

    def time(self, pts: int | None, dts: int | None) -> int | None:
        by_pts = dts if pts is None else pts
        by_dts = pts if dts is None else dts
        if by_pts is None or by_dts is None:  # neither is given
            return None
        if pts is not None:
            self._pts_faults += pts <= self._last_pts
        if dts is not None:
            self._pts_faults -= dts <= self._last_dts
        self._last_pts, self._last_dts = by_pts, by_dts
        return by_pts if self._pts_faults <= 0 else by_dts


def _duration(container: InputContainer, sampling: Sampling) -> Fraction:
    """Return the video's duration in seconds from its packets, without decoding."""
    stream = _pick(container, sampling)
    timeline = _Timeline(stream)
    begin: int | None = None
    end: int | None = None
    with contextlib.suppress(*_DAMAGE):  # where the container breaks off
        for packet in container.demux(stream):
            if packet.is_discard or not packet.size:
                continue
            time = packet.dts if packet.pts is None else packet.pts
            shown, over = timeline.place(time, packet.duration)
            begin = shown if begin is None else min(begin, shown)
            end = over if end is None else max(end, over)
    if begin is None or end is None:
        raise _decode_failed("the video stream is empty")
    duration = (end - begin) * _time_base(stream)
    _check_length(duration, sampling)
    return duration


class _Decoder:
    """Iterates over (time in ticks, frame) of a container's video, past what is damaged.

    ``decoded`` counts the frames so far, ``damage`` is the first error that was passed over.
    """

    def __init__(self, container: InputContainer, sampling: Sampling) -> None:
        self._container = container
        self._sampling = sampling
        self._stream = _pick(container, sampling)
        self.time_base = _time_base(self._stream)
        self.decoded = 0
        self.damage: BaseException | None = None
        context = self._stream.codec_context
        # Clips are decoded side by side, which uses the processors better than threads within one of them.
        context.thread_type = "AUTO"
        context.thread_count = 1
        context.options = {"max_pixels": str(sampling.max_pixels)}

    def __iter__(self) -> Iterator[tuple[int, av.VideoFrame]]:
        timeline, best_effort = _Timeline(self._stream), _BestEffort()
        first: int | None = None
        for frame in self._frames():
            self.decoded += 1
            time, _ = timeline.place(best_effort.time(frame.pts, frame.dts), frame.duration)
            first = time if first is None else first
            _check_length((time - first) * self.time_base, self._sampling)
            yield time, frame

    def _frames(self) -> Iterator[av.VideoFrame]:
        packets = self._container.demux(self._stream)
        while True:
            try:
                packet = next(packets, None)
            except _DAMAGE as error:
                self.damage = self.damage or error
                packet = None
            if packet is None:
                return
            try:
                frames = packet.decode()
            except _DAMAGE as error:
                self.damage = self.damage or error
                continue
            yield from frames


def _check_length(duration: Fraction, sampling: Sampling) -> None:
    if duration > sampling.max_seconds:
        raise ClipError(Reason.CLIP_TOO_LARGE, f"{float(duration):.0f} s, the limit is {sampling.max_seconds:.0f} s")


def _to_rgb(frame: av.VideoFrame) -> npt.NDArray[np.uint8]:
    """Convert one frame to contiguous RGB (height, width, 3), upright."""
    try:
        image = frame.to_ndarray(format="rgb24")
    except _DAMAGE as error:
        raise _decode_failed(f"{frame.format.name} frames cannot be converted", error) from error
    return np.ascontiguousarray(_upright(image, frame), dtype=np.uint8)


def _upright(image: npt.NDArray[Any], frame: av.VideoFrame) -> npt.NDArray[Any]:
    """Apply the frame's display matrix where it is made of quarter turns and mirroring."""
    try:
        side_data: Any = frame.side_data.get("DISPLAYMATRIX")
    except ValueError:
        # PyAV cannot name some kinds of side data (EXIF); its own reading of the matrix is left then.
        turns, rest = divmod(frame.rotation, 90)
        return image if rest else np.rot90(image, turns)
    if side_data is None:
        return image
    # FFmpeg's libavutil/display.h: nine numbers (a b u, c d v, x y w); x' = a x + c y, y' = b x + d y.
    a, b, _, c, d, *_ = np.frombuffer(bytes(side_data), dtype=np.int32).tolist()
    if a == d == 0:
        image, a, d = image.swapaxes(0, 1), c, b
    elif b or c:
        return image
    return image[:: -1 if d < 0 else 1, :: -1 if a < 0 else 1]


def _words(error: BaseException) -> str:
    # FFmpeg's words without the path that PyAV adds.
    return (isinstance(error, av.error.FFmpegError) and error.strerror) or str(error) or type(error).__name__


def _decode_failed(what: str, error: BaseException | None = None) -> ClipError:
    return ClipError(Reason.DECODE_FAILED, what if error is None else f"{what}: {_words(error)}")
