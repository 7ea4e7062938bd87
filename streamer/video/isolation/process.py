"""The service's side of the processes that decode clips; :mod:`streamer.video.isolation.worker` is the other one."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Final, Self

import msgspec

from streamer.video.errors import Lack, MachineError, machine_error
from streamer.video.isolation.worker import EXIT_CODE, HEADER_LENGTH, ORDER, PID, Header, Ready

STARVED: Final = 10
"""Limit of a decode's wall-clock time as a multiple of its time limit, for busy processors."""

_TEMPLATE = "import sys; sys.path[:] = sys.argv[2:]; from streamer.video.isolation.worker import main; main()"
_START_SECONDS: Final = 60.0
_FORK_SECONDS: Final = 30.0
_LOOK_SECONDS: Final = 0.5
_LAST_SECONDS: Final = 1.0
_END_SECONDS: Final = 10.0
"""How long the template may take to start on a busy machine, and to fork; how often it is looked at meanwhile whether
somebody has stopped it; how long a process may take to end when it has answered, and to give its memory back when it is
killed."""
_PASSED_ON: Final = ("PATH", "LANG", "LC_ALL", "LC_CTYPE", "LD_LIBRARY_PATH", "TZ")
"""The environment variables that decoders get; others may be secrets, such as passwords and keys."""
_ONE_THREAD: Final = dict.fromkeys(
    ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "BLIS_NUM_THREADS"), "1"
)
_HUGE_PAGES: Final = {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"}
"""Each process begins with untouched memory and soon fills some 70 MB of it: 18,000 page faults a clip, and a tenth of
its time, where the pages are small, a fifth as many where the kernel gives large ones (other systems ignore this)."""
_MAX_READY_BYTES: Final = 1 << 16
_MAX_HEADER_BYTES: Final = 1 << 20
_READY: Final = msgspec.json.Decoder(Ready)
_HEADERS: Final[msgspec.json.Decoder[Header]] = msgspec.json.Decoder(Header)


class LostError(Exception):
    """A clip's process could not be started, or went with its template; ``lack``: what the machine lacks."""

    def __init__(self, lack: MachineError) -> None:
        super().__init__(lack)
        self.lack = lack


def _lost(detail: str) -> LostError:
    return LostError(MachineError(Lack.PROCESSES, detail))


class Template:
    """The process that forks one for each clip; started at once, not waited for.

    It leads a process group, which holds its forks too: what is left of them when it has died can be told from other
    children of this process, and be waited for where they fall to it (as process 1 of a container they do).
    Raises OSError where no process is to be had.
    """

    def __init__(self, task: bytes) -> None:
        self._orders, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._lock = threading.Lock()
        self._ready: Ready | None = None
        kept = {name: os.environ[name] for name in _PASSED_ON if name in os.environ}
        with theirs:
            try:
                self._orders.setblocking(False)
                self._orders.send(task)  # it waits there until the process can read it
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
        """Whether it has ended for good."""
        return self._process.poll() is not None

    def ready(self) -> Ready:
        """Wait until it has started, and return what it says of itself; raises :class:`LostError`."""
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
        """Fork a process that decodes this file; raises :class:`LostError` where none came of it."""
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
                # It died, was stopped or hangs. Its end is waited for, so that it is not taken for alive once more.
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
        """Wait until there is something to read; False when time is over, or somebody has stopped the template."""
        end = time.monotonic() + seconds
        while not _readable(descriptor, _LOOK_SECONDS):
            if time.monotonic() >= end or _is_stopped(self._process.pid):
                return False
        return True

    def end(self) -> None:
        """Kill it and all its forks, and wait for them."""
        self._process.kill()
        self._process.wait()
        with self._lock:
            self._orders.close()
        _reap(self._process.pid)


class Process:
    """The process that decodes one clip; at the end of a ``with`` block it is gone."""

    def __init__(self, pid: int, answers: socket.socket, status: int, timeout: float) -> None:
        self._pid = pid
        self._answers = answers
        self._status = status
        self._exit_code: int | None = None
        self._timeout = timeout
        self.begin()
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

    def begin(self) -> None:
        """Start the clip's clock."""
        self._began, self._starved_before, self._rested = time.monotonic(), self._starved(), 0.0

    @property
    def ran(self) -> float:
        """Seconds of the clip's time; while others had the processor, or it had to rest, its clock stood still."""
        return time.monotonic() - self._began - (self._starved() - self._starved_before) - self._rested

    @property
    def left(self) -> float:
        """Seconds until the clip's time limit."""
        return min(self._timeout - self.ran, STARVED * self._timeout - (time.monotonic() - self._began))

    def _starved(self) -> float:
        """Return for how many seconds the process was ready to run and did not; 0 where the kernel keeps no count."""
        try:
            return int(Path(f"/proc/{self._pid}/schedstat").read_text().split()[1]) / 1e9
        except (OSError, IndexError, ValueError):
            return 0.0

    def ready(self, seconds: float) -> bool:
        """Wait for an answer or the end, for so long or until the clip's time is over."""
        return _readable(self._answers.fileno(), max(0.0, min(seconds, self.left)))

    def receive_header(self) -> Header:
        """Read what precedes the frames' bytes; raises as :meth:`receive_into` does, or that it cannot be read."""
        (length,) = HEADER_LENGTH.unpack(self._receive(HEADER_LENGTH.size))
        if length > _MAX_HEADER_BYTES:
            raise ValueError(f"a header of {length} bytes")
        return _HEADERS.decode(self._receive(length))

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

    def rest(self, seconds: float) -> None:
        """Pause the process for a while."""
        began = time.monotonic()
        self._signal(signal.SIGSTOP)
        time.sleep(seconds)
        self._signal(signal.SIGCONT)
        self._rested += time.monotonic() - began

    def lower(self, nice: int) -> None:
        """Lower the priority of all threads of the process."""
        with contextlib.suppress(OSError):  # a thread, or the process, that has just ended
            for thread in Path(f"/proc/{self._pid}/task").iterdir():
                os.setpriority(os.PRIO_PROCESS, int(thread.name), nice)

    def kill(self) -> None:
        """Kill it if it has not ended."""
        self._signal(signal.SIGKILL)

    def _signal(self, number: signal.Signals) -> None:
        if self._handle is not None:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._handle, number)

    def end(self) -> int | None:
        """Wait until the process has ended, killing it if necessary; return its exit code if it is known."""
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
    """Wait for the processes of a group whose leader has ended, as far as they are this process's children now."""
    end = time.monotonic() + _END_SECONDS
    with contextlib.suppress(ChildProcessError):
        while time.monotonic() < end:
            if os.waitid(os.P_PGID, group, os.WEXITED | os.WNOHANG) is None:
                time.sleep(0.005)


def _readable(descriptor: int, seconds: float) -> bool:
    """Wait until there is something to read, or the other side has gone."""
    poll = select.poll()
    poll.register(descriptor, select.POLLIN)
    return bool(poll.poll(seconds * 1000))
