"""From a local video file to sampled RGB frames.

The definition, so that anyone can recompute it from what a plain decoder shows:

- The video is the container's first stream marked as default, or else its first one; attached pictures (cover
  art) are not counted. Its frames are all that the decoder gives, in the order given.
- p, a frame's presentation time, is FFmpeg's best-effort timestamp: the pts, as long as pts advance from frame
  to frame; where they are missing or were found to step back, the dts; where that is missing too, the end of
  the frame before. AVI stores no pts, and those that libavformat makes up for it are not used. A frame that
  steps back all the same is passed over. Times are exact, in ticks of the stream's time base.
- duration = (p + d of the packet that ends last) - (p of the packet that begins first), over the stream's
  packets, without those that an edit list discards; p is a packet's pts (but in AVI), or else its dts, or else
  the end of the packet before, and d its duration, or one frame at the stream's average rate where none is stated.
- step = ``interval`` (the decimal number as written), or duration / ``max_frames`` where that is longer.
- t_k = p of the first frame + k * step, for k = 0 .. ``max_frames`` - 1, as far as t_k is not after p of the
  last frame. The frame of t_k is the last one with p <= t_k; a frame is taken once.
- A sample's time is its frame's p minus the first frame's, rounded to milliseconds (half to even).
- Pixels are what the ffmpeg program writes as rgb24: converted by the frame's own colour matrix and range,
  without alpha, turned and mirrored by its display matrix if that is made of quarter turns (the program turns by
  any other angle too). The sample aspect ratio is not applied.

How no more is decoded than that needs: a first walk over the packets, without decoding, gives the duration and
each frame's time, so it is known beforehand which frames are sampled. Then only the packets are decoded that
these need: from the last one at which decoding may begin (``bitstream.py``) to the frame itself, without those
that no other needs. This way is left where a packet has no time of its own, where nothing is known of the codec,
and as soon as the decoder gives anything else than the packets promised; then everything is decoded up to the
last sample, which is the definition itself.

Damage: packets that do not decode are passed over, as the ffmpeg program does, and where the container breaks
off the stream ends. What is left is sampled. Damage in packets that no sample needs is not noticed.
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
    open_clip,
    open_container,
    pick,
)
from streamer.video.sampling.decode import Decoder, DeviationError, RgbConverter
from streamer.video.sampling.timeline import Survey, choose, plan, select, survey

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

T = TypeVar("T")

BLOCK = 16
"""Side of the blocks that near-duplicates are compared by, in pixels of the prepared frame: half a patch of the usual
ViT-B-32."""


@dataclass(frozen=True, slots=True)
class Sampling:
    """How clips are sampled, and how large they may be.

    ``interval``: seconds between samples, > 0. ``max_frames``: most samples of a clip, >= 1. ``max_pixels``: of a
    frame; ``max_seconds``: of a clip; ``max_packets``: encoded frames of a clip. ``duplicate_threshold``: how much
    frames may differ of which one stands for the others, see :func:`distinct`; 0: no such.
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

    ``times_ms`` (n,): each frame's time from the first frame. ``frames``: what ``prepare`` made of each, without
    near-duplicates. ``frame_of`` (n,): the one of these that is shown at that time; 0 .. n - 1 if none is left out.
    ``duration_ms``: the clip's length. ``decoded``: how many frames the decoder produced for them. ``partial``:
    something of the video was damaged, and these frames are of what is left; damage in what no sample needs is
    not noticed.
    """

    times_ms: npt.NDArray[np.uint32]
    frames: list[T]
    frame_of: npt.NDArray[np.intp]
    duration_ms: int
    decoded: int
    partial: bool


def sample(path: Path, sampling: Sampling, prepare: Callable[[npt.NDArray[np.uint8]], T]) -> SampledClip[T]:
    """Sample a file of our own, in this process.

    Strangers' files go to :class:`~streamer.video.isolation.pool.DecodePool`.
    Raises as :func:`sample_descriptor` does, and NOT_FOUND.
    """
    descriptor = open_clip(path)
    try:
        return sample_descriptor(descriptor, sampling, prepare)
    finally:
        os.close(descriptor)


def sample_descriptor(
    descriptor: int, sampling: Sampling, prepare: Callable[[npt.NDArray[np.uint8]], T]
) -> SampledClip[T]:
    """Decode the regular file that a descriptor is open on, and sample it as the module's text defines.

    ``prepare`` gets each sampled frame, (height, width, 3) RGB, as soon as it is decoded, so that full-size
    frames never pile up; what it raises passes through, but for a MemoryError. It may be given frames
    twice, where the first way of decoding has to be left. The descriptor stays open.
    Raises :class:`ClipError` and nothing else for whatever the file holds: NO_VIDEO, DECODE_FAILED, CLIP_TOO_LARGE, or
    FETCH_FAILED where it cannot be read.
    """
    source = Source(descriptor)
    try:
        found = _survey(source, sampling)
        step = max(Fraction(str(sampling.interval)), found.duration / sampling.max_frames)
        taken = _from_needed(source, sampling, found, step, prepare) or _from_all(source, sampling, step, prepare)
        partial = taken.damaged or found.damaged or breaks_off(source)
    except MemoryError as error:
        # It may be what earlier clips left behind in this process that was too much.
        raise ClipError(Reason.DECODE_FAILED, "not enough memory", Retry.ONCE) from error
    times_ms = np.array([round(ticks * found.time_base * 1000) for ticks in taken.ticks], dtype=np.uint32)
    frames, frame_of = distinct(taken.frames, sampling.duplicate_threshold)
    duration_ms = round(found.duration * 1000)
    return SampledClip(times_ms, frames, np.array(frame_of, dtype=np.intp), duration_ms, taken.decoded, partial)


@dataclass(slots=True)
class _Taken(Generic[T]):
    """Samples: their times from the first frame, in ticks, and what ``prepare`` made of them."""

    ticks: list[int]
    frames: list[T]
    decoded: int
    damaged: bool


def _survey(source: Source, sampling: Sampling) -> Survey:
    with open_container(source, sampling.max_pixels) as container:
        if not pick(container, sampling.max_pixels).codec_context.width:
            check_unread_size(source, sampling.max_pixels)
        return survey(
            container,
            max_pixels=sampling.max_pixels,
            max_seconds=sampling.max_seconds,
            max_packets=sampling.max_packets,
        )


def _from_needed(
    source: Source, sampling: Sampling, found: Survey, step: Fraction, prepare: Callable[[npt.NDArray[np.uint8]], T]
) -> _Taken[T] | None:
    """Decode what the samples need; None where that cannot be told or does not hold."""
    chosen = choose(found, step, sampling.max_frames) if found.exact else None
    if chosen is None:
        return None
    offsets, proof = chosen
    wanted = offsets.keys() if proof is None else {*offsets, proof}
    frames: list[T] = []
    to_rgb = RgbConverter()
    with open_container(source, sampling.max_pixels) as container:
        decoder = Decoder(container, max_pixels=sampling.max_pixels, max_seconds=sampling.max_seconds)
        try:
            for pts, frame in decoder.needed(plan(found, wanted), wanted):
                if pts in offsets:
                    frames.append(prepare(to_rgb(frame)))
        except DeviationError:
            return None
        return _Taken(list(offsets.values()), frames, decoder.decoded, damaged=False)


def _from_all(
    source: Source, sampling: Sampling, step: Fraction, prepare: Callable[[npt.NDArray[np.uint8]], T]
) -> _Taken[T]:
    """Decode everything up to the last sample."""
    with open_container(source, sampling.max_pixels) as container:
        decoder = Decoder(container, max_pixels=sampling.max_pixels, max_seconds=sampling.max_seconds)
        to_rgb = RgbConverter()
        ticks: list[int] = []
        frames: list[T] = []
        for time, frame in select(decoder.all(), step / decoder.time_base, sampling.max_frames):
            ticks.append(time)
            frames.append(prepare(to_rgb(frame)))
        if not frames:
            raise decode_failed("no frame could be decoded", decoder.error)
        return _Taken(ticks, frames, decoder.decoded, decoder.damaged)


# -- near-duplicates -------------------------------------------------------------------------------------------


def distinct(frames: Sequence[Any], threshold: float) -> tuple[list[Any], list[int]]:
    """Return the frames without near-duplicates, and for each given frame the index of the one that stands for it.

    ``frames``: prepared, (height, width, channels) uint8 of one shape, n >= 1, in the order of their times; with a
    ``threshold`` of 0 they may be anything and all are kept. A run is a frame and those right after it whose
    :func:`difference` to that *first* one is at most the threshold: compared with the one before, a slow movement
    would never be noticed.

    A record has a row for each sampled frame all the same, with its own time; those of a run have one vector. One row
    with the run's first time would score the same and be smaller, but what a record holds could then no longer be told
    from the clip and the sampling alone, and the moments at which something is still in view would be lost; what is to
    be saved is the encoder's time, some 20 ms of a processor for a frame, against less than a microsecond that a row
    costs a query.
    """
    kept = [frames[0]]
    stands_for = [0]
    for frame in frames[1:]:
        if not threshold or difference(kept[-1], frame) > threshold:
            kept.append(frame)
        stands_for.append(len(kept) - 1)
    return kept, stands_for


def difference(one: npt.NDArray[np.uint8], other: npt.NDArray[np.uint8]) -> float:
    """Return the largest mean absolute difference of a block, 0 to 255, over its pixels and channels.

    The mean over the whole frame, which is never larger, would miss what is small: an object of 12 x 12 pixels moves it
    by a three hundredth of what it moves its block.
    """
    apart = np.maximum(one, other) - np.minimum(one, other)
    height, width, channels = apart.shape
    rows, columns = np.arange(0, height, BLOCK), np.arange(0, width, BLOCK)
    by_rows = np.add.reduceat(apart.reshape(height, -1), rows, axis=0, dtype=np.uint32)
    sums = np.add.reduceat(by_rows, columns * channels, axis=1)
    pixels = np.minimum(BLOCK, height - rows)[:, None] * np.minimum(BLOCK, width - columns)
    return float((sums / (pixels * channels)).max())
