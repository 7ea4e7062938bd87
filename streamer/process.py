"""What a process is to the system that runs it."""

from __future__ import annotations

import ctypes

_LIBC = ctypes.CDLL(None, use_errno=True)
_PR_SET_DUMPABLE = 4


def hide_memory() -> None:
    """Keep other processes of this user from this one's memory, environment and descriptors, and leave no core dump.

    Only root can then attach a debugger or a profiler.
    """
    _LIBC.prctl(_PR_SET_DUMPABLE, ctypes.c_ulong(0), ctypes.c_ulong(0), ctypes.c_ulong(0), ctypes.c_ulong(0))
