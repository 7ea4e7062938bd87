"""Presentation times of encoded and decoded frames, and the choice of the frames to sample and packets to decode."""

from __future__ import annotations

import bisect
import itertools
import math
import statistics
from array import array
from dataclasses import dataclass, field
from fractions import Fraction
from typing import TYPE_CHECKING, TypeVar

from streamer.events import Reason
from streamer.video.errors import ClipError
from streamer.video.sampling import bitstream
from streamer.video.sampling.bitstream import Kind
from streamer.video.sampling.container import decode_failed, packets, pick, stated_duration, stores_pts, time_base

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    import av
    from av.container import InputContainer

    from streamer.video.sampling.orientation import Crop

T = TypeVar("T")

_FOREVER = 1 << 64
"""Ticks, more than any timestamp of FFmpeg."""


_USUAL_STEPS = 100
_BELIEVED_S = 600
"""A gap of fewer median steps, or of fewer seconds, is believed, whatever the file states: headers of recordings that
were broken off are often wrong."""


class Clock:
    """Determines begin and end of the presentation of each packet or frame of a stream, in ticks."""

    def __init__(self, stream: av.VideoStream) -> None:
        # The duration of one frame at the stream's average rate.
        rate = stream.average_rate or stream.guessed_rate
        self._period = round(1 / (rate * time_base(stream))) if rate else 0
        self._end = 0

    def place(self, time: int | None, duration: int | None) -> tuple[int, int]:
        """Return begin and end of the next packet or frame; ``time`` and ``duration`` are None if it has none."""
        if time is None:
            time = self._end
            # Where a stream states neither times nor a rate, libavformat makes durations up, and those of one tick too.
            duration = None if duration == 1 and self._period else duration
        self._end = time + (duration or self._period)
        return time, self._end


class BestEffort:
    """FFmpeg's best-effort timestamp (guess_correct_pts in libavcodec/decode.c), which PyAV does not show."""

    def __init__(self) -> None:
        self._last_pts: float = -math.inf
        self._last_dts: float = -math.inf
        self._pts_faults = 0  # number of steps back of the pts minus that of the dts

    def time(self, pts: int | None, dts: int | None) -> int | None:
        """Return the next frame's time; None if it has neither pts nor dts."""
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


def select(frames: Iterable[tuple[int, T]], step: Fraction, limit: int, length: Fraction) -> Iterator[tuple[int, T]]:
    """Yield the samples (time after the first frame, frame) of (time, frame) pairs in presentation order.

    Times, ``step`` and the clip's ``length`` have one unit; there are at most ``limit`` samples. Each is yielded once
    the next frame is known, so only one frame is held at a time.
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
            # No remaining t_k is before the held frame, so it is the frame of every t_k before the new frame.
            if k * step < offset:
                yield held
                k = math.ceil(offset / step)
                if k >= limit:
                    return
        held = offset, frame
    if held is not None and (k * step <= held[0] or k * step < length):
        yield held


class Gaps:
    """Gaps in a stream's times, of which each is too long by some ticks."""

    def __init__(self, gaps: Iterable[tuple[int, int]] = ()) -> None:
        """Take the time at which each begins, and by how much it is too long, in the order of the times."""
        self._begins: list[int] = []
        self._excess = [0]
        for begin, excess in gaps:
            self._begins.append(begin)
            self._excess.append(self._excess[-1] + excess)

    def without(self, time: int) -> int:
        """Return a time without the gaps before it."""
        return time - self._excess[bisect.bisect_left(self._begins, time)]


@dataclass(slots=True)
class Survey:
    """The result of a pass over a stream's packets without decoding.

    ``stream``: its index in the container. ``duration``: in seconds. ``pts`` and ``kinds`` (:class:`Kind`): one entry
    for each packet that is not empty, in decoding order, up to the first packet without an exact time. ``damaged``: a
    packet is corrupt, or reading ended in an error. ``exact``: the presentation time of every frame is known from its
    packet, and ``kinds`` are valid. ``oriented``: packets turn the picture from then on
    (:attr:`~streamer.video.sampling.bitstream.Reader.oriented`). ``gaps``: those that cannot be (:func:`implausible`).
    ``crop``: what the container crops. ``cut``: the file is truncated.
    """

    stream: int
    time_base: Fraction
    duration: Fraction
    pts: array[int] = field(default_factory=lambda: array("q"))
    kinds: bytearray = field(default_factory=bytearray)
    damaged: bool = False
    exact: bool = False
    oriented: bool = False
    gaps: Gaps = field(default_factory=Gaps)
    crop: Crop | None = None
    cut: bool = False


def survey(container: InputContainer, index: int, *, max_pixels: int, max_seconds: float, max_packets: int) -> Survey:
    """Read all packets of the video stream with an index, within the limits.

    Raises :class:`ClipError`: DECODE_FAILED, also for a stream without packets, or CLIP_TOO_LARGE.
    """
    stream = pick(container, index, max_pixels)
    found = Survey(index, time_base(stream), time_base(stream) * 0)
    reader = bitstream.reader(stream.codec_context.codec.canonical_name, stream.codec_context.extradata)
    exact = reader is not None
    pts_stored = stores_pts(container)
    clock = Clock(stream)
    extent = _Extent(found.time_base, max_seconds, stated_duration(container))
    errors: list[BaseException] = []
    for number, packet in enumerate(packets(container, stream, errors.append), 1):
        if number > max_packets:
            raise ClipError(Reason.CLIP_TOO_LARGE, f"more than {max_packets} encoded frames, which is the limit")
        found.damaged |= packet.is_corrupt
        if packet.has_sidedata("encryption_info"):
            raise decode_failed("the video is encrypted")
        if not packet.is_discard:
            time = packet.dts if packet.pts is None or not pts_stored else packet.pts
            extent.add(*clock.place(time, packet.duration))
        exact = exact and _is_exact(packet, pts_stored=pts_stored)
        if reader is not None:
            kind = reader.kind(bytes(packet))
            if exact:
                found.pts.append(packet.pts or 0)
                found.kinds.append(kind | Kind.HIDDEN if packet.is_discard else kind)
    found.damaged |= bool(errors)
    found.gaps, found.duration = extent.whole()
    found.oriented = reader is not None and reader.oriented
    if reader is not None and exact and not found.damaged:
        found.exact = bool(reader.valid & Kind.START)
        found.kinds = bytearray(kind & reader.valid for kind in found.kinds)
    return found


class _Extent:
    """The time that a stream's packets span, and the gaps among them that cannot be."""

    def __init__(self, tick: Fraction, max_seconds: float, stated: Fraction | None) -> None:
        """``tick``: of the times, in seconds; ``stated``: the seconds that the file itself states to last."""
        self._tick = tick
        self._max_seconds = max_seconds
        self._stated = stated
        self._longest = Fraction(max_seconds) / tick
        # What such a file's packets say is looked at when all are read.
        self._waits = stated is not None and stated <= max_seconds
        self._begin, self._end = _FOREVER, -_FOREVER
        self._times, self._lasting = array("q"), array("q")

    def add(self, begin: int, end: int) -> None:
        """Add a packet, by begin and end in ticks. Raises CLIP_TOO_LARGE."""
        self._begin, self._end = min(self._begin, begin), max(self._end, end)
        self._times.append(begin)
        self._lasting.append(end - begin)
        if self._end - self._begin > self._longest and not self._waits:
            check_length((self._end - self._begin) * self._tick, self._max_seconds)

    def whole(self) -> tuple[Gaps, Fraction]:
        """Return the implausible gaps, and the seconds without them. Raises DECODE_FAILED and CLIP_TOO_LARGE."""
        if not self._times:
            raise decode_failed("the video stream is empty")
        gaps, end = Gaps(), self._end
        if self._stated is not None and (end - self._begin) * self._tick > 2 * self._stated:
            believed = max(self._stated, Fraction(_BELIEVED_S)) / self._tick
            gaps, end = implausible(self._times, self._lasting, believed)
        duration = (end - self._begin) * self._tick
        check_length(duration, self._max_seconds)
        return gaps, duration


def implausible(times: Sequence[int], lasting: Sequence[int], believed: Fraction) -> tuple[Gaps, int]:
    """Find the gaps between packets that cannot be; return also the end without them.

    They are the steps from one time to the next that are longer than ``believed`` ticks and than :data:`_USUAL_STEPS`
    times the median step. They become as long as that, and so do packets that last so long.
    """
    ordered = sorted(set(times))
    steps = [later - earlier for earlier, later in itertools.pairwise(ordered)]
    usual = statistics.median_low(steps) if steps else 0
    most = max(believed, Fraction(_USUAL_STEPS * usual))
    gaps = Gaps((ordered[n], step - usual) for n, step in enumerate(steps) if step > most)
    placed = zip(map(gaps.without, times), lasting, strict=True)
    return gaps, max(time + (usual if length > most else length) for time, length in placed)


def _is_exact(packet: av.Packet[av.VideoStream], *, pts_stored: bool) -> bool:
    """Return whether the packet has its frame's time, and no parameters that would be lost if it were skipped."""
    if packet.has_sidedata("new_extradata") or packet.has_sidedata("param_change"):
        return False
    return packet.is_discard or (packet.pts is not None and (pts_stored or packet.pts == packet.dts))


def choose(found: Survey, step: Fraction, limit: int) -> dict[int, int] | None:
    """Choose the frames to sample by the packets' times alone; ``found`` must be exact.

    Returns {pts: time after the first frame, in ticks} of the sampled frames; None if two packets have the same time.
    """
    shown = sorted(pts for pts, kind in zip(found.pts, found.kinds, strict=True) if not kind & Kind.HIDDEN)
    if any(one == other for one, other in itertools.pairwise(shown)):
        return None
    length = found.duration / found.time_base
    placed = ((found.gaps.without(pts), pts) for pts in shown)
    return {pts: offset for offset, pts in select(placed, step / found.time_base, limit, length)}


def plan(found: Survey, needed: Iterable[int]) -> list[list[int]]:
    """Return the packets that must be decoded for the frames with the pts in ``needed``, in decoding order.

    They are runs of packet numbers, counted from 0. The decoder is drained and reset after each run.
    """
    targets = set(needed)
    spans: list[tuple[int, int]] = []
    start = 0  # the packet at which decoding may start for the current frame
    start_of_leading = 0  # the same for LEADING frames, which depend on frames before ``start``
    followed = False  # whether a frame followed ``start`` after which no frame depends on those before it
    for n, kind in enumerate(found.kinds):
        if kind & Kind.START:
            start_of_leading = start if followed else start_of_leading
            start, followed = n, False
        elif not kind & Kind.LEADING:
            followed = True
        if found.pts[n] in targets and not kind & Kind.HIDDEN:
            first = start_of_leading if kind & Kind.LEADING else start
            while spans and spans[-1][1] >= first:
                first = min(first, spans.pop()[0])
            spans.append((first, n))
    return [_without_unneeded(found, first, last, targets) for first, last in spans]


def _without_unneeded(found: Survey, first: int, last: int, targets: set[int]) -> list[int]:
    kept = []
    orphaned = first > 0  # LEADING frames now would depend on frames that are not decoded
    for n in range(first, last + 1):
        kind = found.kinds[n]
        orphaned = orphaned and (n == first or not kind & Kind.START)
        if kind & Kind.LEADING and orphaned:
            continue
        if found.pts[n] in targets or not kind & Kind.DROPPABLE:
            kept.append(n)
    return kept


def check_length(duration: Fraction, max_seconds: float) -> None:
    """Raise CLIP_TOO_LARGE if a clip exceeds the limit."""
    if duration > max_seconds:
        raise ClipError(Reason.CLIP_TOO_LARGE, f"{float(duration):.0f} s, the limit is {max_seconds:.0f} s")
