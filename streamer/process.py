"""What a process is to the system that runs it."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import subprocess
import threading
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Sequence

_LIBC = ctypes.CDLL(None, use_errno=True)
_PR_SET_DUMPABLE = 4


def hide_memory() -> None:
    """Keep other processes of this user from this one's memory, environment and descriptors, and leave no core dump.

    Only root can then attach a debugger or a profiler.
    """
    _LIBC.prctl(_PR_SET_DUMPABLE, ctypes.c_ulong(0), ctypes.c_ulong(0), ctypes.c_ulong(0), ctypes.c_ulong(0))


def stopped_by_signals() -> threading.Event:
    """Return an event that SIGINT and SIGTERM set, for a command that runs until then."""
    # An exception could be raised inside a client's callback, where it would be lost.
    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
    return stop


# The shell becomes the command (so the process id is the command's own) after leaving a watcher behind, which reads
# from a pipe that only the parent can write to. However the parent ends, the pipe ends too, and the watcher kills the
# process group, which is the command and itself. Linux's own way, PR_SET_PDEATHSIG, fires when the *thread* that
# spawned it ends, and to set it Python would have to run between fork and exec.
_END_WITH_PARENT: Final = 'exec 3<&0 </dev/null; { read -r _; kill -KILL 0; } <&3 & exec 3<&-; exec "$@"'


def start_ending_with_parent(command: Sequence[str], **options: Any) -> subprocess.Popen[bytes]:
    """Start ``command`` in a session of its own; it never outlives this process, however that ends.

    ``options``: those of :class:`subprocess.Popen`. The command sees nothing of ``stdin``, which must be closed when it
    has ended: that ends the watcher.
    """
    return subprocess.Popen(  # noqa: S603 - callers pass command lines of their own
        ["/bin/sh", "-c", _END_WITH_PARENT, "sh", *command],
        stdin=subprocess.PIPE,
        start_new_session=True,
        **options,
    )


_PASSED_ON: Final = {signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2}
_KILLED: Final = b"streamer: killed (SIGKILL): by the kernel, if the memory limit was reached, or by somebody\n"
_FROM_THE_TERMINAL: Final = 0x80
"""``si_code`` of a signal that the kernel sends to all processes of the terminal's foreground group."""


def leave_process_1() -> None:
    """Where this is process 1, as in a container without an init, go on as its child; it becomes an init.

    Process 1 inherits the processes whose parents have ended, and must wait for them, or they stay as zombies until the
    limit of processes is reached. The init waits for all, passes signals on, and ends as its child does (with 128 and
    the signal's number where that was killed). To be called before any thread is started.
    """
    if os.getpid() != 1:
        return
    awaited = {*_PASSED_ON, signal.SIGCHLD}
    signal.pthread_sigmask(signal.SIG_BLOCK, awaited)
    child = os.fork()
    if child == 0:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, awaited)
        return
    hide_memory()  # it has the same environment
    while True:
        received = signal.sigwaitinfo(awaited)
        if received.si_signo == signal.SIGCHLD:
            _reap(child)
        elif received.si_code != _FROM_THE_TERMINAL:
            os.kill(child, received.si_signo)  # its id is its own until it is waited for


def _reap(child: int) -> None:
    """Wait for all that have ended; end where ``child`` is one of them."""
    ended = -1
    with contextlib.suppress(ChildProcessError):
        while ended:
            ended, status = os.waitpid(-1, os.WNOHANG)
            if ended == child:
                code = os.waitstatus_to_exitcode(status)
                if code == -signal.SIGKILL:
                    os.write(2, _KILLED)  # it could not say so itself
                os._exit(code if code >= 0 else 128 - code)
