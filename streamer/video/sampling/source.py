"""The bytes of one file, by a descriptor that is open: nothing here, nor in what reads from here, opens a path.

So the process that decodes needs no right to open anything, and the file that was checked is the one that is read.
"""

from __future__ import annotations

import os
import stat
from typing import TYPE_CHECKING

from streamer.events import Reason
from streamer.video.errors import ClipError, Retry, machine_error

if TYPE_CHECKING:
    from pathlib import Path


def open_clip(path: Path) -> int:
    """Open a file for reading and return the descriptor, which is the caller's to close.

    Raises :class:`ClipError`: NOT_FOUND or DECODE_FAILED; :class:`MachineError` where no descriptor is to be had.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        if stat.S_ISREG(os.fstat(descriptor).st_mode):
            return descriptor
        os.close(descriptor)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise ClipError(Reason.NOT_FOUND, error.strerror or "not found") from error
    except OSError as error:
        lacking = machine_error(error)
        if lacking is not None:
            raise lacking from error
        raise ClipError(Reason.DECODE_FAILED, f"cannot be opened: {error.strerror}") from error
    raise ClipError(Reason.DECODE_FAILED, "not a regular file")


class Source:
    """A regular file that is open for reading; several readers may be at it at the same time.

    ``size``: bytes. Only pread(2) and lseek(2) are called: what tells more of a file (fstat) takes paths too, as far as
    a filter of system calls can see.
    """

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor
        self.size = os.lseek(descriptor, 0, os.SEEK_END)

    def reader(self) -> Reader:
        """Return a new reader that stands at the beginning."""
        return Reader(self)


class Reader:
    """Reads a source from a place of its own; what PyAV takes for a file."""

    name = ""
    """By which FFmpeg guesses at formats; a stranger's name tells it nothing."""

    def __init__(self, source: Source) -> None:
        self._descriptor = source.descriptor
        self._size = source.size
        self._at = 0

    def read(self, size: int) -> bytes:
        """Return up to ``size`` bytes, none at the end. Raises :class:`ClipError`: FETCH_FAILED."""
        try:
            read = os.pread(self._descriptor, size, self._at)
        except OSError as error:
            # Of the disk, or the file server behind it.
            detail = f"the file cannot be read: {error.strerror}"
            raise ClipError(Reason.FETCH_FAILED, detail, Retry.FOR_A_WHILE) from error
        self._at += len(read)
        return read

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Move to ``offset`` from the beginning, from here or from the end; return the place. OSError if before 0."""
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self._size}[whence]
        if base + offset < 0:
            raise OSError("a place before the file's beginning")
        self._at = base + offset
        return self._at

    def tell(self) -> int:
        """Return the place."""
        return self._at
