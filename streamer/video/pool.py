"""Decoding in processes apart, so that a crash, a hang or a bomb costs its clip and nothing else."""

from __future__ import annotations

import math
import pickle
import signal
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final, Self

import msgspec
import numpy as np

from streamer.events import Reason
from streamer.video.errors import ClipError, Retry
from streamer.video.process import LostError, Process, Template
from streamer.video.sample import SampledClip
from streamer.video.worker import Refused, Sampled, Task

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    import numpy.typing as npt

    from streamer.video.sample import Sampling

    Frame = npt.NDArray[np.uint8]

SLOW_NICE: Final = 10
"""Priority of a decode that takes long: a sixth of the weight of those that have a place, a tenth of the service's.
Short clips hardly notice it, and an honest long one still comes to its end where all processors are busy."""
_MAX_DETAIL_CHARS: Final = 1_000


class PoolClosedError(Exception):
    """The pool was closed before the clip was decoded, which says nothing about the clip."""


class DecodePool:
    """Decodes and samples clips, each in a process of its own. Safe to use from several threads at once.

    ``prepare`` makes what is handed on of each sampled RGB frame: uint8 of one and the same shape. It is pickled, and
    its module imported by the processes, so both should be small. ``timeout``: seconds for decoding one clip, not
    counting those for which it had to wait for a processor (but ten times as many altogether).
    ``memory``: bytes of address space of one process, see :class:`~streamer.video.worker.Task`. ``replaced`` is
    told of each process that did not end by itself: ``crashed`` or ``timeout``.

    Places. ``workers`` clips have a place: they are being decoded, or their frames are in somebody's hands. A decode
    that takes longer than ``slow_after`` seconds leaves its place to the next clip and goes on at a low priority; at
    most ``workers`` do so at a time, more keep their places. When it is done it waits for a place again, its frames
    still in its own process. So there are never more than 2 * ``workers`` decoding processes, and the service holds
    the frames of at most ``workers`` clips.

    The processes are ended when the pool is closed and when this process dies, however it dies. Linux only.
    """

    def __init__(
        self,
        sampling: Sampling,
        prepare: Callable[[Frame], Frame],
        *,
        workers: int,
        timeout: float,
        memory: int,
        replaced: Callable[[str], None] = lambda _how: None,
        slow_after: float = 1.0,
    ) -> None:
        self._most_frames = sampling.max_frames
        self._timeout = timeout
        self._memory = memory
        self._replaced = replaced
        self._slow_after = slow_after
        self._places = threading.Semaphore(workers)
        self._slow = threading.Semaphore(workers)
        self._task = pickle.dumps(Task(sampling, prepare, memory, timeout))
        self._lock = threading.Lock()
        self._closed = False
        self._template = Template(self._task)

    @contextmanager
    def sampled(self, path: Path) -> Iterator[SampledClip[Frame]]:
        """Give the clip's sampled frames; it keeps its place for the length of the block.

        Raises :class:`ClipError`: what :func:`~streamer.video.sample` raises, DECODE_TIMEOUT, or DECODER_CRASHED.
        """
        with _Place(self._places) as place:
            yield self._decode(path, place)

    def close(self) -> None:
        """End all processes at once; clips that were being decoded end in :class:`PoolClosedError`."""
        with self._lock:
            self._closed = True
            self._template.end()

    def _decode(self, path: Path, place: _Place) -> SampledClip[Frame]:
        try:
            try:
                return self._decode_once(path, place)
            except LostError:
                # The template died, or could not fork: through no fault of the clip, so nobody needs to hear of it.
                return self._decode_once(path, place)
        except LostError:
            detail = "no process to decode it in could be started"
            raise ClipError(Reason.DECODER_CRASHED, detail, Retry.FOR_A_WHILE) from None

    def _decode_once(self, path: Path, place: _Place) -> SampledClip[Frame]:
        with self._start(path) as process:
            try:
                self._wait(process, place)
                header = process.receive_header()
                if isinstance(header, Sampled):
                    return self._receive_clip(process, header)
            except TimeoutError:
                process.kill()
                self._replaced("timeout")
                detail = f"not decoded after {self._timeout:g} s"
                raise ClipError(Reason.DECODE_TIMEOUT, detail, Retry.ONCE) from None
            except (EOFError, OSError, ValueError, msgspec.MsgspecError) as error:
                raise self._crash(process, error) from error
        if isinstance(header, Refused):
            raise ClipError(header.reason, header.detail[:_MAX_DETAIL_CHARS], header.retry)
        self._replaced("crashed")
        raise ClipError(Reason.DECODER_CRASHED, header.detail[:_MAX_DETAIL_CHARS], Retry.ONCE)

    def _start(self, path: Path) -> Process:
        with self._lock:
            if self._closed:
                raise PoolClosedError
            if self._template.ended:
                try:
                    self._template = Template(self._task)
                except OSError:
                    raise LostError from None
            template = self._template
        try:
            return template.start(path, self._timeout)
        except LostError:
            if self._closed:
                raise PoolClosedError from None
            raise

    def _wait(self, process: Process, place: _Place) -> None:
        """Wait for the process to answer or end; TimeoutError where it does neither in time."""
        look = self._slow_after
        while not process.ready(look):
            if process.left <= 0:
                raise TimeoutError
            if place.is_in(self._places) and place.swap(self._slow, block=False):
                process.lower(SLOW_NICE)
            look = 0.5
        if not place.is_in(self._places):
            place.swap(self._places, block=True)
            # How long it waited for the place is not the clip's fault.
            process.begin()

    def _receive_clip(self, process: Process, header: Sampled) -> SampledClip[Frame]:
        count = len(header.times_ms)
        size = count * math.prod(header.shape)
        if not 1 <= count <= self._most_frames or size > self._memory:
            raise ValueError(f"{count} frames of {header.shape}")
        frames = np.empty((count, *header.shape), dtype=np.uint8)
        process.receive_into(frames.reshape(-1).data)
        times = np.array(header.times_ms, dtype=np.uint32)
        return SampledClip(times, list(frames), header.duration_ms, header.decoded, header.partial)

    def _crash(self, process: Process, error: Exception) -> Exception:
        code = process.end()
        if self._closed:
            return PoolClosedError()
        if code is None:
            return LostError()
        if code == -signal.SIGXCPU:
            self._replaced("timeout")
            return ClipError(Reason.DECODE_TIMEOUT, f"{self._timeout:g} s of processor time used", Retry.ONCE)
        self._replaced("crashed")
        if isinstance(error, EOFError | ConnectionError):
            how = f"killed by {_signal_name(-code)}" if code < 0 else f"ended with exit code {code}"
        else:
            how = f"answered what cannot be read: {error}"
        return ClipError(Reason.DECODER_CRASHED, f"the decoder's process {how}"[:_MAX_DETAIL_CHARS], Retry.ONCE)


def _signal_name(number: int) -> str:
    return next((known.name for known in signal.Signals if known == number), f"signal {number}")


class _Place:
    """One of the places of a semaphore, held for the length of a block; it can be changed for another's."""

    def __init__(self, semaphore: threading.Semaphore) -> None:
        self._semaphore = semaphore

    def __enter__(self) -> Self:
        self._semaphore.acquire()
        return self

    def __exit__(self, *_: object) -> None:
        self._semaphore.release()

    def is_in(self, semaphore: threading.Semaphore) -> bool:
        return self._semaphore is semaphore

    def swap(self, other: threading.Semaphore, *, block: bool) -> bool:
        """Take a place of the other and leave this one; False where that would have to wait and must not."""
        if not other.acquire(blocking=block):
            return False
        self._semaphore.release()
        self._semaphore = other
        return True
