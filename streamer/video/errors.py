"""Why a clip cannot be fetched or decoded: an error of the clip, with its dead-letter code, or of this machine."""

from __future__ import annotations

import errno
import os
from enum import Enum, StrEnum, auto
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from streamer.events import Reason


class Retry(Enum):
    """Whether another attempt at the same clip may succeed."""

    NEVER = auto()
    """The error is in the clip: another attempt fails too."""
    ONCE = auto()
    """The error may be temporary: a decoder that crashed or exceeded its time on a busy machine."""
    FOR_A_WHILE = auto()
    """The error is at the source, which may recover."""


class ClipError(Exception):
    """A clip that cannot be fetched or decoded.

    ``reason`` is its dead-letter code, ``detail`` one line for people; neither contains the URI, whose query may be
    signed. ``retry``: whether another attempt may succeed.
    """

    def __init__(self, reason: Reason, detail: str, retry: Retry = Retry.NEVER) -> None:
        # All three are in Exception.args, so that the error can be pickled.
        super().__init__(reason, detail, retry)
        self.reason = reason
        self.detail = detail
        self.retry = retry

    def __str__(self) -> str:
        return self.detail


class Lack(StrEnum):
    """The resources that a machine can lack."""

    DISK = "disk"
    DESCRIPTORS = "descriptors"
    PROCESSES = "processes"
    MEMORY = "memory"
    SANDBOX = "sandbox"


class MachineError(Exception):
    """This machine cannot process any clip just now: it lacks disk space, descriptors, processes or memory.

    The clip is not at fault: it waits until the shortage is over, and is never dead-lettered for it.
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
        if isinstance(cause, RuntimeError) and str(cause) == "can't start new thread":  # Python has no better name
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
