"""Landlock without a rule: no file can be opened, made or changed by its path, no TCP port used, nobody signalled.

Three system calls (Linux 5.13 and newer, landlock(7)), which need no privilege and no library. Each version of the
interface (ABI) knows more rights; all that the kernel knows are taken away.
"""

from __future__ import annotations

import ctypes
import os
import struct
from typing import Final

_CREATE_RULESET, _RESTRICT_SELF = 444, 446
"""The same on all machines."""
_VERSION: Final = 1
_FS_RIGHTS: Final = {1: 13, 2: 14, 3: 15, 5: 16}
"""From which ABI how many rights to files are known: the first 13, renaming to elsewhere, truncating, ioctl."""
_NET_SINCE, _NET_RIGHTS = 4, 0b11
"""Binding and connecting TCP sockets."""
_SCOPE_SINCE, _SCOPES = 6, 0b11
"""Abstract UNIX sockets and signals of whoever is outside."""

_LIBC = ctypes.CDLL(None, use_errno=True)
_PR_SET_NO_NEW_PRIVS = 38


def abi() -> int:
    """Return the version that the kernel offers, 0 where it has none or may not be asked."""
    version: int = _LIBC.syscall(_CREATE_RULESET, None, ctypes.c_size_t(0), ctypes.c_uint(_VERSION))
    return max(0, version)


def attributes(version: int) -> bytes:
    """Return the ruleset's ``struct landlock_ruleset_attr`` for an ABI >= 1: everything that it knows is denied."""
    bits = max(count for since, count in _FS_RIGHTS.items() if version >= since)
    words = [(1 << bits) - 1]
    if version >= _NET_SINCE:
        words.append(_NET_RIGHTS)
    if version >= _SCOPE_SINCE:
        words.append(_SCOPES)
    return struct.pack(f"={len(words)}Q", *words)


def confine() -> None:
    """Put the calling thread, and what it makes from now on, under the ruleset for good. OSError: not to be had."""
    version = abi()
    if not version:
        raise OSError(ctypes.get_errno(), "no Landlock")
    wanted = attributes(version)
    ruleset = _LIBC.syscall(_CREATE_RULESET, wanted, ctypes.c_size_t(len(wanted)), ctypes.c_uint(0))
    if ruleset < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    try:
        _LIBC.prctl(_PR_SET_NO_NEW_PRIVS, ctypes.c_ulong(1), None, ctypes.c_ulong(0), ctypes.c_ulong(0))
        if _LIBC.syscall(_RESTRICT_SELF, ctypes.c_int(ruleset), ctypes.c_uint(0)):
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    finally:
        os.close(ruleset)
