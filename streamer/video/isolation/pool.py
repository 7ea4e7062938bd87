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
from streamer.video.errors import ClipError, Lack, MachineError, Retry, machine_error
from streamer.video.isolation.confinement import Layer, SandboxError
from streamer.video.isolation.process import LostError, Process, Template
from streamer.video.isolation.worker import NOT_CONFINED, Refused, Sampled, Task
from streamer.video.sampling.container import open_clip
from streamer.video.sampling.sample import SampledClip

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    import numpy.typing as npt

    from streamer.video.isolation.confinement import Sandbox
    from streamer.video.isolation.worker import Ready
    from streamer.video.sampling.sample import Sampling

    Frame = npt.NDArray[np.uint8]

SLOW_NICE: Final = 14
"""Niceness of a slow decode: a sixth of the weight of those that have a slot, 1/23 of the service's."""
_RUN_SECONDS, _REST_SECONDS = 0.1, 0.7
"""How it takes turns while other clips have a place. Its priority alone would not do: whatever processor is free for a
moment is its own then, and a decoder of huge frames takes the memory's bandwidth from all."""
_SLOW: Final = 4
"""A decode is slow if it takes this many times the median of recent decodes."""
_REMEMBERED: Final = 33
"""Number of recent decodes in that median."""
_MAX_DETAIL_CHARS: Final = 1_000
_ONE_SECONDS, _ONE_BYTES = 120.0, 2 << 30
"""Limits of a clip that a command decodes: the defaults of the service's settings."""
_MAX_FRAME_BYTES: Final = 16 << 20
"""Of a prepared frame: more than the largest picture that any encoder looks at (1024 x 1024 pixels are 3 MB)."""


MOST_PROCESSES: Final = 2
"""Decoding processes per worker: one with a place, and one that has left its place to another clip."""


class PoolClosedError(Exception):
    """The pool was closed before the clip was decoded; this is not an error of the clip."""


class DecodePool:
    """Decodes and samples clips, each in a process of its own. Safe to use from several threads at once.

    ``prepare`` makes what is handed on of each sampled RGB frame: uint8, the same shape for all frames of a clip. It is
    pickled, and its module imported by the processes, so both should be small. It is called for black frames of two
    sizes first: what it imports and opens it must have from then on, and where it gives both the same shape, as
    encoders do, no other is taken from a process. ``timeout``: seconds for decoding one clip. A
    clip's clock stops while other processes use the CPU; by the wall clock it gets ten times as many.
    ``memory``: bytes of address space of one process, see :class:`~streamer.video.isolation.worker.Task`.
    ``sandbox``: see :mod:`~streamer.video.isolation.confinement`; a pool that gets less than it requires decodes
        nothing. ``confined`` is told by what the processes are confined, when that is known or changes. ``replaced`` is
    told of each process that did not end by itself: ``crashed`` or ``timeout``; ``waited`` of each clip for how many
    seconds it waited for a place, ``decoded`` for how many it then waited for its frames.

    Places. ``workers`` clips have a place: they are being decoded, or their frames are in somebody's hands. A decode
    that takes longer than ``slow_after`` seconds, and four times as long as they usually do, leaves its place to the
    next clip and goes on at a low priority, and for an eighth of the time only while others have a place; at most
    ``workers`` do so at a time, more keep their places. When it is done it gets the next place, its frames still in its
    own process. So there are never more than 2 * ``workers`` decoding processes, and the service holds the frames of at
    most ``workers`` clips. Short clips thus pass long ones, whatever those are long for: a hanging clip takes from
    others in full no more than four clips would, or a quarter of a second.

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
        sandbox: Sandbox = "require",
        confined: Callable[[Layer], None] = lambda _layers: None,
        replaced: Callable[[str], None] = lambda _how: None,
        waited: Callable[[float], None] = lambda _seconds: None,
        decoded: Callable[[float], None] = lambda _seconds: None,
        slow_after: float = 0.25,
    ) -> None:
        self._most_frames = sampling.max_frames
        self._timeout = timeout
        self._confined = confined
        self._told: Layer | None = None
        self._replaced = replaced
        self._waited = waited
        self._decoded = decoded
        self._slow_after = slow_after
        self._lately: deque[float] = deque(maxlen=_REMEMBERED)
        self._places = _Places(workers)
        self._sandbox = sandbox
        self._task = pickle.dumps(Task(sampling, prepare, memory, timeout))
        self._lock = threading.Lock()
        self._closed = False
        self._template: Template | None = None
        with contextlib.suppress(LostError):  # it is tried again for the first clip
            self._running()

    @property
    def layers(self) -> Layer:
        """By what the processes are confined; waits until the template has started.

        Raises :class:`SandboxError` where that is less than is required, :class:`MachineError` where it does not start.
        """
        try:
            return Layer(self._checked(self._running()).layers)
        except LostError as lost:
            raise lost.lack from None

    @contextmanager
    def sampled(self, path: Path) -> Iterator[SampledClip[Frame]]:
        """Give the clip's sampled frames; it keeps its place for the length of the block.

        Raises :class:`ClipError`: what :func:`~streamer.video.sampling.sample` raises, DECODE_TIMEOUT, or
        DECODER_CRASHED. :class:`MachineError` where no process is to be had: nothing is known of the clip then.
        """
        came = time.monotonic()
        with _Place(self._places) as place:
            began = time.monotonic()
            file = open_clip(path)
            try:
                sampled = self._decode(file, place)
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

    def _decode(self, file: int, place: _Place) -> SampledClip[Frame]:
        try:
            try:
                return self._decode_once(file, place)
            except LostError:
                # The template died, or could not fork, which is not the clip's fault and is not reported.
                return self._decode_once(file, place)
        except LostError as lost:
            raise lost.lack from None

    def _decode_once(self, file: int, place: _Place) -> SampledClip[Frame]:
        template, process = self._start(file)
        with process:
            try:
                self._wait(process, place)
                header = process.receive_header()
                if isinstance(header, Sampled):
                    return self._receive_clip(process, header, template.ready())
            except TimeoutError:
                process.kill()
                self._replaced("timeout")
                detail = f"not decoded after {self._timeout:g} s"
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
        """Return what a template says of itself, if clips may be given to it."""
        ready = template.ready()
        layers = Layer(ready.layers)
        if layers != self._told:
            self._told = layers
            self._confined(layers)
        if self._sandbox == "require" and Layer.SECCOMP not in layers:
            raise SandboxError(layers)
        if ready.problem:
            raise ValueError(ready.problem)
        if ready.shape is not None and math.prod(ready.shape) > _MAX_FRAME_BYTES:
            raise ValueError(f"prepared frames of {ready.shape} are larger than {_MAX_FRAME_BYTES} bytes")
        return ready

    def _wait(self, process: Process, place: _Place) -> None:
        """Wait for the process to respond or end. Raises TimeoutError if it does neither in time."""
        # What is slow on one machine, or for other clips, is normal elsewhere.
        slow_after = max(self._slow_after, _SLOW * statistics.median(self._lately.copy() or [0]))
        look = slow_after
        while not process.ready(look):
            if process.left <= 0:
                raise TimeoutError
            to_go = slow_after - process.ran
            if to_go > 0:
                look = max(0.01, to_go)
                continue
            if place.leave():
                process.lower(SLOW_NICE)
            look = _RUN_SECONDS
            if place.is_left and self._places.are_used:
                process.rest(_REST_SECONDS)
        self._lately.append(process.ran)
        if place.return_():
            # The time of waiting for a slot does not count for the clip.
            process.begin()

    def _receive_clip(self, process: Process, header: Sampled, ready: Ready) -> SampledClip[Frame]:
        count, samples = header.frames, len(header.times_ms)
        if not 1 <= count <= samples <= self._most_frames:
            raise ValueError(f"{count} frames for {samples} samples")
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
        return SampledClip(times, list(frames), frame_of, header.duration_ms, header.decoded, header.partial)

    def _crash(self, template: Template, process: Process, error: Exception) -> Exception:
        code = process.end()
        if self._closed:
            return PoolClosedError()
        if code is None:
            template.end()  # it may be dying still, and must not be asked again
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
    """Give a pool that decodes one clip at a time, as commands do that have a few of them."""
    pool = DecodePool(sampling, prepare, workers=1, timeout=_ONE_SECONDS, memory=_ONE_BYTES, sandbox=sandbox)
    try:
        yield pool
    finally:
        pool.close()


def _signal_name(number: int) -> str:
    return next((known.name for known in signal.Signals if known == number), f"signal {number}")


class _Places:
    """Places for clips, and as many again for those that have left theirs. Who waits first is served first."""

    def __init__(self, count: int) -> None:
        self._lock = threading.Lock()
        self._count = count
        self._free = count
        self._aside = count
        self._waiting: deque[threading.Event] = deque()

    def take(self, *, at_once: bool = False) -> None:
        """Wait for a place, before all others or behind them."""
        turn = threading.Event()
        with self._lock:
            if self._free:
                self._free -= 1
                return
            if at_once:
                self._waiting.appendleft(turn)
            else:
                self._waiting.append(turn)
        turn.wait()

    def give(self) -> None:
        """Give a place back, to whoever waits for it."""
        with self._lock:
            if self._waiting:
                self._waiting.popleft().set()
            else:
                self._free += 1

    def step_aside(self) -> bool:
        """Count one more clip as aside; False where there are as many as may be."""
        with self._lock:
            if not self._aside:
                return False
            self._aside -= 1
            return True

    @property
    def are_used(self) -> bool:
        """Whether a clip has a place."""
        return self._free < self._count

    def come_back(self) -> None:
        """Count one clip less as aside."""
        with self._lock:
            self._aside += 1


class _Place:
    """One clip's place, for the length of a block; a clip can leave it to others for a while."""

    def __init__(self, places: _Places) -> None:
        self._places = places
        self._aside = False

    def __enter__(self) -> Self:
        self._places.take()
        return self

    def __exit__(self, *_: object) -> None:
        if self._aside:
            self._places.come_back()
        else:
            self._places.give()

    @property
    def is_left(self) -> bool:
        """Whether the clip has left it for now."""
        return self._aside

    def leave(self) -> bool:
        """Leave the place to the next clip; False where it is left already, or too many clips have left theirs."""
        if self._aside or not self._places.step_aside():
            return False
        self._aside = True
        self._places.give()
        return True

    def return_(self) -> bool:
        """Wait for a place again; False where it was not left."""
        if not self._aside:
            return False
        self._places.take(at_once=True)
        self._aside = False
        self._places.come_back()
        return True
