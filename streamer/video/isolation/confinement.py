"""What a decoder is kept from, in two layers, and what the kernel offers of them.

- The filter of system calls (seccomp-BPF) denies all but computing, reading what is open and answering: what it does
  not list fails with EPERM, for good.
- Landlock (Linux 5.13 and newer, landlock(7)) without a rule denies files, TCP, signals and abstract sockets once more,
  by another part of the kernel. Its three system calls need no privilege and no library. Each version of the interface
  (ABI) knows more rights; all that the kernel knows are taken away.

The filter alone keeps every promise of docs/security.md. Landlock alone does not: UDP, processes and system calls that
have had faults are left.

The filter is put together here, in the kernel's own instructions, since all that it has to tell is a list of numbers
and a few words of arguments; docs/decisions/decoder-sandbox.md says why by no library. The list holds what a decoder
needs whose file is open, whose libraries are loaded and whose answer goes to a connected socket: memory, threads,
locks, clocks, reading and writing. Nothing on it takes a path, an address or another process's id. Where a call could
do more than is needed, its arguments are looked at; no argument that points to memory can be, so fstat's modern form,
which takes a path, is not on the list either.
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import struct
import sys
from enum import IntFlag
from typing import TYPE_CHECKING, Final, Literal, NamedTuple

from streamer.video.errors import Lack, MachineError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

Sandbox = Literal["require", "permissive"]
"""``require``: nothing is decoded without the filter of system calls. ``permissive``: with what the kernel offers."""

_LIBC = ctypes.CDLL(None, use_errno=True)
_PR_SET_NO_NEW_PRIVS = 38


class Layer(IntFlag):
    """What confines a decoder; 0 is nothing."""

    LANDLOCK = 1
    SECCOMP = 2

    @property
    def mode(self) -> str:
        """Its name in a metric and in the probe: ``seccomp+landlock``, ``seccomp``, ``landlock`` or ``none``."""
        names = [name for layer, name in ((Layer.SECCOMP, "seccomp"), (Layer.LANDLOCK, "landlock")) if layer in self]
        return "+".join(names) or "none"


MODES: Final = tuple(Layer(bits).mode for bits in range(4))


class SandboxError(MachineError):
    """The kernel, or the container around it, offers less than is required."""

    def __init__(self, offered: Layer) -> None:
        super().__init__(
            Lack.SANDBOX,
            "decoders get no filter of system calls (seccomp) from this kernel, or from the profile of this container; "
            f"what a hostile file makes of its decoder would be kept back by: {offered.mode}",
        )


def confine(layers: Layer) -> None:
    """Put this process under the layers, for good. OSError where one cannot be had."""
    for layer, confine_by in _CONFINE.items():
        if layer in layers:
            confine_by()


def confine_as_far_as_possible() -> Layer:
    """Put this process under what can be had, and return what that was."""
    had = Layer(0)
    for layer, confine_by in _CONFINE.items():
        try:
            confine_by()
        except OSError:
            continue
        had |= layer
    return had


def offered() -> Layer:
    """Try in a child of this process, which must have one thread, what can be had. OSError: no child is to be had."""
    child = os.fork()
    if child == 0:
        layers = 0
        try:
            layers = int(confine_as_far_as_possible())
        finally:
            os._exit(layers)
    _, status = os.waitpid(child, 0)
    code = os.waitstatus_to_exitcode(status)
    return Layer(code) if code in range(4) else Layer(0)


# -- landlock ------------------------------------------------------------------------------------------------

_CREATE_RULESET, _RESTRICT_SELF = 444, 446
"""The same on all machines."""
_VERSION: Final = 1
_FS_RIGHTS: Final = {1: 13, 2: 14, 3: 15, 5: 16}
"""From which ABI how many rights to files are known: the first 13, renaming to elsewhere, truncating, ioctl."""
_NET_SINCE, _NET_RIGHTS = 4, 0b11
"""Binding and connecting TCP sockets."""
_SCOPE_SINCE, _SCOPES = 6, 0b11
"""Abstract UNIX sockets and signals of whoever is outside."""


def landlock_abi() -> int:
    """Return the version that the kernel offers, 0 where it has none or may not be asked."""
    version: int = _LIBC.syscall(_CREATE_RULESET, None, ctypes.c_size_t(0), ctypes.c_uint(_VERSION))
    return max(0, version)


def landlock_attributes(version: int) -> bytes:
    """Return the ruleset's ``struct landlock_ruleset_attr`` for an ABI >= 1: everything that it knows is denied."""
    bits = max(count for since, count in _FS_RIGHTS.items() if version >= since)
    words = [(1 << bits) - 1]
    if version >= _NET_SINCE:
        words.append(_NET_RIGHTS)
    if version >= _SCOPE_SINCE:
        words.append(_SCOPES)
    return struct.pack(f"={len(words)}Q", *words)


def confine_by_landlock() -> None:
    """Put the calling thread, and what it makes from now on, under the ruleset for good. OSError: not to be had."""
    version = landlock_abi()
    if not version:
        raise OSError(ctypes.get_errno(), "no Landlock")
    wanted = landlock_attributes(version)
    ruleset = _LIBC.syscall(_CREATE_RULESET, wanted, ctypes.c_size_t(len(wanted)), ctypes.c_uint(0))
    if ruleset < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    try:
        _LIBC.prctl(_PR_SET_NO_NEW_PRIVS, ctypes.c_ulong(1), None, ctypes.c_ulong(0), ctypes.c_ulong(0))
        if _LIBC.syscall(_RESTRICT_SELF, ctypes.c_int(ruleset), ctypes.c_uint(0)):
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    finally:
        os.close(ruleset)


# -- the filter of system calls ------------------------------------------------------------------------------

_AUDIT_ARCH: Final = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
_NUMBERS: Final[Mapping[str, tuple[int, int]]] = {
    # x86_64, aarch64
    "read": (0, 63), "write": (1, 64), "close": (3, 57), "lseek": (8, 62), "mmap": (9, 222), "mprotect": (10, 226),
    "munmap": (11, 215), "brk": (12, 214), "rt_sigaction": (13, 134), "rt_sigprocmask": (14, 135),
    "rt_sigreturn": (15, 139), "pread64": (17, 67), "sched_yield": (24, 124), "mremap": (25, 216),
    "madvise": (28, 233), "nanosleep": (35, 101), "getpid": (39, 172), "sendto": (44, 206), "clone": (56, 220),
    "exit": (60, 93), "kill": (62, 129), "uname": (63, 160), "fcntl": (72, 25), "gettimeofday": (96, 169),
    "getrusage": (98, 165), "sysinfo": (99, 179), "times": (100, 153), "sigaltstack": (131, 132),
    "prctl": (157, 167), "gettid": (186, 178), "futex": (202, 98), "sched_getaffinity": (204, 123),
    "restart_syscall": (219, 128), "clock_gettime": (228, 113), "clock_getres": (229, 114),
    "clock_nanosleep": (230, 115), "exit_group": (231, 94), "tgkill": (234, 131), "set_robust_list": (273, 99),
    "prlimit64": (302, 261), "getrandom": (318, 278), "membarrier": (324, 283), "rseq": (334, 293),
    "clone3": (435, 435), "futex_waitv": (449, 449),
}  # fmt: skip

_PROT_EXEC: Final = 4
_THREAD_FLAGS: Final = 0x3D0F00
"""With which libc makes a thread and nothing else (CLONE_VM, FS, FILES, SIGHAND, THREAD, SYSVSEM, SETTLS and the two
ids); musl adds CLONE_DETACHED, which the kernel passes over. A process, or a namespace, has others."""
_CLONE_DETACHED: Final = 0x400000
_F_DUPFD_CLOEXEC: Final = 1030
_PR_SET_NAME: Final = 15


class _Word(NamedTuple):
    """A condition: the lower, or the upper, 32 bits of an argument, under a mask, have a value."""

    argument: int
    value: int
    mask: int = 0xFFFFFFFF
    upper: bool = False


def _null(argument: int) -> tuple[_Word, _Word]:
    return _Word(argument, 0), _Word(argument, 0, upper=True)


def _allowed(pid: int) -> dict[str, Sequence[Sequence[_Word]]]:
    """Return the calls that are allowed under conditions: any of the lists, in each of which all must hold."""
    return {
        "mmap": [[_Word(2, 0, _PROT_EXEC)]],  # no code but what is loaded
        "mprotect": [[_Word(2, 0, _PROT_EXEC)]],
        "sendto": [_null(4)],  # to whom the socket is connected
        "clone": [[_Word(0, _THREAD_FLAGS, ~_CLONE_DETACHED & 0xFFFFFFFF), _Word(0, 0, upper=True)]],
        "kill": [[_Word(0, pid)]],  # itself: how abort() and the tests end it
        "tgkill": [[_Word(0, pid)]],
        # Not F_SETOWN and F_SETSIG, by which the kernel sends signals.
        "fcntl": [[_Word(1, command)] for command in (1, 3, _F_DUPFD_CLOEXEC)],  # F_GETFD, F_GETFL
        "prctl": [[_Word(0, _PR_SET_NAME)]],  # of a thread
        "prlimit64": [[_Word(0, 0), *_null(2)]],  # reading its own
    }


_LOAD, _JUMP_EQUAL, _AND, _RETURN = 0x20, 0x15, 0x54, 0x06
_ALLOW, _ERRNO, _KILL_PROCESS = 0x7FFF0000, 0x00050000, 0x80000000
_AT_NUMBER, _AT_ARCH, _AT_ARGUMENTS = 0, 4, 16
_Instruction = tuple[int, int, int, int]


def seccomp_program(machine: str, pid: int) -> bytes:
    """Return the filter for a machine (``os.uname().machine``) and the process that it is for. KeyError: none known."""
    column = list(_AUDIT_ARCH).index(machine) if machine in _AUDIT_ARCH else _unknown(machine)
    code: list[_Instruction] = [
        (_LOAD, 0, 0, _AT_ARCH),
        (_JUMP_EQUAL, 1, 0, _AUDIT_ARCH[machine]),
        (_RETURN, 0, 0, _KILL_PROCESS),  # the numbers mean something else there
        (_LOAD, 0, 0, _AT_NUMBER),
    ]
    conditional = _allowed(pid)
    for name, numbers in _NUMBERS.items():
        if name == "clone3":  # its flags lie in memory; told that there is no such call, libc takes clone
            rule: list[_Instruction] = [(_RETURN, 0, 0, _ERRNO | errno.ENOSYS)]
        elif name in conditional:
            rule = [each for words in conditional[name] for each in _all_hold(words)]
            rule.append((_RETURN, 0, 0, _ERRNO | errno.EPERM))
        else:
            rule = [(_RETURN, 0, 0, _ALLOW)]
        code += [(_JUMP_EQUAL, 0, len(rule), numbers[column]), *rule]
    code.append((_RETURN, 0, 0, _ERRNO | errno.EPERM))
    return b"".join(struct.pack("=HBBI", *each) for each in code)


def _unknown(machine: str) -> int:
    raise KeyError(f"no system calls are known of {machine}")


def _all_hold(words: Sequence[_Word]) -> list[_Instruction]:
    """Allow the call where all conditions hold, else go on behind these instructions."""
    code: list[_Instruction] = []
    for left, (argument, value, mask, upper) in zip(range(len(words), 0, -1), words, strict=True):
        word = _AT_ARGUMENTS + 8 * argument + 4 * (upper == (sys.byteorder == "little"))
        code += [(_LOAD, 0, 0, word), (_AND, 0, 0, mask), (_JUMP_EQUAL, 0, 3 * (left - 1) + 1, value)]
    return [*code, (_RETURN, 0, 0, _ALLOW)]


class _Program(ctypes.Structure):
    _fields_ = [("length", ctypes.c_ushort), ("filter", ctypes.c_char_p)]


_PR_SET_SECCOMP, _MODE_FILTER = 22, 2


def confine_by_seccomp() -> None:
    """Put this process, which has one thread, under the filter for good. OSError where the kernel has none."""
    machine = platform.machine()
    try:
        code = seccomp_program(machine, os.getpid())
    except KeyError:
        raise OSError(errno.ENOSYS, f"no system calls are known of {machine}") from None
    held = ctypes.create_string_buffer(code, len(code))
    described = _Program(len(code) // 8, ctypes.cast(held, ctypes.c_char_p))
    for option, argument, pointer in (
        (_PR_SET_NO_NEW_PRIVS, 1, None),
        (_PR_SET_SECCOMP, _MODE_FILTER, ctypes.byref(described)),
    ):
        if _LIBC.prctl(option, ctypes.c_ulong(argument), pointer, ctypes.c_ulong(0), ctypes.c_ulong(0)):
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


_CONFINE: Final = {Layer.LANDLOCK: confine_by_landlock, Layer.SECCOMP: confine_by_seccomp}
"""In this order: the filter allows no Landlock."""
