"""Code of the decoding processes: a template process, and a fork of it for each clip, which ends after that clip.

The template is a new interpreter that has imported only what decoding needs (neither torch nor the Kafka client, so it
has none of their memory and threads). It has one thread and opens no untrusted file. Forking takes some milliseconds; a
new interpreter for each clip would take half a second. Because each clip has its own process, it leaves nothing behind
for the next clip: no leaked memory, no heap that a decoder has corrupted, no lowered priority.

Before a clip's process reads the first byte of its file, it is confined (:mod:`.confinement`): it can only compute,
read this one file through an open descriptor, and send its response. It cannot import or open anything from then on.
Therefore the template first decodes a generated clip, which imports and sets up everything that decoding needs.

Protocol: the template first sends :class:`Ready`. Then it receives one message for each clip on the same socket, with
the clip's three descriptors: ``file``, ``answers`` and ``status``. To the ``status`` pipe the template writes the id of
the clip's process (0 if it cannot fork) and, after the process has ended, its exit code. To the ``answers`` socket the
process itself writes a JSON header, preceded by its length, and then the frames' bytes. The service unpickles nothing
of it, because a process that has read an untrusted file is not trusted.

If the service dies in any way, the template reads the end of its socket and exits; the kernel then kills the
template's children, also during a decode.
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
from streamer.video.isolation.confinement import NOT_CONFINED, Layer, confine, offered
from streamer.video.sampling.sample import SampledClip, Sampling, sample_descriptor

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy.typing as npt

MAX_ORDER_BYTES = 128 << 10
"""Largest message on the orders' socket; the kernel's default buffer holds one of this size."""
HEADER_LENGTH = struct.Struct("!I")
PID = struct.Struct("!I")
EXIT_CODE = struct.Struct("!i")
"""As in :mod:`subprocess`: a negative code is the number of the signal that killed the process."""
ORDER = b"clip"

_NICE = 6
"""Niceness that gives a decoder a quarter of the scheduling weight of the service, whose threads poll Kafka, answer
probes and encode, which takes longest. If all processors are busy, finishing clips is better than starting new ones:
with niceness 2, decoders ran twenty clips ahead of the encoder, and the mean clip of a backlog waited 17 to 21 % longer
than the throughput explains; with 6, 5 to 6 %."""
_OOM_SCORE = 500
"""Makes the kernel kill a decoder rather than the service when it is out of memory."""
_OPEN_FILES = 32
_ANSWERS, _FILE = 3, 4
_DESCRIPTORS = 3
"""Number of descriptors that come with an order."""

_LIBC = ctypes.CDLL(None)
_PR_SET_PDEATHSIG, _PR_SET_NO_NEW_PRIVS = 1, 38

_REHEARSED = ((64, 64), (80, 63))
"""Widths and heights of the rehearsal's clips; an odd height makes the decoder load FFmpeg's filters too."""


@dataclass(frozen=True, slots=True)
class Task:
    """The work of every clip's process, and its limits.

    ``seconds``: processor time; ``memory``: bytes of address space, of which the interpreter and its libraries need
    some 250 MB.
    """

    sampling: Sampling
    prepare: Callable[[npt.NDArray[np.uint8]], npt.NDArray[np.uint8]]
    memory: int
    seconds: float


class Ready(msgspec.Struct, frozen=True):
    """The template's first message: the layers that confine its forks, and the shape of a prepared frame.

    ``layers``: bits of :class:`~.confinement.Layer`. ``shape``: None if it depends on the shape of the decoded frame.
    ``problem``: why no clip can be decoded; empty if there is no problem.
    """

    layers: int
    shape: list[int] | None
    problem: str = ""


class Sampled(msgspec.Struct, frozen=True, tag=True):
    """The header of a sampled clip, followed by its frames: ``frames`` arrays of ``shape``, uint8."""

    times_ms: list[Annotated[int, msgspec.Meta(ge=0, lt=2**32)]]
    frames: Annotated[int, msgspec.Meta(ge=1, lt=2**31)]
    frame_of: list[Annotated[int, msgspec.Meta(ge=0, lt=2**31)]]
    duration_ms: Annotated[int, msgspec.Meta(ge=0, lt=2**62)]
    decoded: Annotated[int, msgspec.Meta(ge=0, lt=2**62)]
    partial: bool
    recoloured: bool
    shape: Annotated[list[Annotated[int, msgspec.Meta(ge=1, lt=2**31)]], msgspec.Meta(max_length=4)]


class Refused(msgspec.Struct, frozen=True, tag=True):
    """The :class:`ClipError` that decoding the clip raised."""

    reason: Reason
    detail: str
    retry: Retry


class Raised(msgspec.Struct, frozen=True, tag=True):
    """Any other exception that decoding the clip raised, as text."""

    detail: str


Header = Sampled | Refused | Raised


def main() -> None:
    """Run the template until the service closes the orders' socket; argv[1] is its descriptor."""
    # Ctrl-C goes to the whole process group; the service decides when this process ends.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with socket.socket(fileno=int(sys.argv[1])) as orders:
        task = pickle.loads(orders.recv(MAX_ORDER_BYTES))  # noqa: S301 - the service sent it
        av.logging.set_level(None)
        os.nice(_NICE)
        os.environ.clear()
        # The forks inherit both. A process that hides its memory may not change its score any more.
        with contextlib.suppress(OSError):
            Path("/proc/self/oom_score_adj").write_text(str(_OOM_SCORE))
        hide_memory()
        layers = offered()
        orders.send(msgspec.json.encode(_rehearse(task, layers)))
        # The garbage collector does not write to frozen objects, so forks keep sharing their pages.
        gc.collect()
        gc.freeze()
        _Template(orders, task, layers).run()


def _rehearse(task: Task, layers: Layer) -> Ready:
    """Decode generated clips as a confined process will, so that everything this imports and sets up is in place."""
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
                raise  # this machine lacks a resource; the next template may succeed
            except Exception as error:  # noqa: BLE001 - raised by ``prepare``; reported to the service
                return Ready(int(layers), None, f"a black frame cannot be prepared: {type(error).__name__}: {error}")
            msgspec.json.encode(header)
            shapes.append(header.shape)
    return Ready(int(layers), shapes[0] if shapes[0] == shapes[1] else None)


def _black_clip(width: int, height: int) -> bytes:
    """Return a clip of two black frames in the YUV4MPEG2 format."""
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
        if len(descriptors) < _DESCRIPTORS:  # this process could not receive all of them
            _close(descriptors)
            return
        file, answers, status = descriptors
        try:
            pid = os.fork()
        except OSError:  # too many processes, or too little memory
            _tell(status, PID.pack(0))
            _close(descriptors)
            return
        if pid == 0:
            self._decode(file, answers)
        _close([file, answers])
        self._statuses[pid] = status
        _tell(status, PID.pack(pid))

    def _decode(self, file: int, answers: int) -> NoReturn:
        """Decode one clip in the forked process, and exit."""
        code = NOT_CONFINED
        try:
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            # Duplicated to numbers above those that dup2 replaces.
            file, answers = (fcntl.fcntl(each, fcntl.F_DUPFD_CLOEXEC, _OPEN_FILES) for each in (file, answers))
            os.dup2(1, 2)  # /dev/null: libraries' messages about a file must not get into the service's log
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
    with contextlib.suppress(OSError):  # the service has closed its end
        os.write(descriptor, message)


def _limit_all(task: Task, template: int) -> None:
    """Set the limits of this process, which it cannot raise again.

    RLIMIT_NPROC is not set, because it counts all processes of the user.
    """
    _LIBC.prctl(_PR_SET_PDEATHSIG, *map(ctypes.c_ulong, (signal.SIGKILL, 0, 0, 0)))
    if os.getppid() != template:  # the template died before the kernel was asked to report its death
        raise SystemExit
    _LIBC.prctl(_PR_SET_NO_NEW_PRIVS, *map(ctypes.c_ulong, (1, 0, 0, 0)))
    _limit(resource.RLIMIT_CORE, 0)
    _limit(resource.RLIMIT_FSIZE, 0)
    _limit(resource.RLIMIT_NOFILE, _OPEN_FILES)
    seconds = math.ceil(task.seconds) + 1
    # At the soft limit the kernel sends SIGXCPU, by which the service knows the cause; at the hard one SIGKILL.
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
    except Exception as error:  # noqa: BLE001 - any exception is reported to the service
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
        clip.recoloured,
        list(shape),
    )
