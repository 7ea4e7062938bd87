"""Decoding in processes apart, so that a crash, a hang or a bomb costs its clip and nothing else."""

from __future__ import annotations

import contextlib
import math
import os
import pickle
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Final, Self

import msgspec
import numpy as np

from streamer.events import Reason
from streamer.video.errors import ClipError, Retry
from streamer.video.sample import SampledClip
from streamer.video.worker import (
    EXIT_CODE,
    HEADER_LENGTH,
    PID,
    Header,
    Refused,
    Sampled,
    Task,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import numpy.typing as npt

    from streamer.video.sample import Sampling

    Frame = npt.NDArray[np.uint8]

SLOW_NICE: Final = 12
"""Priority of a decode that takes long. It then has a tenth of the weight of one that runs as usual: little enough
that others hardly notice, and enough that an honest long clip comes to its end while all processors are busy."""

_TEMPLATE = "from streamer.video.worker import main; main()"
_START_SECONDS: Final = 60.0
_LAST_SECONDS: Final = 1.0
_END_SECONDS: Final = 10.0
"""How long a process may take to start on a busy machine, to end when it has answered, and to give its memory back
when it is killed."""
_PASSED_ON: Final = ("PATH", "LANG", "LC_ALL", "LC_CTYPE", "LD_LIBRARY_PATH", "TZ")
"""Of the environment, which otherwise holds what strangers' files must not come near: passwords and keys."""
_ONE_THREAD: Final = dict.fromkeys(
    ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "BLIS_NUM_THREADS"), "1"
)
_MAX_HEADER_BYTES: Final = 1 << 20
_MAX_DETAIL_CHARS: Final = 1_000


class PoolClosedError(Exception):
    """The pool was closed before the clip was decoded, which says nothing about the clip."""


class DecodePool:
    """Decodes and samples clips, each in a process of its own. Safe to use from several threads at once.

    ``prepare`` makes what is handed on of each sampled RGB frame: uint8 of one and the same shape. It is pickled, and
    its module imported by the processes, so both should be small. ``timeout``: seconds for decoding one clip.
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
        slow_after: float = 2.0,
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
        self._template = _Template(self._task)

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
            except _LostError:
                # The template died, or could not fork: through no fault of the clip, so nobody needs to hear of it.
                return self._decode_once(path, place)
        except _LostError:
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

    def _start(self, path: Path) -> _Process:
        with self._lock:
            if self._closed:
                raise PoolClosedError
            if self._template.ended:
                self._template = _Template(self._task)
            template = self._template
        try:
            return template.start(path, self._timeout)
        except _LostError:
            if self._closed:
                raise PoolClosedError from None
            raise

    def _wait(self, process: _Process, place: _Place) -> None:
        """Wait for the process to answer or end; TimeoutError where it does neither in time."""
        look = self._slow_after
        while not process.ready(look):
            if process.left <= 0:
                raise TimeoutError
            if place.swap(self._slow, block=False):
                process.lower()
                look = math.inf
            else:
                look = 0.5
        if not place.is_in(self._places):
            place.swap(self._places, block=True)
            # What it waited for a place is not the clip's fault.
            process.allow(self._timeout)

    def _receive_clip(self, process: _Process, header: Sampled) -> SampledClip[Frame]:
        count = len(header.times_ms)
        size = count * math.prod(header.shape)
        if not 1 <= count <= self._most_frames or size > self._memory:
            raise ValueError(f"{count} frames of {header.shape}")
        frames = np.empty((count, *header.shape), dtype=np.uint8)
        process.receive_into(frames.reshape(-1).data)
        times = np.array(header.times_ms, dtype=np.uint32)
        return SampledClip(times, list(frames), header.duration_ms, header.decoded, header.partial)

    def _crash(self, process: _Process, error: Exception) -> Exception:
        code = process.end()
        if self._closed:
            return PoolClosedError()
        if code is None:
            return _LostError()
        if code == -signal.SIGXCPU:
            self._replaced("timeout")
            return ClipError(Reason.DECODE_TIMEOUT, f"{self._timeout:g} s of processor time used", Retry.ONCE)
        self._replaced("crashed")
        if isinstance(error, EOFError | ConnectionError):
            how = f"killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
        else:
            how = f"answered what cannot be read: {error}"
        return ClipError(Reason.DECODER_CRASHED, f"the decoder's process {how}"[:_MAX_DETAIL_CHARS], Retry.ONCE)


class _LostError(Exception):
    """A clip's process could not be started, or went with its template."""


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


class _Template:
    """The process that forks one for each clip; started at once, not waited for."""

    def __init__(self, task: bytes) -> None:
        self._orders, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._orders.settimeout(_START_SECONDS)
        self._lock = threading.Lock()
        kept = {name: os.environ[name] for name in _PASSED_ON if name in os.environ}
        with theirs:
            self._process = subprocess.Popen(  # noqa: S603 - this interpreter and this package
                [sys.executable, "-P", "-c", _TEMPLATE, str(theirs.fileno())],
                env={**kept, **_ONE_THREAD, "PYTHONPATH": os.pathsep.join(sys.path)},
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
            )
        self._orders.send(task)

    @property
    def ended(self) -> bool:
        return self._process.poll() is not None

    def start(self, path: Path, timeout: float) -> _Process:
        """Fork a process that decodes this file; raises :class:`_LostError` where none came of it."""
        with ExitStack() as opened:
            answers, theirs = socket.socketpair()
            status, status_of = os.pipe()
            with theirs, os.fdopen(status_of, "wb", buffering=0):
                opened.enter_context(answers)
                opened.callback(os.close, status)
                try:
                    with self._lock:
                        socket.send_fds(self._orders, [os.fsencode(path)], [theirs.fileno(), status_of])
                except OSError:
                    self.end()
                    raise _LostError from None
            if not _readable(status, _START_SECONDS):
                self.end()
            pid = os.read(status, PID.size)
            if not pid:
                raise _LostError
            opened.pop_all()
            return _Process(PID.unpack(pid)[0], answers, status, timeout)

    def end(self) -> None:
        """Kill it, and with it all that it forked."""
        self._process.kill()
        self._process.wait()
        with self._lock:
            self._orders.close()


class _Process:
    """The process that decodes one clip; at the end of a ``with`` block it is gone."""

    def __init__(self, pid: int, answers: socket.socket, status: int, timeout: float) -> None:
        self._pid = pid
        self._answers = answers
        self._status = status
        self._exit_code: int | None = None
        self._deadline = time.monotonic() + timeout
        try:
            self._handle: int | None = os.pidfd_open(pid)
        except ProcessLookupError:
            self._handle = None  # it has ended already

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.end()
        self._answers.close()
        os.close(self._status)
        if self._handle is not None:
            os.close(self._handle)

    @property
    def left(self) -> float:
        """Seconds until the clip's time is over."""
        return self._deadline - time.monotonic()

    def allow(self, seconds: float) -> None:
        """Let the clip's time be over in so many seconds."""
        self._deadline = time.monotonic() + seconds

    def ready(self, seconds: float) -> bool:
        """Wait for an answer or the end, for so long or until the clip's time is over."""
        return _readable(self._answers.fileno(), max(0.0, min(seconds, self.left)))

    def receive_header(self) -> Header:
        (length,) = HEADER_LENGTH.unpack(self._receive(HEADER_LENGTH.size))
        if length > _MAX_HEADER_BYTES:
            raise ValueError(f"a header of {length} bytes")
        header: Header = msgspec.json.decode(self._receive(length), type=Header)
        return header

    def _receive(self, size: int) -> bytearray:
        received = bytearray(size)
        self.receive_into(memoryview(received))
        return received

    def receive_into(self, buffer: memoryview) -> None:
        """Fill the buffer; EOFError where the process ends before, TimeoutError where the clip's time does."""
        while buffer:
            self._answers.settimeout(max(0.001, self.left))
            count = self._answers.recv_into(buffer)
            if not count:
                raise EOFError
            buffer = buffer[count:]

    def lower(self) -> None:
        """Give all threads of the process the priority of a slow decode."""
        with contextlib.suppress(OSError):  # a thread, or the process, that has just ended
            for thread in Path(f"/proc/{self._pid}/task").iterdir():
                os.setpriority(os.PRIO_PROCESS, int(thread.name), SLOW_NICE)

    def kill(self) -> None:
        if self._handle is not None:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._handle, signal.SIGKILL)

    def end(self) -> int | None:
        """Wait until the process has ended, killing it if need be; return its exit code, if it can be known."""
        if self._exit_code is None:
            if not _readable(self._status, _LAST_SECONDS):
                self.kill()
                _readable(self._status, _END_SECONDS)
            os.set_blocking(self._status, False)
            with contextlib.suppress(BlockingIOError):
                code = os.read(self._status, EXIT_CODE.size)
                self._exit_code = EXIT_CODE.unpack(code)[0] if code else None
        return self._exit_code


def _readable(descriptor: int, seconds: float) -> bool:
    """Wait until there is something to read, or the other side has gone."""
    poll = select.poll()
    poll.register(descriptor, select.POLLIN)
    return bool(poll.poll(seconds * 1000))
