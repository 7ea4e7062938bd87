"""The service's side of the decoding processes; :mod:`streamer.video.isolation.worker` runs in the processes."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Final, Self

import msgspec

from streamer.machine import Lack, MachineError, machine_error
from streamer.video.isolation.worker import EXIT_CODE, HEADER_LENGTH, ORDER, PID, Header, Ready

STARVED: Final = 10
"""Limit of a decode's wall-clock time as a multiple of its time limit, for busy processors."""

_TEMPLATE = "import sys; sys.path[:] = sys.argv[2:]; from streamer.video.isolation.worker import main; main()"
_START_SECONDS: Final = 60.0
_FORK_SECONDS: Final = 30.0
_LOOK_SECONDS: Final = 0.5
_LAST_SECONDS: Final = 1.0
_END_SECONDS: Final = 10.0
"""Time limits for the template to start on a busy machine, and to fork; the interval of checks, meanwhile, whether it
was stopped by a signal; time limits for a process to end after its response, and to end after it was killed."""
_PASSED_ON: Final = ("PATH", "LANG", "LC_ALL", "LC_CTYPE", "LD_LIBRARY_PATH", "TZ")
"""The environment variables that decoders inherit; others may contain secrets, such as passwords and keys."""
_ONE_THREAD: Final = dict.fromkeys(
    ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "BLIS_NUM_THREADS"), "1"
)
_HUGE_PAGES: Final = {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"}
"""Each process starts with unmapped memory and soon fills some 70 MB of it. With small pages these are 16,700 page
faults a clip, a tenth of its time; with huge pages 2,900. Ignored by other C libraries than glibc."""
_TIMEVAL: Final = struct.Struct("@ll")
_MAX_READY_BYTES: Final = 1 << 16
_MAX_HEADER_BYTES: Final = 1 << 20
_READY: Final = msgspec.json.Decoder(Ready)
_HEADERS: Final[msgspec.json.Decoder[Header]] = msgspec.json.Decoder(Header)


class LostError(Exception):
    """A clip's process could not be started, or died with its template; ``lack``: the shortage of this machine."""

    def __init__(self, lack: MachineError) -> None:
        super().__init__(lack)
        self.lack = lack


def _lost(detail: str) -> LostError:
    return LostError(MachineError(Lack.PROCESSES, detail))


class Template:
    """The process that forks another one for each clip. The constructor starts it and does not wait for it.

    It leads a process group to which its forks belong. If it dies, its orphaned forks may become children of this
    process (which happens if this is process 1 of a container); by the group they can be told from other children, and
    be reaped. Raises OSError if the process cannot be started.
    """

    def __init__(self, task: bytes) -> None:
        self._orders, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._lock = threading.Lock()
        self._ready: Ready | None = None
        kept = {name: os.environ[name] for name in _PASSED_ON if name in os.environ}
        with theirs:
            try:
                self._orders.setblocking(False)
                self._orders.send(task)  # buffered by the socket until the process reads it
                self._process = subprocess.Popen(  # noqa: S603 - this interpreter and this package
                    [sys.executable, "-I", "-c", _TEMPLATE, str(theirs.fileno()), *sys.path],
                    env={**kept, **_ONE_THREAD, **_HUGE_PAGES},
                    pass_fds=[theirs.fileno()],
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    process_group=0,
                )
            except BaseException:
                self._orders.close()
                raise

    @property
    def ended(self) -> bool:
        """Whether the template's process has ended."""
        return self._process.poll() is not None

    def ready(self) -> Ready:
        """Wait until the template has started, and return its description of itself. Raises :class:`LostError`."""
        with self._lock:
            if self._ready is None:
                try:
                    told = b""
                    if self._await(self._orders.fileno(), _START_SECONDS):
                        told = self._orders.recv(_MAX_READY_BYTES)
                    self._ready = _READY.decode(told)
                except (OSError, ValueError, msgspec.MsgspecError):
                    self._process.kill()
            ready = self._ready
        if ready is None:
            self.end()
            raise _lost("the decoders' template does not start")
        return ready

    def start(self, file: int, timeout: float) -> Process:
        """Fork a process that decodes this file. Raises :class:`LostError` if none could be forked."""
        self.ready()
        with ExitStack() as opened:
            try:
                answers, theirs = socket.socketpair()
                opened.enter_context(answers)
                opened.enter_context(theirs)
                status, status_of = os.pipe()
            except OSError as error:
                raise LostError(machine_error(error) or MachineError(Lack.DESCRIPTORS, str(error))) from None
            opened.callback(os.close, status)
            with theirs, os.fdopen(status_of, "wb", buffering=0):
                try:
                    with self._lock:
                        socket.send_fds(self._orders, [ORDER], [file, theirs.fileno(), status_of])
                except OSError as error:
                    lack = machine_error(error)
                    if lack is None:
                        self.end()
                    raise LostError(lack or MachineError(Lack.PROCESSES, str(error))) from None
            told = os.read(status, PID.size) if self._await(status, _FORK_SECONDS) else b""
            if not told:
                # It died, was stopped or hangs. Wait for its end, so that the next caller does not find it alive.
                self.end()
                raise _lost("the decoders' template has died or does not answer")
            (pid,) = PID.unpack(told)
            if not pid:
                raise _lost("the decoders' template cannot fork")
            try:
                process = Process(pid, answers, status, timeout)
            except OSError as error:
                raise LostError(machine_error(error) or MachineError(Lack.DESCRIPTORS, str(error))) from None
            opened.pop_all()
            return process

    def _await(self, descriptor: int, seconds: float) -> bool:
        """Wait for data to read; return False after ``seconds``, or if the template was stopped by a signal."""
        end = time.monotonic() + seconds
        while not _readable(descriptor, _LOOK_SECONDS):
            if time.monotonic() >= end or _is_stopped(self._process.pid):
                return False
        return True

    def end(self) -> None:
        """Kill the template and all its forks, and wait for their ends."""
        self._process.kill()
        self._process.wait()
        with self._lock:
            self._orders.close()
        _reap(self._process.pid)


class Process:
    """The process that decodes one clip; it has ended when its ``with`` block ends."""

    def __init__(self, pid: int, answers: socket.socket, status: int, timeout: float) -> None:
        self._pid = pid
        self._answers = answers
        self._status = status
        self._exit_code: int | None = None
        self.begin(timeout)
        try:
            self._handle: int | None = os.pidfd_open(pid)
        except ProcessLookupError:
            self._handle = None  # it has already ended

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.end()
        self._answers.close()
        os.close(self._status)
        if self._handle is not None:
            os.close(self._handle)

    def begin(self, limit: float) -> None:
        """Start the clip's clock, with a time limit in seconds."""
        self._limit = limit
        self._began, self._starved_before, self._rested = time.monotonic(), self._starved(), 0.0

    @property
    def ran(self) -> float:
        """Seconds on the clip's clock, which stops while the process waits for a CPU or is stopped by :meth:`rest`."""
        return time.monotonic() - self._began - (self._starved() - self._starved_before) - self._rested

    @property
    def left(self) -> float:
        """Seconds until the clip's time limit."""
        return min(self._limit - self.ran, STARVED * self._limit - (time.monotonic() - self._began))

    def _starved(self) -> float:
        """Return the seconds during which the process waited for a CPU; 0 if the kernel does not count them."""
        try:
            return int(Path(f"/proc/{self._pid}/schedstat").read_text().split()[1]) / 1e9
        except (OSError, IndexError, ValueError):
            return 0.0

    def ready(self, seconds: float) -> bool:
        """Wait up to ``seconds``, but not beyond the clip's time limit, until the process responds or ends."""
        return _readable(self._answers.fileno(), max(0.0, min(seconds, self.left)))

    def receive_header(self) -> Header:
        """Read the header that precedes the frames' bytes.

        Raises as :meth:`receive_into` does, and ValueError or MsgspecError for an invalid header.
        """
        (length,) = HEADER_LENGTH.unpack(self._receive(HEADER_LENGTH.size))
        if length > _MAX_HEADER_BYTES:
            raise ValueError(f"a header of {length} bytes")
        try:
            return _HEADERS.decode(self._receive(length))
        except RecursionError as error:
            raise ValueError(f"a header that nests too deeply: {error}") from error

    def _receive(self, size: int) -> bytearray:
        received = bytearray(size)
        self.receive_into(memoryview(received))
        return received

    def receive_into(self, buffer: memoryview) -> None:
        """Fill the buffer. Raises EOFError if the process ends early, TimeoutError at the clip's time limit.

        The kernel waits for all bytes: a process that sends single ones costs this process no time of its own.
        """
        while buffer:
            seconds, microseconds = divmod(round(1e6 * max(0.001, self.left)), 1_000_000)
            timeout = _TIMEVAL.pack(seconds, microseconds)
            self._answers.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, timeout)
            try:
                count = self._answers.recv_into(buffer, 0, socket.MSG_WAITALL)
            except BlockingIOError:
                count = -1  # nothing came until then
            if not count:
                raise EOFError
            buffer = buffer[max(0, count) :]
            if buffer and self.left <= 0:
                raise TimeoutError(f"the decoder's response was not complete {self._limit:g} s after its first byte")

    def rest(self, seconds: float) -> None:
        """Stop the process for ``seconds``; blocks meanwhile."""
        began = time.monotonic()
        self._signal(signal.SIGSTOP)
        time.sleep(seconds)
        self._signal(signal.SIGCONT)
        self._rested += time.monotonic() - began

    def lower(self, nice: int) -> None:
        """Lower the priority of all threads of the process."""
        with contextlib.suppress(OSError):  # a thread or the process may have just ended
            for thread in Path(f"/proc/{self._pid}/task").iterdir():
                os.setpriority(os.PRIO_PROCESS, int(thread.name), nice)

    def kill(self) -> None:
        """Kill the process if it has not ended."""
        self._signal(signal.SIGKILL)

    def _signal(self, number: signal.Signals) -> None:
        if self._handle is not None:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._handle, number)

    def end(self) -> int | None:
        """Wait until the process has ended, killing it if necessary; return its exit code, None if it is not known."""
        if self._exit_code is None:
            if not _readable(self._status, _LAST_SECONDS):
                self.kill()
                _readable(self._status, _END_SECONDS)
            os.set_blocking(self._status, False)
            with contextlib.suppress(BlockingIOError):
                code = os.read(self._status, EXIT_CODE.size)
                self._exit_code = EXIT_CODE.unpack(code)[0] if code else None
        return self._exit_code


def _is_stopped(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] in {"T", "t"}
    except (OSError, IndexError):
        return False


def _reap(group: int) -> None:
    """Reap the processes of a group whose leader has ended, if they are children of this process now."""
    end = time.monotonic() + _END_SECONDS
    with contextlib.suppress(ChildProcessError):
        while time.monotonic() < end:
            if os.waitid(os.P_PGID, group, os.WEXITED | os.WNOHANG) is None:
                time.sleep(0.005)


def _readable(descriptor: int, seconds: float) -> bool:
    """Wait up to ``seconds`` until there is data to read or the other side has closed; return whether it happened."""
    poll = select.poll()
    poll.register(descriptor, select.POLLIN)
    return bool(poll.poll(seconds * 1000))
