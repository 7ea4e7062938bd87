"""Decoding a container's video: all of it, or no more than some frames need."""

from __future__ import annotations

from typing import TYPE_CHECKING

from streamer.video.sampling.container import (
    CODEC_WHITELIST,
    DAMAGE,
    check_pixels,
    packets,
    pick,
    stores_pts,
    time_base,
)
from streamer.video.sampling.timeline import BestEffort, Clock, check_length

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    import av
    from av.container import InputContainer


class DeviationError(Exception):
    """The decoder did not give what the packets promised."""


class Decoder:
    """Decodes the video of a container that was just opened, once, in one of two ways.

    ``decoded`` counts the frames so far. ``damaged``: something was corrupt or did not decode, and was passed
    over; ``error`` is the first error of the decoder or the container, if there was one.
    """

    def __init__(self, container: InputContainer, *, max_pixels: int, max_seconds: float) -> None:
        self._container = container
        self._max_pixels = max_pixels
        self._max_seconds = max_seconds
        self._stream = pick(container, max_pixels)
        self.time_base = time_base(self._stream)
        self.decoded = 0
        self.damaged = False
        self.error: BaseException | None = None
        context = self._stream.codec_context
        # Clips are decoded side by side, which uses the processors better than threads within one of them.
        context.thread_type = "AUTO"
        context.thread_count = 1
        context.options = {"max_pixels": str(max_pixels), "codec_whitelist": CODEC_WHITELIST}

    def all(self) -> Iterator[tuple[int, av.VideoFrame]]:
        """Give (time in ticks, frame) of every frame, past what is damaged."""
        clock, best_effort = Clock(self._stream), BestEffort()
        pts_stored = stores_pts(self._container)
        first: int | None = None
        for packet in self._packets():
            for frame in self._decode(packet):
                time, _ = clock.place(best_effort.time(frame.pts if pts_stored else None, frame.dts), frame.duration)
                first = time if first is None else first
                check_length((time - first) * self.time_base, self._max_seconds)
                yield time, frame

    def needed(self, runs: Sequence[Sequence[int]], wanted: Iterable[int]) -> Iterator[tuple[int, av.VideoFrame]]:
        """Give (pts, frame) for each of the pts ``wanted``, in their order, from the packets of ``runs`` only.

        Raises :class:`DeviationError` as soon as one of them is missing, or anything is damaged or out of order.
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
                yield last, frame
        if self.damaged or next(missing, None) is not None:
            raise DeviationError

    def _runs(self, runs: Sequence[Sequence[int]]) -> Iterator[av.VideoFrame]:
        numbered = enumerate(self._packets())
        for run in runs:
            numbers = set(run)
            for number, packet in numbered:
                if packet is not None and number in numbers:
                    yield from self._decode(packet)
                if number >= run[-1]:
                    break
            yield from self._decode(None)
            self._stream.codec_context.flush_buffers()

    def _packets(self) -> Iterator[av.Packet[av.VideoStream] | None]:
        """Give all packets, and in the end None, which drains the decoder."""
        for packet in packets(self._container, self._stream, self._note):
            self.damaged |= packet.is_corrupt
            yield packet
        yield None

    def _decode(self, packet: av.Packet[av.VideoStream] | None) -> Iterator[av.VideoFrame]:
        context = self._stream.codec_context
        try:
            frames = context.decode(packet)
        except DAMAGE as error:
            # Some decoders leave here the size that they refused; for HEVC's the refusal is a want of memory.
            check_pixels(context.width, context.height, self._max_pixels)
            if isinstance(error, MemoryError):
                raise
            self._note(error)
            return
        for frame in frames:
            self.decoded += 1
            self.damaged |= frame.is_corrupt
            check_pixels(frame.width, frame.height, self._max_pixels)
            yield frame

    def _note(self, error: BaseException) -> None:
        self.damaged = True
        self.error = self.error or error
