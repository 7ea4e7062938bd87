"""Decodes clips in separate processes, so that a crash, a hang or a decompression bomb affects only its own clip."""

from __future__ import annotations

import contextlib
import math
import os
import pickle
import signal
import statistics
import threading
import time
from collections import deque
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final, Self

import msgspec
import numpy as np

from streamer.events import Reason
from streamer.machine import Lack, MachineError, machine_error
from streamer.video.errors import ClipError, Retry
from streamer.video.isolation.confinement import NOT_CONFINED, Layer, SandboxError
from streamer.video.isolation.process import LostError, Process, Template
from streamer.video.isolation.worker import Refused, Sampled, Task
from streamer.video.sampling.container import open_clip
from streamer.video.sampling.sample import SampledClip

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    import numpy.typing as npt

    from streamer.video.isolation.confinement import Sandbox
    from streamer.video.isolation.worker import Raised, Ready
    from streamer.video.sampling.sample import Sampling

    Frame = npt.NDArray[np.uint8]

SLOW_NICE: Final = 14
"""Niceness of a slow decode: the scheduler gives it a sixth of the weight of other decodes, 1/23 of the service's."""
_RUN_SECONDS, _REST_SECONDS = 0.1, 0.7
"""A slow decode alternately runs and is stopped for these times, in seconds, while other clips hold slots. A low
priority alone is not enough: a slow decode would still run on every processor that is idle for a moment, and a decoder
of huge frames uses up memory bandwidth that all decoders share."""
_SLOW: Final = 4
"""A decode is slow if it takes this many times the median of recent decodes."""
_REMEMBERED: Final = 33
"""Number of recent decodes in that median."""
_SLOW_AT_MOST: Final = 1 / 4
"""A decode that takes longer than this share of its time limit is slow whatever the median is, so that many clips that
use up their time do not make that the measure for others."""
_RESPONSE_SECONDS: Final = 10.0
"""Time limit of a response from its first byte to its last, which are in memory by then; the clip holds a slot."""
_FRAMES_OF_A_PACKET: Final = 8
"""More than any codec gives."""
_REASONS: Final = frozenset({Reason.NO_VIDEO, Reason.DECODE_FAILED, Reason.CLIP_TOO_LARGE, Reason.FETCH_FAILED})
"""What :func:`~streamer.video.sampling.sample.sample_descriptor` refuses clips for; a process claims nothing else."""
_MAX_DETAIL_CHARS: Final = 1_000
_ONE_SECONDS, _ONE_BYTES = 120.0, 2 << 30
"""Time limit in seconds and memory limit in bytes of a clip that a command decodes: the defaults of the service."""
_MAX_FRAME_BYTES: Final = 16 << 20
"""Largest size of a prepared frame: more than the largest input of any encoder (1024 x 1024 pixels are 3 MB)."""


MOST_PROCESSES: Final = 2
"""Decoding processes per worker: one with a place, and one that has left its place to another clip."""


class PoolClosedError(Exception):
    """The pool was closed before the clip was decoded; this is not an error of the clip."""


class DecodePool:
    """Decodes and samples clips, each in a separate process. Safe to use from several threads at once.

    ``prepare`` converts each sampled RGB frame to the array that the pool returns: uint8, of one shape for all frames
    of a clip. It is pickled, and its module is imported by the processes, so both should be small. It is first called
    for black frames of two sizes, before the process is confined: it must import and open everything that it needs in
    these calls. If it returns the same shape for both sizes, as those of encoders do, frames of any other shape are
    refused. ``timeout``: seconds for decoding one clip. A clip's clock stops while other processes use the CPU; its
    wall-clock limit is ten times as long. Its response must then be complete within ten seconds on the same clock.
    ``memory``: bytes of address space of one process, see :class:`~streamer.video.isolation.worker.Task`.
    ``sandbox``: see :mod:`~streamer.video.isolation.confinement`; a pool without the required layer decodes nothing.

    Callbacks: ``confined`` receives the layers that confine the processes, when they become known or change;
    ``replaced`` is called with ``crashed`` or ``timeout`` for each process that did not end by itself; ``waited`` and
    ``decoded`` are called for each clip with the seconds that it waited for a slot, and then for its frames.

    Slots. At most ``workers`` clips hold a slot: they are being decoded, or the caller uses their frames. A decode that
    takes longer than ``slow_after`` seconds and four times the median of recent decodes, or a quarter of its time limit
    if that is less, is slow. It gives its slot to
    the next clip and continues at a low priority, stopped for seven eighths of the time while other clips hold slots.
    At most ``workers`` slow decodes run without a slot; further ones keep theirs. A slow decode that has finished is
    the first to get a free slot; until then its frames stay in its own process. So there are at most 2 * ``workers``
    decoding processes, and the service holds the frames of at most ``workers`` clips. Short clips thus overtake long
    ones: a clip that hangs delays the others only until it is slow.

    All processes are killed when the pool is closed and when this process dies in any way. Linux only.
    """

    def __init__(
        self,
        sampling: Sampling,
        prepare: Callable[[Frame], Frame],
        *,
        workers: int,
        timeout: float,
        memory: int,
        sandbox: Sandbox = "require",
        confined: Callable[[Layer], None] = lambda _layers: None,
        replaced: Callable[[str], None] = lambda _how: None,
        waited: Callable[[float], None] = lambda _seconds: None,
        decoded: Callable[[float], None] = lambda _seconds: None,
        slow_after: float = 0.25,
    ) -> None:
        self._sampling = sampling
        self._timeout = timeout
        self._confined = confined
        self._reported: Layer | None = None
        self._replaced = replaced
        self._waited = waited
        self._decoded = decoded
        self._slow_after = slow_after
        self._lately: deque[float] = deque(maxlen=_REMEMBERED)
        self._slots = _Slots(workers)
        self._sandbox = sandbox
        self._task = pickle.dumps(Task(sampling, prepare, memory, timeout))
        self._lock = threading.Lock()
        self._closed = False
        self._template: Template | None = None
        with contextlib.suppress(LostError):  # retried for the first clip
            self._running()

    @property
    def layers(self) -> Layer:
        """The layers that confine the processes; waits until the template has started.

        Raises :class:`SandboxError` if the required layer is missing, :class:`MachineError` if it cannot start.
        """
        try:
            return Layer(self._checked(self._running()).layers)
        except LostError as lost:
            raise lost.lack from None

    @contextmanager
    def sampled(self, path: Path) -> Iterator[SampledClip[Frame]]:
        """Provide the clip's sampled frames; the clip holds its slot until the block ends.

        Raises :class:`ClipError`: the reasons of :func:`~streamer.video.sampling.sample`, DECODE_TIMEOUT, or
        DECODER_CRASHED; :class:`MachineError` if no process can be started, which says nothing about the clip.
        """
        came = time.monotonic()
        with _Slot(self._slots) as slot:
            began = time.monotonic()
            file = open_clip(path)
            try:
                sampled = self._decode(file, slot)
            finally:
                os.close(file)
                self._waited(began - came)
                self._decoded(time.monotonic() - began)
            yield sampled

    def close(self) -> None:
        """Kill all processes; clips that were being decoded raise :class:`PoolClosedError`."""
        with self._lock:
            self._closed = True
            if self._template is not None:
                self._template.end()

    def _decode(self, file: int, slot: _Slot) -> SampledClip[Frame]:
        try:
            try:
                return self._decode_once(file, slot)
            except LostError:
                # The template died or could not fork, which is not the clip's fault: retried once without a report.
                return self._decode_once(file, slot)
        except LostError as lost:
            raise lost.lack from None

    def _decode_once(self, file: int, slot: _Slot) -> SampledClip[Frame]:
        template, process = self._start(file)
        with process:
            try:
                self._wait(process, slot)
                process.begin(min(self._timeout, _RESPONSE_SECONDS))
                header = process.receive_header()
                if isinstance(header, Sampled):
                    return self._receive_clip(process, header, template.ready())
                _check_reason(header)
            except TimeoutError as error:
                process.kill()
                self._replaced("timeout")
                detail = str(error) or f"not decoded after {self._timeout:g} s"
                raise ClipError(Reason.DECODE_TIMEOUT, detail, Retry.ONCE) from None
            except (EOFError, OSError, ValueError, msgspec.MsgspecError) as error:
                raise self._crash(template, process, error) from error
        if isinstance(header, Refused):
            raise ClipError(header.reason, header.detail[:_MAX_DETAIL_CHARS], header.retry)
        self._replaced("crashed")
        raise ClipError(Reason.DECODER_CRASHED, header.detail[:_MAX_DETAIL_CHARS], Retry.ONCE)

    def _start(self, file: int) -> tuple[Template, Process]:
        template = self._running()
        try:
            self._checked(template)
            return template, template.start(file, self._timeout)
        except LostError:
            if self._closed:
                raise PoolClosedError from None
            raise

    def _running(self) -> Template:
        with self._lock:
            if self._closed:
                raise PoolClosedError
            if self._template is None or self._template.ended:
                if self._template is not None:
                    self._template.end()
                    self._template = None
                try:
                    self._template = Template(self._task)
                except OSError as error:
                    raise LostError(machine_error(error) or MachineError(Lack.PROCESSES, str(error))) from None
            return self._template

    def _checked(self, template: Template) -> Ready:
        """Return the template's description of itself. Raises SandboxError or ValueError if it must not decode."""
        ready = template.ready()
        layers = Layer(ready.layers)
        if layers != self._reported:
            self._reported = layers
            self._confined(layers)
        if self._sandbox == "require" and Layer.SECCOMP not in layers:
            raise SandboxError(layers)
        if ready.problem:
            raise ValueError(ready.problem)
        if ready.shape is not None and math.prod(ready.shape) > _MAX_FRAME_BYTES:
            raise ValueError(f"prepared frames of {ready.shape} are larger than {_MAX_FRAME_BYTES} bytes")
        return ready

    def _wait(self, process: Process, slot: _Slot) -> None:
        """Wait for the process to respond or end. Raises TimeoutError if it does neither in time."""
        wait = slow_after = self._slow_from()
        while not process.ready(wait):
            if process.left <= 0:
                raise TimeoutError
            to_go = slow_after - process.ran
            if to_go > 0:
                wait = max(0.01, to_go)
                continue
            if slot.give_up():
                process.lower(SLOW_NICE)
            wait = _RUN_SECONDS
            if slot.is_given_up and self._slots.in_use:
                process.rest(_REST_SECONDS)
        self._lately.append(process.ran)
        slot.regain()

    def _slow_from(self) -> float:
        """Return the seconds after which a decode is slow."""
        # Relative to recent decodes, because the normal duration depends on the machine and on the clips.
        usual = _SLOW * statistics.median(self._lately.copy() or [0])
        return max(self._slow_after, min(usual, _SLOW_AT_MOST * self._timeout))

    def _receive_clip(self, process: Process, header: Sampled, ready: Ready) -> SampledClip[Frame]:
        count, samples = header.frames, len(header.times_ms)
        if not 1 <= count <= samples <= self._sampling.max_frames:
            raise ValueError(f"{count} frames for {samples} samples")
        if header.duration_ms > round(1000 * self._sampling.max_seconds):
            raise ValueError(f"a length of {header.duration_ms} ms")
        if header.decoded > _FRAMES_OF_A_PACKET * self._sampling.max_packets:
            raise ValueError(f"{header.decoded} frames decoded")
        if ready.shape is not None and header.shape != ready.shape:
            raise ValueError(f"frames of {header.shape}, where {ready.shape} are prepared")
        if math.prod(header.shape) > _MAX_FRAME_BYTES:
            raise ValueError(f"frames of {header.shape}, over the limit of {_MAX_FRAME_BYTES} bytes")
        if len(header.frame_of) != samples or max(header.frame_of) >= count:
            raise ValueError(f"frames {header.frame_of} of {count} for {samples} samples")
        frames = np.empty((count, *header.shape), dtype=np.uint8)
        process.receive_into(frames.reshape(-1).data)
        times = np.array(header.times_ms, dtype=np.uint32)
        frame_of = np.array(header.frame_of, dtype=np.intp)
        return SampledClip(
            times,
            list(frames),
            frame_of,
            header.duration_ms,
            header.decoded,
            partial=header.partial,
            recoloured=header.recoloured,
        )

    def _crash(self, template: Template, process: Process, error: Exception) -> Exception:
        code = process.end()
        if self._closed:
            return PoolClosedError()
        if code is None:
            template.end()  # it may still be dying, and must not be used again
            return LostError(MachineError(Lack.PROCESSES, "the decoders' template has died"))
        if code == NOT_CONFINED:
            return LostError(MachineError(Lack.MEMORY, "a decoder could not be confined"))
        if code == -signal.SIGXCPU:
            self._replaced("timeout")
            return ClipError(Reason.DECODE_TIMEOUT, f"{self._timeout:g} s of processor time used", Retry.ONCE)
        self._replaced("crashed")
        if isinstance(error, EOFError | ConnectionError):
            how = f"killed by {_signal_name(-code)}" if code < 0 else f"ended with exit code {code}"
        else:
            how = f"sent an unreadable response: {error}"
        return ClipError(Reason.DECODER_CRASHED, f"the decoder's process {how}"[:_MAX_DETAIL_CHARS], Retry.ONCE)


@contextmanager
def decoder_of_one(
    sampling: Sampling, prepare: Callable[[Frame], Frame], *, sandbox: Sandbox = "require"
) -> Iterator[DecodePool]:
    """Provide a pool that decodes one clip at a time, for commands with few clips."""
    pool = DecodePool(sampling, prepare, workers=1, timeout=_ONE_SECONDS, memory=_ONE_BYTES, sandbox=sandbox)
    try:
        yield pool
    finally:
        pool.close()


def _check_reason(header: Refused | Raised) -> None:
    """Raise ValueError for a reason that is not one of a file's content."""
    if isinstance(header, Refused) and header.reason not in _REASONS:
        raise ValueError(f"refused as {header.reason}")


def _signal_name(number: int) -> str:
    return next((known.name for known in signal.Signals if known == number), f"signal {number}")


class _Slots:
    """Slots for clips, first come first served, and as many permits for slow clips to continue without a slot."""

    def __init__(self, count: int) -> None:
        self._lock = threading.Lock()
        self._count = count
        self._free = count
        self._permits = count
        self._waiting: deque[threading.Event] = deque()

    def take(self, *, first: bool = False) -> None:
        """Wait for a slot; ``first``: ahead of all other waiting clips."""
        turn = threading.Event()
        with self._lock:
            if self._free:
                self._free -= 1
                return
            if first:
                self._waiting.appendleft(turn)
            else:
                self._waiting.append(turn)
        turn.wait()

    def give(self) -> None:
        """Release a slot, to the first waiting clip if there is one."""
        with self._lock:
            if self._waiting:
                self._waiting.popleft().set()
            else:
                self._free += 1

    def take_permit(self) -> bool:
        """Take a permit to continue without a slot; return False if none is left."""
        with self._lock:
            if not self._permits:
                return False
            self._permits -= 1
            return True

    @property
    def in_use(self) -> bool:
        """Whether any clip holds a slot."""
        return self._free < self._count

    def return_permit(self) -> None:
        """Give back a permit to continue without a slot."""
        with self._lock:
            self._permits += 1


class _Slot:
    """One clip's slot during a block; a slow clip can give it to others for a while."""

    def __init__(self, slots: _Slots) -> None:
        self._slots = slots
        self._given_up = False

    def __enter__(self) -> Self:
        self._slots.take()
        return self

    def __exit__(self, *_: object) -> None:
        if self._given_up:
            self._slots.return_permit()
        else:
            self._slots.give()

    @property
    def is_given_up(self) -> bool:
        """Whether the clip has given up its slot for now."""
        return self._given_up

    def give_up(self) -> bool:
        """Give the slot to the next clip; return False if that was done before, or no permit to do so is left."""
        if self._given_up or not self._slots.take_permit():
            return False
        self._given_up = True
        self._slots.give()
        return True

    def regain(self) -> None:
        """Wait for a slot again if it was given up."""
        if self._given_up:
            self._slots.take(first=True)
            self._given_up = False
            self._slots.return_permit()
