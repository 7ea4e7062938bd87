"""From a local video file to sampled RGB frames.

The definition, by which anyone can recompute the samples with a plain decoder:

- The video stream is the container's only one; attached pictures (cover art) do not count. If there are several, those
  with an accepted codec come first, then those with two encoded frames or more before those with one and with none,
  then those marked as default, then larger pictures, then lower indices. Its frames are all frames that the decoder
  outputs, in that order.
- p, a frame's presentation time, is FFmpeg's best-effort timestamp: the pts, as long as pts increase from frame to
  frame; if they are missing or have decreased, the dts; if that is missing too, the end of the previous frame. AVI
  stores no pts, and those that libavformat generates for it are not used. A frame whose time still is before its
  predecessor's is skipped. Times are exact, in ticks of the stream's time base.
- duration = (p + d of the packet that ends last) - (p of the packet that begins first), over the stream's packets
  without those that an edit list discards. Here p is a packet's pts (except in AVI), or else its dts, or else the end
  of the previous packet; d is its duration, or else that of one frame at the stream's average rate. A duration of one
  tick of a packet that has no time counts as none, since libavformat makes it up.
- Implausible gaps: if a QuickTime, MP4, Matroska or FLV file states a duration, and the packets' is more than twice as
  long, then each step from one packet's p to the next larger one, and each d, that is longer than the stated duration,
  than ten minutes and than 100 median steps is replaced by the median step (the lower one of two), and all later times
  are earlier by the difference.
- step = ``interval`` (the decimal number as written), or duration / ``max_frames`` if that is longer.
- t_k = p of the first frame + k * step, for k = 0 .. ``max_frames`` - 1, as long as k * step < duration, or t_k <= p of
  the last frame. The frame of t_k is the last one with p <= t_k; each frame is sampled at most once.
- A sample's time is its frame's p minus the first frame's, rounded to milliseconds (half to even).
- Pixels are those that the ffmpeg program writes as rgb24, without alpha: converted by the frame's own colour matrix
  and range (if the program cannot apply the stated matrix and it does not fit the format, by the one that is usual for
  the size and depth); cropped as MP4's clean aperture or Matroska's PixelCrop says; then rotated and mirrored by the
  frame's display matrix, or by the orientation in its EXIF data, if its angle, rounded to whole degrees, is a number of
  quarter turns (the program applies all other angles too). A matrix that comes with a frame of H.264 or HEVC (SEI)
  holds until a later frame has another one. A singular matrix turns nothing. The sample aspect ratio is not applied.
  Frames of high dynamic range (PQ, HLG) are tone-mapped (``hdr.py``), which the program does not do.

The same frames are sampled without decoding everything. A first pass over the packets, without decoding, gives the
duration and the time of each frame, and so the frames to sample. Then only the packets that these frames depend on are
decoded: from the last one at which decoding may start (``bitstream.py``) up to the frame itself, without packets on
which no other depends. If a packet has no time, if there is no ``bitstream.py`` reader for the codec, or if the
decoder's output differs from what the packets predict, everything up to the last sample is decoded instead, exactly as
defined above.

An encrypted video is refused.

Damage: packets that do not decode are skipped, as by the ffmpeg program, and a container that cannot be read further
ends the stream. The remaining frames are sampled. Damage in packets that no sample depends on is not noticed.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import numpy as np
import numpy.typing as npt

from streamer.events import Reason
from streamer.video.errors import ClipError, Retry
from streamer.video.sampling.container import (
    Source,
    breaks_off,
    check_unread_size,
    decode_failed,
    fullest,
    open_clip,
    open_container,
    pick,
    videos,
)
from streamer.video.sampling.decode import Decoder, DeviationError, Picture, RgbConverter, stated_crop
from streamer.video.sampling.timeline import Survey, check_length, choose, plan, select, survey

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from av.container import InputContainer

T = TypeVar("T")

BLOCK = 16
"""Side of the blocks by which near-duplicates are compared, in pixels of the prepared frame: half the side of a patch
of ViT-B-32, the most common model."""


_MOST_BACK = 10
"""So many frames whose times go back, or a third of all, are taken for a writer's mistake and not for another film."""


@dataclass(frozen=True, slots=True)
class Sampling:
    """How clips are sampled, and limits on their size.

    ``interval``: seconds between samples, > 0. ``max_frames``: largest number of samples of a clip, >= 1. Limits:
    ``max_pixels`` of a frame, ``max_seconds`` of a clip, and ``max_packets``, encoded frames of a clip.
    ``duplicate_threshold``: largest :func:`difference` of frames that count as near-duplicates, see :func:`distinct`;
    0: all frames are kept.
    """

    interval: float
    max_frames: int
    max_pixels: int = 8192 * 4352
    max_seconds: float = 12 * 3600
    max_packets: int = 2_000_000
    duplicate_threshold: float = 0


@dataclass(frozen=True, slots=True)
class SampledClip(Generic[T]):
    """The sampled frames of a clip, n >= 1, in the order of their times.

    ``times_ms`` (n,): each sample's time after the first frame. ``frames``: the samples as returned by ``prepare``,
    without near-duplicates. ``frame_of`` (n,): for each sample, its index in ``frames``; 0 .. n - 1 if there are no
    near-duplicates. ``duration_ms``: the clip's length. ``decoded``: number of frames that the decoder produced.
    ``partial``: part of the video is damaged, and the samples are from the rest; damage in packets that no sample
    depends on is not noticed. ``recoloured``: the stated colour matrix cannot be applied, and another one was assumed.
    """

    times_ms: npt.NDArray[np.uint32]
    frames: list[T]
    frame_of: npt.NDArray[np.intp]
    duration_ms: int
    decoded: int
    partial: bool
    recoloured: bool = False


def sample(path: Path, sampling: Sampling, prepare: Callable[[npt.NDArray[np.uint8]], T]) -> SampledClip[T]:
    """Sample a trusted file in this process; for untrusted ones see :class:`~streamer.video.isolation.pool.DecodePool`.

    Raises as :func:`sample_descriptor` does, and :class:`ClipError` NOT_FOUND.
    """
    descriptor = open_clip(path)
    try:
        return sample_descriptor(descriptor, sampling, prepare)
    finally:
        os.close(descriptor)


def sample_descriptor(
    descriptor: int, sampling: Sampling, prepare: Callable[[npt.NDArray[np.uint8]], T]
) -> SampledClip[T]:
    """Decode and sample the regular file behind a descriptor, as this module's docstring defines.

    ``prepare`` is called with each sampled frame, (height, width, 3) RGB uint8, as soon as it is decoded, so that
    full-size frames never pile up. It may be called twice for the same frames, if everything has to be decoded after
    all. Its exceptions pass through, except MemoryError. The descriptor stays open.
    For any content of the file, only :class:`ClipError` is raised: NO_VIDEO, DECODE_FAILED, CLIP_TOO_LARGE, or
    FETCH_FAILED if it cannot be read.
    """
    source = Source(descriptor)
    try:
        found = _survey(source, sampling)
        step = max(Fraction(str(sampling.interval)), found.duration / sampling.max_frames)
        taken = _from_needed(source, sampling, found, step, prepare) or _from_all(
            source, sampling, found, step, prepare
        )
        partial = taken.damaged or found.damaged or found.cut
    except MemoryError as error:
        # A retry may succeed, because earlier clips may have left memory in use in this process.
        raise ClipError(Reason.DECODE_FAILED, "not enough memory", Retry.ONCE) from error
    times_ms = np.array([round(ticks * found.time_base * 1000) for ticks in taken.ticks], dtype=np.uint32)
    frames, frame_of = distinct(taken.frames, sampling.duplicate_threshold)
    duration_ms = round(found.duration * 1000)
    return SampledClip(
        times_ms,
        frames,
        np.array(frame_of, dtype=np.intp),
        duration_ms,
        taken.decoded,
        partial=partial,
        recoloured=taken.recoloured,
    )


@dataclass(slots=True)
class _Taken(Generic[T]):
    """Samples: their times after the first frame, in ticks, and what ``prepare`` returned for them."""

    ticks: list[int]
    frames: list[T]
    decoded: int
    damaged: bool
    recoloured: bool


def _survey(source: Source, sampling: Sampling) -> Survey:
    with open_container(source, sampling.max_pixels) as container:
        streams = videos(container)
        if len(streams) == 1:
            return _survey_of(source, container, streams[0].index, sampling)
        index = fullest(container, sampling.max_packets)
    with open_container(source, sampling.max_pixels) as container:  # the other one has read it
        return _survey_of(source, container, index, sampling)


def _survey_of(source: Source, container: InputContainer, index: int, sampling: Sampling) -> Survey:
    stream = pick(container, index, sampling.max_pixels)
    if not stream.codec_context.width:
        check_unread_size(source, index, sampling.max_pixels)
    crop = stated_crop(source, container, stream)
    found = survey(
        container,
        index,
        max_pixels=sampling.max_pixels,
        max_seconds=sampling.max_seconds,
        max_packets=sampling.max_packets,
    )
    found.crop = crop
    found.cut = breaks_off(source, stream)
    return found


def _from_needed(
    source: Source, sampling: Sampling, found: Survey, step: Fraction, prepare: Callable[[npt.NDArray[np.uint8]], T]
) -> _Taken[T] | None:
    """Decode only what the samples depend on; return None if that is not known, or the decoder's output differs."""
    offsets = choose(found, step, sampling.max_frames) if found.exact else None
    if offsets is None:
        return None
    to_rgb = RgbConverter(found.crop)
    with open_container(source, sampling.max_pixels) as container:
        decoder = _decoder(container, sampling, found)
        try:
            frames = [prepare(to_rgb(picture)) for picture in decoder.needed(plan(found, offsets), offsets)]
        except DeviationError:
            return None
        return _Taken(list(offsets.values()), frames, decoder.decoded, damaged=False, recoloured=to_rgb.recoloured)


def _decoder(container: InputContainer, sampling: Sampling, found: Survey) -> Decoder:
    return Decoder(
        container,
        found.stream,
        max_pixels=sampling.max_pixels,
        oriented=found.oriented,
    )


class _Placed:
    """All pictures with their times, without implausible gaps.

    ``goes_back``: so many times are before those of earlier frames that part of the film is left out, as it is where
    two recordings are in one file.
    """

    def __init__(self, decoder: Decoder, found: Survey, max_seconds: float) -> None:
        self.goes_back = False
        self._decoder = decoder
        self._gaps = found.gaps
        self._max_seconds = max_seconds

    def __iter__(self) -> Iterator[tuple[int, Picture]]:
        """Go through them once. Raises :class:`ClipError`: CLIP_TOO_LARGE."""
        first = latest = None
        back = 0
        for raw, picture in self._decoder.all():
            time = self._gaps.without(raw)
            first = time if first is None else first
            back += latest is not None and time < latest
            latest = time if latest is None else max(time, latest)
            self.goes_back = back > _MOST_BACK and back > self._decoder.decoded // 3
            check_length((time - first) * self._decoder.time_base, self._max_seconds)
            yield time, picture


def _from_all(
    source: Source, sampling: Sampling, found: Survey, step: Fraction, prepare: Callable[[npt.NDArray[np.uint8]], T]
) -> _Taken[T]:
    """Decode everything up to the last sample."""
    with open_container(source, sampling.max_pixels) as container:
        decoder = _decoder(container, sampling, found)
        to_rgb = RgbConverter(found.crop)
        ticks: list[int] = []
        frames: list[T] = []
        length = found.duration / decoder.time_base
        placed = _Placed(decoder, found, sampling.max_seconds)
        for time, picture in select(placed, step / decoder.time_base, sampling.max_frames, length):
            ticks.append(time)
            frames.append(prepare(to_rgb(picture)))
        if not frames:
            raise decode_failed("no frame could be decoded", decoder.error)
        return _Taken(ticks, frames, decoder.decoded, decoder.damaged or placed.goes_back, to_rgb.recoloured)


# -- near-duplicates -------------------------------------------------------------------------------------------


def distinct(frames: Sequence[Any], threshold: float) -> tuple[list[Any], list[int]]:
    """Return the frames without near-duplicates, and for each given frame the index of the one that replaces it.

    ``frames``: prepared, (height, width, channels) uint8 of one shape, n >= 1, in the order of their times. With a
    ``threshold`` of 0 they may be any objects, and all are kept. A frame is replaced by the last kept frame if their
    :func:`difference` is at most the threshold. It is not compared with its predecessor, because then a slow movement
    would never be detected.

    The store's record still has a row for each sampled frame, with its own time; near-duplicates repeat the vector of
    the frame that replaces them. A single row with the first time would be smaller and score the same. But then the
    rows of a record would no longer follow from the clip's times and the sampling alone, and later moments at which
    something is still in view would be lost. The purpose is to save the encoder's time, some 20 ms of CPU time a frame;
    a row costs a query less than a microsecond.
    """
    kept = [frames[0]]
    stands_for = [0]
    for frame in frames[1:]:
        if not threshold or difference(kept[-1], frame) > threshold:
            kept.append(frame)
        stands_for.append(len(kept) - 1)
    return kept, stands_for


def difference(one: npt.NDArray[np.uint8], other: npt.NDArray[np.uint8]) -> float:
    """Return the largest mean absolute difference, 0 to 255, of any block of ``BLOCK`` x ``BLOCK`` pixels.

    The mean over the whole frame would hardly change with a small object: one of 12 x 12 pixels changes it by a three
    hundredth of what it changes the mean of its block.
    """
    apart = np.maximum(one, other) - np.minimum(one, other)
    height, width, channels = apart.shape
    rows, columns = np.arange(0, height, BLOCK), np.arange(0, width, BLOCK)
    by_rows = np.add.reduceat(apart.reshape(height, -1), rows, axis=0, dtype=np.uint32)
    sums = np.add.reduceat(by_rows, columns * channels, axis=1)
    pixels = np.minimum(BLOCK, height - rows)[:, None] * np.minimum(BLOCK, width - columns)
    return float((sums / (pixels * channels)).max())
