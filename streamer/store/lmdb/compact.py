"""Compacts an LMDB file by copying it without its unused pages.

LMDB reuses the pages of removed records for later ones, but never returns them to the disk. Copying while services run
is safe: the copy is one snapshot. Replacing the original is not: processes that have the old file open would continue
to use it, and the lock table, which is found by path, would describe another file's transactions. Therefore the file is
replaced only while no process has the store open, and processes that open it meanwhile wait:

1. A process that opens a store takes a shared lock on the first byte of ``lock.mdb`` before it opens ``data.mdb``, and
   keeps it. Compaction takes the lock exclusively, or fails.
2. The copy is written to a folder beside the original and made durable. A crash leaves the store unchanged, and that
   folder, which the next compaction removes.
3. The lock table is invalidated. If this process dies from here on, a process that waits for the lock finds the table
   invalid and fails; a process that opens the store alone creates a new table, as always.
4. The copy is renamed over the original. A crash leaves one of the two.
5. LMDB opens the store once in this process. Because this process has the lock, LMDB takes itself to be the only user:
   it creates a new lock table for the new file and downgrades the lock to a shared one. The waiting processes continue.
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

from streamer.store.lmdb.environment import DATA_FILE, FILE_MODE, LOCK_FILE, explain, sync_folders
from streamer.store.protocol import StoreError, StoreUnavailableError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from streamer.store.lmdb.environment import Environment

_TEMPORARY = ".compacting-"
_LOCK_TABLE_HEAD = bytes(64)


def compact_to(environment: Environment, folder: Path) -> None:
    """Write a compact snapshot of a store, which may be in use, to ``folder``, which must not contain a store."""
    if (folder / DATA_FILE).exists():
        raise StoreError(f"{folder}: contains a store already")
    with _faults(folder):
        folder.mkdir(parents=True, exist_ok=True)
        with _copied(environment.copy, environment.path, folder) as copy:
            # Unlike a rename, a link does not overwrite a file that another process has created meanwhile.
            (folder / DATA_FILE).hardlink_to(copy)
            sync_folders(folder)


def compact_in_place(path: Path) -> None:
    """Replace the store in ``path`` by a compact copy. Raises StoreError if any process has it open."""
    with _faults(path), (path / LOCK_FILE).open("r+b", buffering=0) as table:
        try:
            fcntl.lockf(table, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, 0)
        except BlockingIOError:
            raise StoreError(
                f"{path}: the store is in use; stop its services, or write a compact copy to another folder (--to)"
            ) from None

        def copy(folder: Path) -> None:
            # Without LMDB's own lock: closing lock.mdb anywhere in this process would release our lock.
            with lmdb.open(str(path), readonly=True, lock=False) as env:
                env.copy(str(folder), compact=True)

        with _copied(copy, path, path) as compacted:
            table.write(_LOCK_TABLE_HEAD)
            compacted.replace(path / DATA_FILE)
            sync_folders(path)
            lmdb.open(str(path), mode=FILE_MODE).close()


@contextmanager
def _copied(copy: Callable[[Path], None], original: Path, folder: Path) -> Iterator[Path]:
    """Make a durable copy in a temporary folder below ``folder``, with the original's owner and permissions."""
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
