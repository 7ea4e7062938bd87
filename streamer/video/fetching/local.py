"""Opens ``file:`` sources such that the checked file is used even if its path is changed later.

1. The real path, with ``..`` and symbolic links resolved, must be in an allowed folder's own real path. Nothing outside
   is accessed, so an uploader cannot find out what exists there, and no device is opened.
2. The file is opened with O_PATH, which has no effect on the file, even if its name has become a FIFO or a device by
   now. An open file cannot be replaced any more. Its type and its path according to the kernel are checked again, which
   detects a link or a folder that was replaced after step 1.
3. This file is opened for reading through /proc and returned as ``/proc/PID/fd/N``. Opening this path, also in another
   process, opens the same file without resolving names, as long as it is open here.
"""

from __future__ import annotations

import contextlib
import errno
import os
import pwd
import stat
from pathlib import Path
from typing import TYPE_CHECKING

from streamer.events import Reason
from streamer.video.errors import ClipError, Retry
from streamer.video.fetching.download import failed, too_large

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

_LASTING = {errno.EACCES, errno.EPERM, errno.ELOOP, errno.ENAMETOOLONG}
_KERNEL = (Path("/proc"), Path("/sys"))
"""Files here look like regular files, but are the state of processes and devices."""
_PEOPLE = 1000, 60_000
"""User ids of people's accounts, as useradd gives them."""


@contextlib.contextmanager
def opened(path: Path, folders: Sequence[Path], max_bytes: int) -> Iterator[Path]:
    """Provide a file in one of ``folders`` by a path that is valid inside the block.

    Raises :class:`ClipError`: URI_REFUSED, NOT_FOUND, CLIP_TOO_LARGE or FETCH_FAILED.
    """
    with contextlib.ExitStack() as descriptors:
        try:
            readable = _open(path, folders, max_bytes, descriptors)
        except OSError as error:
            raise _failure(error) from error
        yield path_of(readable)


def is_broad(folder: Path) -> bool:
    """Tell whether a folder is the root, a home folder, or holds one: root's, or that of a person or of this user."""
    own = {Path(os.environ["HOME"])} if os.environ.get("HOME") else set()
    homes = own | {
        Path(user.pw_dir)
        for user in pwd.getpwall()
        if user.pw_uid in {0, os.geteuid()} or _PEOPLE[0] <= user.pw_uid <= _PEOPLE[1]
    }
    real = Path(os.path.realpath(folder))
    return any(Path(os.path.realpath(home)).is_relative_to(real) for home in {Path("/"), *homes})


def path_of(descriptor: int) -> Path:
    """Return the path by which every process of this user can open an open descriptor."""
    return Path(f"/proc/{os.getpid()}/fd/{descriptor}")


def _open(path: Path, folders: Sequence[Path], max_bytes: int, descriptors: contextlib.ExitStack) -> int:
    _check_place(Path(os.path.realpath(path)), folders)
    found = os.open(path, os.O_PATH | os.O_CLOEXEC)
    descriptors.callback(os.close, found)
    status = os.fstat(found)
    _check_place(path_of(found).readlink(), folders)
    if not stat.S_ISREG(status.st_mode):
        raise ClipError(Reason.URI_REFUSED, "not a regular file")
    if status.st_size > max_bytes:
        raise too_large(max_bytes, status.st_size)
    readable = os.open(path_of(found), os.O_RDONLY | os.O_CLOEXEC)
    descriptors.callback(os.close, readable)
    return readable


def _check_place(real: Path, folders: Sequence[Path]) -> None:
    # An allowed folder may itself be a link that changes, so it is resolved each time.
    if not any(real.is_relative_to(os.path.realpath(folder)) for folder in folders):
        raise ClipError(Reason.URI_REFUSED, "the file is outside every allowed prefix")
    if any(real.is_relative_to(folder) for folder in _KERNEL):
        raise ClipError(Reason.URI_REFUSED, "not a regular file")


def _failure(error: OSError) -> ClipError:
    words = error.strerror or type(error).__name__
    if error.errno in {errno.ENOENT, errno.ENOTDIR}:
        return ClipError(Reason.NOT_FOUND, words)
    return failed(words, Retry.NEVER if error.errno in _LASTING else Retry.FOR_A_WHILE)
