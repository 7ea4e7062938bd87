"""Makes an LMDB file small again, by a copy without the pages that are not in use.

LMDB fills the pages of what was removed with what comes later, but never gives them back to the disk. A copy beside
running services is safe: it is one snapshot. To put it in the place of the original is not: whoever has the old file
open would go on in it, and the lock table, which is told by its path, would speak of another file's transactions. So
in place it is done only while nobody has the store open, and whoever comes to open it waits:

1. Who opens a store takes a shared lock on the first byte of ``lock.mdb`` before it opens ``data.mdb``, and keeps
   it. We take it exclusively, or refuse.
2. The copy is written to a folder beside the original and made durable. A crash leaves the store as it was, and that
   folder, which the next compaction removes.
3. The lock table is made invalid. Who waits for the lock, if we die from here on, is told that it is none, and ends;
   who opens the store alone begins the table anew, as always.
4. The copy is renamed over the original. A crash leaves the one or the other.
5. LMDB opens the store once in this process, to which the lock belongs, and so takes itself to be alone: it begins
   the lock table anew, for the new file, and shares the lock. Those who waited go on.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import lmdb

from streamer.store.lmdb.environment import DATA_FILE, LOCK_FILE, explain, sync_folders
from streamer.store.protocol import StoreError, StoreUnavailableError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from streamer.store.lmdb.environment import Environment

_TEMPORARY = ".compacting-"
_LOCK_TABLE_HEAD = bytes(64)


def compact_to(environment: Environment, folder: Path) -> None:
    """Write a compact snapshot of a store, which may be in use, to ``folder``, which must hold no store."""
    if (folder / DATA_FILE).exists():
        raise StoreError(f"{folder}: there is a store already")
    with _faults(folder):
        folder.mkdir(parents=True, exist_ok=True)
        with _copied(environment.copy, environment.path, folder) as copy:
            # Unlike a rename, a link does not take the place of what somebody else has put there meanwhile.
            (folder / DATA_FILE).hardlink_to(copy)
            sync_folders(folder)


def compact_in_place(path: Path) -> None:
    """Put a compact copy in the place of the store in ``path``; StoreError where anybody has it open."""
    with _faults(path), (path / LOCK_FILE).open("r+b", buffering=0) as table:
        try:
            fcntl.lockf(table, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, 0)
        except BlockingIOError:
            raise StoreError(
                f"{path}: is in use; stop its services, or let them run and write a compact copy elsewhere (--to)"
            ) from None

        def copy(folder: Path) -> None:
            # Without LMDB's own lock: to close lock.mdb anywhere in this process would release ours.
            with lmdb.open(str(path), readonly=True, lock=False) as env:
                env.copy(str(folder), compact=True)

        with _copied(copy, path, path) as compacted:
            table.write(_LOCK_TABLE_HEAD)
            compacted.replace(path / DATA_FILE)
            sync_folders(path)
            lmdb.open(str(path)).close()


@contextmanager
def _copied(copy: Callable[[Path], None], original: Path, folder: Path) -> Iterator[Path]:
    """Have a durable copy in a temporary folder below ``folder``, with the owner and rights of the original."""
    for left_over in folder.glob(f"{_TEMPORARY}*"):
        shutil.rmtree(left_over)
    with tempfile.TemporaryDirectory(prefix=_TEMPORARY, dir=folder) as temporary:
        copy(Path(temporary))
        copied = Path(temporary, DATA_FILE)
        status = (original / DATA_FILE).stat()
        copied.chmod(status.st_mode)
        os.chown(copied, status.st_uid, status.st_gid)
        with copied.open("rb") as file:
            os.fsync(file.fileno())
        yield copied


@contextmanager
def _faults(path: Path) -> Iterator[None]:
    try:
        yield
    except (lmdb.DiskError, lmdb.ReadersFullError) as error:
        raise StoreUnavailableError(explain(path, error)) from error
    except (lmdb.Error, OSError) as error:
        raise StoreError(explain(path, error)) from error
