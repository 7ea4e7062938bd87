"""What a decoder is kept from, in two layers, and what the kernel offers of them.

- The filter of system calls (:mod:`.seccomp`) denies all but computing, reading what is open and answering.
- Landlock (:mod:`.landlock`) denies files, TCP, signals and abstract sockets once more, by another part of the kernel.

The filter alone keeps every promise of docs/security.md. Landlock alone does not: UDP, processes and system calls that
have had faults are left.
"""

from __future__ import annotations

import ctypes
import os
from enum import IntFlag
from typing import Final, Literal

from streamer.video.errors import Lack, MachineError
from streamer.video.isolation import landlock, seccomp

Sandbox = Literal["require", "permissive"]
"""``require``: nothing is decoded without the filter of system calls. ``permissive``: with what the kernel offers."""

_LIBC = ctypes.CDLL(None)
_PR_SET_DUMPABLE: Final = 4


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
_CONFINE: Final = {Layer.LANDLOCK: landlock.confine, Layer.SECCOMP: seccomp.confine}
"""In this order: the filter allows no Landlock."""


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


def hide_memory() -> None:
    """Keep other processes of this user from this one's memory, environment and descriptors, and leave no core dump.

    Only root can then attach a debugger or a profiler.
    """
    _LIBC.prctl(_PR_SET_DUMPABLE, ctypes.c_ulong(0), ctypes.c_ulong(0), ctypes.c_ulong(0), ctypes.c_ulong(0))
