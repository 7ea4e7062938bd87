"""The processes that decode clips: a template, and for each clip a fork of it that decodes this one and ends.

The template is a fresh interpreter that has imported what decoding needs (no torch, no Kafka client: neither their
memory nor their threads are there), has one thread and opens no stranger's file. It forks on request, which takes some
milliseconds where a new interpreter takes half a second. A process for one clip leaves nothing for the next one: no
leak, no heap that a decoder has overwritten, no priority that cannot be raised again.

Before it reads the first byte of its file, a clip's process is confined (:mod:`.confinement`): it can compute, read
this one file, which it was given as an open descriptor, send its answer, and nothing else. Nothing can be imported or
opened from then on, so the template rehearses: it samples a clip that it makes up itself.

First the template says that it is :class:`Ready`. Then orders come through the same socket, a message each with the
three descriptors that are the clip's own: the ``file``, ``answers`` and ``status``. On its ``status`` pipe the template
tells the process's id (0 where none is to be had) and, when it has ended, its exit code. Through its ``answers`` socket
the process itself sends a header of JSON, its length first, and then the frames' bytes.
Nothing that comes from such a process is unpickled: what has read a stranger's file is not trusted.

How a process ends that nobody waits for any more: when the service dies, by whatever means, the template reads the
end of its socket and exits; the kernel then kills the template's children, be they in the midst of a decode.
"""

from __future__ import annotations

import contextlib
import ctypes
import dataclasses
import fcntl
import gc
import math
import os
import pickle
import resource
import selectors
import signal
import socket
import struct
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn

import av.logging
import msgspec
import numpy as np

from streamer.events import Reason
from streamer.process import hide_memory
from streamer.video.errors import ClipError, Retry
from streamer.video.isolation.confinement import Layer, confine, offered
from streamer.video.sampling.sample import SampledClip, Sampling, sample_descriptor

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy.typing as npt

MAX_ORDER_BYTES = 128 << 10
"""Largest message on the orders' socket; what the kernel's default buffer takes at once."""
HEADER_LENGTH = struct.Struct("!I")
PID = struct.Struct("!I")
EXIT_CODE = struct.Struct("!i")
"""As subprocess has it: negative is the number of the signal that killed the process."""
ORDER = b"clip"
NOT_CONFINED = 3
"""Exit code of a process that could not be confined, and so has not read its file."""

_NICE = 6
"""Below the service, at a quarter of its weight: its threads poll Kafka, answer probes and encode, which takes longest.
Where all processors are busy, clips are better finished than begun: with 2, decoders ran twenty clips ahead of the
encoder, and the mean clip of a backlog waited 17 to 21 % longer than the throughput explains; with 6, 5 to 6 %."""
_OOM_SCORE = 500
"""The kernel, out of memory, ends a decoder and not the service."""
_OPEN_FILES = 32
_ANSWERS, _FILE = 3, 4
_DESCRIPTORS = 3
"""Descriptors that come with an order."""

_LIBC = ctypes.CDLL(None)
_PR_SET_PDEATHSIG, _PR_SET_NO_NEW_PRIVS = 1, 38

_REHEARSED = ((64, 64), (80, 63))
"""Widths and heights of the clips of the rehearsal; for an odd height FFmpeg's filters are needed too."""


@dataclass(frozen=True, slots=True)
class Task:
    """What every clip's process is to do, and within which limits.

    ``seconds`` of processor time; ``memory``: bytes of address space, of which some 250 MB are the interpreter's
    and its libraries'.
    """

    sampling: Sampling
    prepare: Callable[[npt.NDArray[np.uint8]], npt.NDArray[np.uint8]]
    memory: int
    seconds: float


class Ready(msgspec.Struct, frozen=True):
    """What the template says first: by what its forks are confined, and what shape a prepared frame has.

    ``shape`` is None where it follows the frame's own. ``problem`` says why no clip will be decoded; empty if none.
    """

    layers: int
    shape: list[int] | None
    problem: str = ""


class Sampled(msgspec.Struct, frozen=True, tag=True):
    """The header of a clip's frames, which follow it: ``frames`` of ``shape``, uint8."""

    times_ms: list[Annotated[int, msgspec.Meta(ge=0, lt=2**32)]]
    frames: Annotated[int, msgspec.Meta(ge=1, lt=2**31)]
    frame_of: list[Annotated[int, msgspec.Meta(ge=0, lt=2**31)]]
    duration_ms: Annotated[int, msgspec.Meta(ge=0, lt=2**62)]
    decoded: Annotated[int, msgspec.Meta(ge=0, lt=2**62)]
    partial: bool
    shape: Annotated[list[Annotated[int, msgspec.Meta(ge=1, lt=2**31)]], msgspec.Meta(max_length=4)]


class Refused(msgspec.Struct, frozen=True, tag=True):
    """The :class:`ClipError` that a clip ended in."""

    reason: Reason
    detail: str
    retry: Retry


class Raised(msgspec.Struct, frozen=True, tag=True):
    """Any other exception, in words."""

    detail: str


Header = Sampled | Refused | Raised


def main() -> None:
    """Run the template until the service closes the orders' socket, which is the descriptor in argv[1]."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C goes to the whole group; the service says when it ends
    with socket.socket(fileno=int(sys.argv[1])) as orders:
        task = pickle.loads(orders.recv(MAX_ORDER_BYTES))  # noqa: S301 - the service sent it
        av.logging.set_level(None)
        os.nice(_NICE)
        os.environ.clear()
        layers = offered()
        orders.send(msgspec.json.encode(_rehearse(task, layers)))
        # Objects that the collector never looks at are not written to, so their pages stay shared.
        gc.collect()
        gc.freeze()
        _Template(orders, task, layers).run()


def _rehearse(task: Task, layers: Layer) -> Ready:
    """Do once what a confined process will do: what it imports and sets up on the way is then there."""
    sampling = dataclasses.replace(task.sampling, interval=1, max_frames=2, max_pixels=1 << 16)
    shapes = []
    for width, height in _REHEARSED:
        with open(os.memfd_create("rehearsal"), "wb") as file:  # noqa: PTH123 - it has no path
            with contextlib.suppress(ClipError):
                sample_descriptor(file.fileno(), sampling, task.prepare)
            file.write(_black_clip(width, height))
            file.flush()
            try:
                header = _header(sample_descriptor(file.fileno(), sampling, task.prepare))
            except (ClipError, OSError, MemoryError):
                raise  # it is this machine that lacks something: the next template may have it
            except Exception as error:  # noqa: BLE001 - of the function's own; the service is told
                return Ready(int(layers), None, f"a black frame cannot be prepared: {type(error).__name__}: {error}")
            msgspec.json.encode(header)
            shapes.append(header.shape)
    return Ready(int(layers), shapes[0] if shapes[0] == shapes[1] else None)


def _black_clip(width: int, height: int) -> bytes:
    """Return two frames as YUV4MPEG2 has them."""
    luma = width * height
    return f"YUV4MPEG2 W{width} H{height} F1:1 C444\n".encode() + 2 * (b"FRAME\n" + bytes(luma) + b"\x80" * (2 * luma))


class _Template:
    def __init__(self, orders: socket.socket, task: Task, layers: Layer) -> None:
        self._orders = orders
        self._task = task
        self._layers = layers
        self._pid = os.getpid()
        self._statuses: dict[int, int] = {}
        self._woken, wake = socket.socketpair()
        for end in (self._woken, wake):
            end.setblocking(False)
        self._wake = wake
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.set_wakeup_fd(wake.fileno(), warn_on_full_buffer=False)

    def run(self) -> None:
        with selectors.DefaultSelector() as selector:
            selector.register(self._orders, selectors.EVENT_READ)
            selector.register(self._woken, selectors.EVENT_READ)
            while True:
                ready = {key.fileobj for key, _ in selector.select()}
                if self._woken in ready:
                    self._woken.recv(4096)
                    self._reap()
                if self._orders in ready:
                    order, descriptors, _, _ = socket.recv_fds(self._orders, len(ORDER), _DESCRIPTORS)
                    if not order:
                        return
                    self._start(descriptors)

    def _start(self, descriptors: list[int]) -> None:
        if len(descriptors) < _DESCRIPTORS:  # no more could be received
            _close(descriptors)
            return
        file, answers, status = descriptors
        try:
            pid = os.fork()
        except OSError:  # no process is to be had
            _tell(status, PID.pack(0))
            _close(descriptors)
            return
        if pid == 0:
            self._decode(file, answers)
        _close([file, answers])
        self._statuses[pid] = status
        _tell(status, PID.pack(pid))

    def _decode(self, file: int, answers: int) -> NoReturn:
        """Be the process of one clip."""
        code = NOT_CONFINED
        try:
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            # Above those that are to be replaced.
            file, answers = (fcntl.fcntl(each, fcntl.F_DUPFD_CLOEXEC, _OPEN_FILES) for each in (file, answers))
            os.dup2(1, 2)  # /dev/null: nothing that a file makes a library say gets into the service's log
            os.dup2(answers, _ANSWERS)
            os.dup2(file, _FILE)
            os.closerange(_FILE + 1, os.sysconf("SC_OPEN_MAX"))
            with socket.socket(fileno=_ANSWERS) as connection:
                _limit_all(self._task, self._pid)
                confine(self._layers)
                code = 1
                _answer(connection, _FILE, self._task)
            code = 0
        finally:
            os._exit(code)

    def _reap(self) -> None:
        while self._statuses:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if not pid:
                return
            descriptor = self._statuses.pop(pid)
            _tell(descriptor, EXIT_CODE.pack(os.waitstatus_to_exitcode(status)))
            os.close(descriptor)


def _close(descriptors: list[int]) -> None:
    for descriptor in descriptors:
        os.close(descriptor)


def _tell(descriptor: int, message: bytes) -> None:
    with contextlib.suppress(OSError):  # nobody asks any more
        os.write(descriptor, message)


def _limit_all(task: Task, template: int) -> None:
    """Set the limits of this process, none of which it can raise again.

    Not among them is RLIMIT_NPROC, which counts all processes of a user and not one's children.
    """
    _LIBC.prctl(_PR_SET_PDEATHSIG, *map(ctypes.c_ulong, (signal.SIGKILL, 0, 0, 0)))
    if os.getppid() != template:  # it died before this process could ask to be told
        raise SystemExit
    _LIBC.prctl(_PR_SET_NO_NEW_PRIVS, *map(ctypes.c_ulong, (1, 0, 0, 0)))
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text(str(_OOM_SCORE))
    hide_memory()
    _limit(resource.RLIMIT_CORE, 0)
    _limit(resource.RLIMIT_FSIZE, 0)
    _limit(resource.RLIMIT_NOFILE, _OPEN_FILES)
    seconds = math.ceil(task.seconds) + 1
    # The soft limit sends SIGXCPU, which tells the service why; the hard one would send SIGKILL.
    _limit(resource.RLIMIT_CPU, seconds, seconds + 1)
    _limit(resource.RLIMIT_AS, task.memory)


def _limit(which: int, soft: int, hard: int | None = None) -> None:
    _, limit = resource.getrlimit(which)
    ceiling = math.inf if limit == resource.RLIM_INFINITY else limit
    resource.setrlimit(which, (int(min(soft, ceiling)), int(min(soft if hard is None else hard, ceiling))))


def _answer(connection: socket.socket, file: int, task: Task) -> None:
    frames: list[npt.NDArray[np.uint8]] = []
    header: Header
    try:
        clip = sample_descriptor(file, task.sampling, task.prepare)
        header, frames = _header(clip), clip.frames
    except ClipError as error:
        header = Refused(error.reason, error.detail, error.retry)
    except Exception as error:  # noqa: BLE001 - whatever it is, the service is told
        header = Raised(f"{type(error).__name__}: {error}")
    encoded = msgspec.json.encode(header)
    connection.sendall(HEADER_LENGTH.pack(len(encoded)) + encoded)
    for frame in frames:
        connection.sendall(np.ascontiguousarray(frame).data)


def _header(clip: SampledClip[npt.NDArray[np.uint8]]) -> Sampled:
    shape = clip.frames[0].shape
    for frame in clip.frames:
        if frame.shape != shape or frame.dtype != np.uint8:
            raise TypeError(f"a prepared frame is {frame.dtype} {frame.shape}, the clip's first one uint8 {shape}")
    return Sampled(
        clip.times_ms.tolist(),
        len(clip.frames),
        clip.frame_of.tolist(),
        clip.duration_ms,
        clip.decoded,
        clip.partial,
        list(shape),
    )
