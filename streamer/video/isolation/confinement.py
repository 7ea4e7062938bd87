"""Confines a decoder's process by two layers of the kernel, and finds out which of them this kernel offers.

- The filter of system calls (seccomp-BPF) allows computing, reading open descriptors and sending the response. Every
  other system call fails with EPERM. The filter cannot be removed.
- Landlock (Linux 5.13 and newer, landlock(7)) with an empty ruleset denies files, TCP, signals and abstract sockets a
  second time, in another part of the kernel. Its three system calls need no privilege and no library. Each version of
  its interface (ABI) adds access rights; all rights that the kernel supports are denied.

The filter alone keeps every promise of docs/security.md. Landlock alone does not: it allows UDP, new processes, and
system calls in which vulnerabilities have been found.

The filter is written here in BPF instructions, because it is only a list of system call numbers and a few conditions
on arguments; docs/decisions/0026-confine-decoders.md says why no library is used. The list contains what a decoder
needs once its file is open, its libraries are loaded and its socket is connected: memory, locks, clocks, reading and
writing. It needs no second thread, and could otherwise use up the threads of the service's container. No call on the
list takes a path, an address or the id of another process. If a call could do more than is needed, its arguments are
checked. A filter cannot check memory to which an argument points; therefore newfstatat, which takes a path, is not on
the list.
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

from streamer.machine import Lack, MachineError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

Sandbox = Literal["require", "permissive"]
"""``require``: nothing is decoded without the filter of system calls. ``permissive``: decode with the layers that the
kernel offers."""

_LIBC = ctypes.CDLL(None, use_errno=True)
_PR_SET_NO_NEW_PRIVS = 38


class Layer(IntFlag):
    """The layers that confine a decoder; 0 is none."""

    LANDLOCK = 1
    SECCOMP = 2

    @property
    def mode(self) -> str:
        """The name in metrics and probes: ``seccomp+landlock``, ``seccomp``, ``landlock`` or ``none``."""
        names = [name for layer, name in ((Layer.SECCOMP, "seccomp"), (Layer.LANDLOCK, "landlock")) if layer in self]
        return "+".join(names) or "none"


MODES: Final = tuple(Layer(bits).mode for bits in range(4))


class SandboxError(MachineError):
    """The kernel or the container's runtime does not offer the layer that is required."""

    def __init__(self, offered: Layer) -> None:
        super().__init__(
            Lack.SANDBOX,
            "this kernel, or the seccomp profile of this container, offers no filter of system calls (seccomp) for "
            f"decoders; available confinement: {offered.mode}",
        )


def confine(layers: Layer) -> None:
    """Apply the layers to this process, irrevocably. Raises OSError if one is not available."""
    for layer, confine_by in _CONFINE.items():
        if layer in layers:
            confine_by()


def confine_as_far_as_possible() -> Layer:
    """Apply every available layer to this process, irrevocably, and return the layers that were applied."""
    had = Layer(0)
    for layer, confine_by in _CONFINE.items():
        try:
            confine_by()
        except OSError:
            continue
        had |= layer
    return had


def offered() -> Layer:
    """Return the available layers, by applying them to a child of this process, which must have only one thread.

    Raises OSError if no child can be created.
    """
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
"""System call numbers, the same on all architectures."""
_VERSION: Final = 1
_FS_RIGHTS: Final = {1: 13, 2: 14, 3: 15, 5: 16}
"""ABI version -> number of file access rights: the first 13, then REFER, TRUNCATE and IOCTL_DEV."""
_NET_SINCE, _NET_RIGHTS = 4, 0b11
"""The ABI version and the bits of the rights to bind and to connect TCP sockets."""
_SCOPE_SINCE, _SCOPES = 6, 0b11
"""The ABI version and the bits of the scopes: abstract UNIX sockets of, and signals to, processes outside."""


def landlock_abi() -> int:
    """Return the kernel's Landlock version; 0 if it has no Landlock or the call is not permitted."""
    version: int = _LIBC.syscall(_CREATE_RULESET, None, ctypes.c_size_t(0), ctypes.c_uint(_VERSION))
    return max(0, version)


def landlock_attributes(version: int) -> bytes:
    """Return the ``struct landlock_ruleset_attr`` for an ABI version >= 1 that denies every right of that version."""
    bits = max(count for since, count in _FS_RIGHTS.items() if version >= since)
    words = [(1 << bits) - 1]
    if version >= _NET_SINCE:
        words.append(_NET_RIGHTS)
    if version >= _SCOPE_SINCE:
        words.append(_SCOPES)
    return struct.pack(f"={len(words)}Q", *words)


def confine_by_landlock() -> None:
    """Apply the empty ruleset to the calling thread and its future children. Raises OSError if not available."""
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
    "madvise": (28, 233), "nanosleep": (35, 101), "getpid": (39, 172), "sendto": (44, 206),
    "exit": (60, 93), "kill": (62, 129), "uname": (63, 160), "fcntl": (72, 25), "gettimeofday": (96, 169),
    "getrusage": (98, 165), "sysinfo": (99, 179), "times": (100, 153), "sigaltstack": (131, 132),
    "prctl": (157, 167), "gettid": (186, 178), "futex": (202, 98), "sched_getaffinity": (204, 123),
    "restart_syscall": (219, 128), "clock_gettime": (228, 113), "clock_getres": (229, 114),
    "clock_nanosleep": (230, 115), "exit_group": (231, 94), "tgkill": (234, 131), "set_robust_list": (273, 99),
    "prlimit64": (302, 261), "getrandom": (318, 278), "membarrier": (324, 283), "rseq": (334, 293),
    "futex_waitv": (449, 449),
}  # fmt: skip

_PROT_EXEC: Final = 4
_F_DUPFD_CLOEXEC: Final = 1030
_PR_SET_NAME: Final = 15
NOT_CONFINED: Final = 64
"""Exit code of a process that could not be confined and therefore has not read its file: the machine's fault. One bit,
so that the filter can deny every exit code that has it, and a file that has taken over its decoder cannot claim it."""


class _Word(NamedTuple):
    """A condition on the lower or upper 32 bits of an argument: masked by ``mask``, they equal ``value``."""

    argument: int
    value: int
    mask: int = 0xFFFFFFFF
    upper: bool = False


def _null(argument: int) -> tuple[_Word, _Word]:
    return _Word(argument, 0), _Word(argument, 0, upper=True)


def _allowed(pid: int) -> dict[str, Sequence[Sequence[_Word]]]:
    """Return the system calls that are allowed conditionally: all conditions of at least one of the lists must hold."""
    return {
        "mmap": [[_Word(2, 0, _PROT_EXEC)]],  # no executable memory besides what is loaded
        "mprotect": [[_Word(2, 0, _PROT_EXEC)]],
        # No address: only to the peer of a connected socket. No flags: the kernel's code for out-of-band data in UNIX
        # sockets, which nobody needs, has let sandboxed processes take over the kernel (CVE-2025-38236).
        "sendto": [(_Word(3, 0), *_null(4))],
        "exit": [[_Word(0, 0, NOT_CONFINED)]],
        "exit_group": [[_Word(0, 0, NOT_CONFINED)]],
        "kill": [[_Word(0, pid)]],  # this process itself: abort() and the tests use it
        "tgkill": [[_Word(0, pid)]],
        # F_SETOWN and F_SETSIG are excluded, because with them the kernel would send signals.
        "fcntl": [[_Word(1, command)] for command in (1, 3, _F_DUPFD_CLOEXEC)],  # F_GETFD, F_GETFL
        "prctl": [[_Word(0, _PR_SET_NAME)]],  # the name of a thread
        "prlimit64": [[_Word(0, 0), *_null(2)]],  # reading this process's own limits
    }


_LOAD, _JUMP_EQUAL, _AND, _RETURN = 0x20, 0x15, 0x54, 0x06
_ALLOW, _ERRNO, _KILL_PROCESS = 0x7FFF0000, 0x00050000, 0x80000000
_AT_NUMBER, _AT_ARCH, _AT_ARGUMENTS = 0, 4, 16
_Instruction = tuple[int, int, int, int]


def seccomp_program(machine: str, pid: int) -> bytes:
    """Return the filter for an architecture (``os.uname().machine``) and for the process ``pid``.

    Raises KeyError for an unknown architecture.
    """
    column = list(_AUDIT_ARCH).index(machine) if machine in _AUDIT_ARCH else _unknown(machine)
    code: list[_Instruction] = [
        (_LOAD, 0, 0, _AT_ARCH),
        (_JUMP_EQUAL, 1, 0, _AUDIT_ARCH[machine]),
        (_RETURN, 0, 0, _KILL_PROCESS),  # system calls have other numbers there
        (_LOAD, 0, 0, _AT_NUMBER),
    ]
    conditional = _allowed(pid)
    for name, numbers in _NUMBERS.items():
        rule: list[_Instruction] = [(_RETURN, 0, 0, _ALLOW)]
        if name in conditional:
            rule = [each for words in conditional[name] for each in _all_hold(words)]
            rule.append((_RETURN, 0, 0, _ERRNO | errno.EPERM))
        code += [(_JUMP_EQUAL, 0, len(rule), numbers[column]), *rule]
    code.append((_RETURN, 0, 0, _ERRNO | errno.EPERM))
    return b"".join(struct.pack("=HBBI", *each) for each in code)


def _unknown(machine: str) -> int:
    raise KeyError(f"the system call numbers of {machine} are not known")


def _all_hold(words: Sequence[_Word]) -> list[_Instruction]:
    """Return instructions that allow the call if all conditions hold, and otherwise continue after themselves."""
    code: list[_Instruction] = []
    for left, (argument, value, mask, upper) in zip(range(len(words), 0, -1), words, strict=True):
        word = _AT_ARGUMENTS + 8 * argument + 4 * (upper == (sys.byteorder == "little"))
        code += [(_LOAD, 0, 0, word), (_AND, 0, 0, mask), (_JUMP_EQUAL, 0, 3 * (left - 1) + 1, value)]
    return [*code, (_RETURN, 0, 0, _ALLOW)]


class _Program(ctypes.Structure):
    _fields_ = [("length", ctypes.c_ushort), ("filter", ctypes.c_char_p)]


_PR_SET_SECCOMP, _MODE_FILTER = 22, 2


def confine_by_seccomp() -> None:
    """Apply the filter to this process, which must have only one thread. Raises OSError if not available."""
    machine = platform.machine()
    try:
        code = seccomp_program(machine, os.getpid())
    except KeyError:
        raise OSError(errno.ENOSYS, f"the system call numbers of {machine} are not known") from None
    held = ctypes.create_string_buffer(code, len(code))
    described = _Program(len(code) // 8, ctypes.cast(held, ctypes.c_char_p))
    for option, argument, pointer in (
        (_PR_SET_NO_NEW_PRIVS, 1, None),
        (_PR_SET_SECCOMP, _MODE_FILTER, ctypes.byref(described)),
    ):
        if _LIBC.prctl(option, ctypes.c_ulong(argument), pointer, ctypes.c_ulong(0), ctypes.c_ulong(0)):
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


_CONFINE: Final = {Layer.LANDLOCK: confine_by_landlock, Layer.SECCOMP: confine_by_seccomp}
"""In this order, because the filter denies Landlock's system calls."""
