"""What a process is to the system that runs it."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
from typing import Final

_LIBC = ctypes.CDLL(None, use_errno=True)
_PR_SET_DUMPABLE = 4


def hide_memory() -> None:
    """Keep other processes of this user from this one's memory, environment and descriptors, and leave no core dump.

    Only root can then attach a debugger or a profiler.
    """
    _LIBC.prctl(_PR_SET_DUMPABLE, ctypes.c_ulong(0), ctypes.c_ulong(0), ctypes.c_ulong(0), ctypes.c_ulong(0))


_PASSED_ON: Final = {signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2}
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
                os._exit(code if code >= 0 else 128 - code)
