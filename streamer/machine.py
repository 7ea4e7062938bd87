"""Shortages of this machine: which errors indicate that it lacks a resource, whatever was being done.

Such an error says nothing about the record that is being processed. :mod:`streamer.shortages` waits it out.
"""

from __future__ import annotations

import errno
import os
import threading
from enum import StrEnum


class Lack(StrEnum):
    """The resources that a machine can lack."""

    DISK = "disk"
    DESCRIPTORS = "descriptors"
    PROCESSES = "processes"
    MEMORY = "memory"
    SANDBOX = "sandbox"


class MachineError(Exception):
    """This machine cannot go on just now: it lacks disk space, descriptors, processes or memory.

    The record that is being processed is not at fault, and is never dead-lettered for it.
    """

    def __init__(self, lack: Lack, detail: str) -> None:
        super().__init__(lack, detail)
        self.lack = lack
        self.detail = detail

    def __str__(self) -> str:
        return f"{self.lack}: {self.detail}"


_LACKS = {
    errno.ENOSPC: Lack.DISK,
    errno.EDQUOT: Lack.DISK,
    errno.EROFS: Lack.DISK,
    errno.EFBIG: Lack.DISK,  # the process's own limit of a file's size
    errno.EMFILE: Lack.DESCRIPTORS,
    errno.ENFILE: Lack.DESCRIPTORS,
    errno.ETOOMANYREFS: Lack.DESCRIPTORS,  # too many of them are being sent over sockets
    errno.ENOMEM: Lack.MEMORY,
    errno.ENOBUFS: Lack.MEMORY,
}
_NO_THREAD = "can't start new thread"
"""The text of the RuntimeError of :meth:`threading.Thread.start`; Python has no better name for it."""
_SPARE_DESCRIPTORS = 4
"""The number of descriptors that looking up a host's name and connecting to it may need."""


def machine_error(error: BaseException) -> MachineError | None:
    """Return the shortage of this machine that an error or its cause indicates; None for any other error."""
    seen: set[int] = set()
    cause: BaseException | None = error
    while cause is not None and id(cause) not in seen:
        seen.add(id(cause))
        if isinstance(cause, MachineError):
            return cause
        if isinstance(cause, OSError) and cause.errno in _LACKS:
            return MachineError(_LACKS[cause.errno], os.strerror(cause.errno))
        if isinstance(cause, MemoryError):
            return MachineError(Lack.MEMORY, os.strerror(errno.ENOMEM))
        if isinstance(cause, RuntimeError) and str(cause) == _NO_THREAD:
            return MachineError(Lack.PROCESSES, str(cause))
        cause = cause.__cause__ or cause.__context__
    return None


def missing_descriptors() -> MachineError | None:
    """Return the shortage if this process cannot open any more descriptors, which libraries report as other errors."""
    opened: list[int] = []
    try:
        for _ in range(_SPARE_DESCRIPTORS):
            opened.append(os.open("/", os.O_PATH | os.O_CLOEXEC))  # noqa: PERF401 - those before the failing one count
    except OSError as error:
        return machine_error(error)
    finally:
        for descriptor in opened:
            os.close(descriptor)
    return None


def require_threads(count: int) -> None:
    """Start ``count`` threads at a time, and end them. Raises :class:`MachineError` if this machine has fewer left.

    For libraries that do not report such a lack but end the process. What others start between this and the library's
    own attempt is not known here.
    """
    enough = threading.Event()
    started: list[threading.Thread] = []
    try:
        for _ in range(count):
            thread = threading.Thread(target=enough.wait)
            start(thread)
            started.append(thread)
    finally:
        enough.set()
        for thread in started:
            thread.join()


def start(thread: threading.Thread) -> None:
    """Start a thread. Raises :class:`MachineError` if this machine has none left."""
    try:
        thread.start()
    except RuntimeError as error:
        raise machine_error(error) or error from None
