"""Where downloads lie, and how many bytes of them there may be at the same time.

Files have names, in a folder of this process below the temporary folder, so that tools that measure folders see them
(du, and through it kubelet for an emptyDir with a sizeLimit). A folder is locked while its process lives. One without a
lock belonged to a process that was killed, and the next process removes it.

The budget. A download reserves its whole size before the first byte, as soon as the source has sent the size. If the
budget has not that much left, the connection is closed, nothing is kept, and the download waits for the whole size and
starts again. So a waiting download holds no bytes, and one that holds bytes needs no more to finish: there is no
deadlock. If a source sends no size, the download reserves a first portion, and starts again with twice as much when
that is full. Waiting downloads are served in order, so that small files do not overtake a large one for ever. One
source gets at most half the budget, or one file of the largest size, so that a slow source does not block the others.
"""

from __future__ import annotations

import contextlib
import fcntl
import functools
import io
import os
import shutil
import sys
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Final, Self

from streamer.resources import temporary_folder

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from contextlib import AbstractContextManager

UNLIMITED: Final = sys.maxsize
_FIRST_PORTION: Final = 16 << 20
_PREFIX: Final = "streamer-downloads-"


class NoRoomError(Exception):
    """A download cannot have ``wanted`` bytes of the budget at once; it is to wait for them and to start again."""

    def __init__(self, wanted: int) -> None:
        super().__init__(wanted)
        self.wanted = wanted


class Budget:
    """The bytes that all downloads may take together. Safe to use from several threads.

    ``total``: at least ``largest``, the size of the largest single file; ValueError if not. ``idle``: entered by a
    thread while it waits. ``waited`` is told the seconds of each wait.
    """

    def __init__(
        self,
        total: int,
        largest: int,
        *,
        idle: Callable[[], AbstractContextManager[None]] = contextlib.nullcontext,
        waited: Callable[[float], None] = lambda _seconds: None,
    ) -> None:
        if total < largest:
            raise ValueError(f"a budget of {total} bytes for files of up to {largest}")
        self._total = total
        self._largest = largest
        self._share = max(total // 2, largest)
        self._idle = idle
        self._waited = waited
        self._changed = threading.Condition()
        self._taken: Counter[str] = Counter()
        self._waiting: list[Claim] = []

    @property
    def taken(self) -> int:
        """Bytes in use."""
        with self._changed:
            return self._taken.total()

    def wait(self, claim: Claim, size: int) -> None:
        """Take ``size`` bytes for a claim, which has none, as soon as they are there."""
        began = time.monotonic()
        with self._changed:
            claim.wanted = size
            self._waiting.append(claim)
            self._serve()
            with self._idle():
                self._changed.wait_for(lambda: not claim.wanted)
        self._waited(time.monotonic() - began)

    def take(self, claim: Claim, size: int) -> None:
        """Raise a claim to ``size`` bytes, or raise :class:`NoRoomError`."""
        with self._changed:
            more = size - claim.size
            if any(self._may_have(each.origin, each.wanted) for each in self._waiting) or not (
                self._may_have(claim.origin, more) and self._has(more)
            ):
                raise NoRoomError(size)
            self._give(claim, more)

    def give_back(self, claim: Claim, size: int) -> None:
        """Lower a claim to ``size`` bytes."""
        with self._changed:
            self._give(claim, size - claim.size)
            self._serve()

    def next_portion(self, size: int) -> int:
        """Return the bytes to take for a file that has more than ``size``, and does not say how many."""
        return min(max(2 * size, _FIRST_PORTION), self._largest)

    def _serve(self) -> None:
        for claim in list(self._waiting):
            if not self._may_have(claim.origin, claim.wanted):
                continue  # it waits for downloads of its own source, and the others need not
            if not self._has(claim.wanted):
                break
            self._waiting.remove(claim)
            self._give(claim, claim.wanted)
            claim.wanted = 0
        self._changed.notify_all()

    def _may_have(self, origin: str, more: int) -> bool:
        return self._taken[origin] + more <= self._share

    def _has(self, more: int) -> bool:
        return self._taken.total() + more <= self._total

    def _give(self, claim: Claim, more: int) -> None:
        claim.size += more
        self._taken[claim.origin] += more
        if not self._taken[claim.origin]:
            del self._taken[claim.origin]


class Claim:
    """One download's part of the budget; at the end of a ``with`` block it is given back."""

    def __init__(self, budget: Budget, origin: str) -> None:
        self.origin = origin
        self.size = 0
        self.wanted = 0
        self._budget = budget

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.keep(0)

    def reach(self, size: int) -> None:
        """Have at least ``size`` bytes, the size that a source tells. Raises :class:`NoRoomError`."""
        if size > self.size:
            self._budget.take(self, size)

    def grow(self, size: int) -> None:
        """Have at least ``size`` bytes of a source that tells no size. Raises :class:`NoRoomError`."""
        if size > self.size:
            self._budget.take(self, max(size, self._budget.next_portion(self.size)))

    def keep(self, size: int) -> None:
        """Give back what exceeds ``size`` bytes."""
        if size < self.size:
            self._budget.give_back(self, size)

    def wait(self, size: int) -> None:
        """Give everything back, and have ``size`` bytes when they are there."""
        self.keep(0)
        self._budget.wait(self, size)


class Folder:
    """The folder of this process's downloads. Safe to use from several threads."""

    @staticmethod
    def of_process() -> Folder:
        """Return the one below the temporary folder; the first call removes what killed processes have left there."""
        return _folder_in(temporary_folder())

    def __init__(self, temporary: str) -> None:
        self._temporary = temporary
        self._lock = threading.Lock()
        self._path: Path | None = None
        self._undeleted: set[str] = set()
        with contextlib.suppress(OSError):
            _remove_left_over(Path(temporary))

    @contextlib.contextmanager
    def file(self) -> Iterator[tuple[Path, io.FileIO]]:
        """Provide an empty file, as its path and opened; close and remove it at the end. Raises OSError.

        Only the opened file knows its descriptor's number: whoever still has the file after the end can no longer write
        to what has that number by then. A file that cannot be removed, as its file system has become read-only, is
        removed before another one is made.
        """
        descriptor, name = self._create()
        opened = io.FileIO(descriptor, "r+")
        try:
            yield Path(name), opened
        finally:
            with contextlib.suppress(OSError):  # what was read of the file was read
                opened.close()
            self._delete(name)

    def _create(self) -> tuple[int, str]:
        with self._lock:
            if self._path is None or not self._path.is_dir():
                self._path = _make(self._temporary)
            for name in self._undeleted.copy():
                self._delete(name)
            return tempfile.mkstemp(dir=self._path)

    def _delete(self, name: str) -> None:
        try:
            os.unlink(name)  # noqa: PTH108 - of many, and each as its name says
            self._undeleted.discard(name)
        except FileNotFoundError:
            self._undeleted.discard(name)
        except OSError:
            self._undeleted.add(name)


_folder_in = functools.cache(Folder)


def _make(temporary: str) -> Path:
    path = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=temporary))
    # Not closed: the lock is held as long as this process lives.
    fcntl.flock(os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC), fcntl.LOCK_EX | fcntl.LOCK_NB)
    return path


def _remove_left_over(temporary: Path) -> None:
    for path in temporary.glob(f"{_PREFIX}*"):
        with contextlib.suppress(OSError):  # another user's, or in use
            descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(path, ignore_errors=True)
            finally:
                os.close(descriptor)
