"""The LMDB environments of a process, each shared by its stores; opened, grown and closed without open transactions.

Four properties of LMDB determine this module. Opening the same files twice in a process breaks LMDB's locks, so stores
of one path share one environment with a reference count. A map keeps the size with which it was opened: a writer that
fills it gets MDB_MAP_FULL, and a process that finds data after its map's end gets MDB_MAP_RESIZED; both open a larger
map. Unmapping the file while a view into it exists crashes the process, so transactions pass a gate that closes before
the map does. And so does reading a page that the file no longer has (SIGBUS), so each transaction begins with a look at
the file's size: it must hold the last page that LMDB has ever used. LMDB does not write a last page that was freed in
the same transaction, so a writer extends the file.
"""

from __future__ import annotations

import mmap
import os
import resource
import threading
import time
from collections import Counter
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, TypeVar

import lmdb

from streamer.store.protocol import StoreError, StoreUnavailableError, TruncatedStoreError
from streamer.store.record_format import PREFIX_BYTES

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    Transaction = lmdb.Transaction[memoryview]

T = TypeVar("T")

RESERVED = bytes(8)
"""Prefix of the keys that are not clips: alone it is the key of the format, followed by a model's hash that model's.

Services ignore it when anything else follows it."""
_MODEL_KEY_BYTES = len(RESERVED) + PREFIX_BYTES
DEFAULT_MAP_BYTES = 1 << 40
"""Initial map size; this is address space, not memory or disk: on 64-bit Linux a large map is free and rarely grows."""
DATA_FILE, LOCK_FILE = "data.mdb", "lock.mdb"
FILE_MODE = 0o600  # of new files
_SMALLEST_MAP_BYTES = 1 << 20
_FORMAT_NAME = b"clip embeddings "
_FORMAT = _FORMAT_NAME + b"2"
_MAX_READERS = 1024
_SCAN_PAGE, _STAT_BLOCK = 1_000, 512
_REAP_EVERY_S = 10.0
_GATE_TIMEOUT_S = 30.0
_META_PAGES, _CLOSED = 2, -1
_CREATION_S = _EXTENSION_S = 1.0
"""How long the data file may be empty while a process creates it, and too short after a commit, on a busy machine."""


class _Gate:
    """A lock that any number of transactions share, or that one caller has exclusively."""

    def __init__(self, name: Path) -> None:
        self._name = name
        self._turn = threading.Condition()
        self._inside: Counter[int] = Counter()
        self._claimed = False

    def enter(self) -> int:
        """Begin a transaction; returns the argument for :meth:`leave`, because another thread may end it."""
        me = threading.get_ident()
        with self._turn:
            # A thread that is inside may enter again: it would otherwise wait for itself.
            while self._claimed and me not in self._inside:
                self._turn.wait()
            self._inside[me] += 1
        return me

    def leave(self, who: int) -> None:
        """End a transaction."""
        with self._turn:
            self._inside[who] -= 1
            if not self._inside[who]:
                del self._inside[who]
            if not self._inside:
                self._turn.notify_all()

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Wait until all transactions have ended, and block new ones."""
        with self._turn:
            if threading.get_ident() in self._inside:
                raise StoreError(f"{self._name}: the store cannot grow or close inside a read of the same thread")
            if not self._turn.wait_for(lambda: not self._claimed, _GATE_TIMEOUT_S):
                raise StoreUnavailableError(f"{self._name}: another thread takes too long to grow the store")
            self._claimed = True
            if not self._turn.wait_for(lambda: not self._inside, _GATE_TIMEOUT_S):
                self._claimed = False
                self._turn.notify_all()
                raise StoreUnavailableError(f"{self._name}: a read has been open for more than {_GATE_TIMEOUT_S:.0f} s")
        try:
            yield
        finally:
            with self._turn:
                self._claimed = False
                self._turn.notify_all()


class Environment:
    """The environment of one folder, obtained by :func:`acquire` and returned by :func:`release`.

    Its methods raise LMDB's errors as :class:`StoreUnavailableError`, and :class:`TruncatedStoreError` if the data file
    has lost its end.
    """

    def __init__(self, path: Path, map_bytes: int) -> None:
        self.path = path
        self.users = 0
        self._gate = _Gate(path)
        self._pid = os.getpid()
        self._lmdb: lmdb.Environment | None = None
        self._file = _CLOSED
        self._page_bytes, self._short_since = 0, 0.0
        self._map_bytes = _affordable(map_bytes)
        self._open()
        self.identity = _identity(path)
        self._reaped_at = time.monotonic()

    def close(self) -> None:
        """Unmap the file as soon as the last transaction of this process has ended."""
        with self._gate.alone():
            self._shut()

    @contextmanager
    def reading(self) -> Iterator[Transaction]:
        """Open a read transaction, which is a snapshot; values are views that are valid inside the block."""
        with self._faults():
            while True:
                with self._inside() as env:
                    seen = self._map_bytes
                    with suppress(lmdb.MapResizedError):
                        self._require_whole(env)
                        transaction = env.begin(buffers=True)
                        try:
                            yield transaction
                        finally:
                            transaction.abort()
                        return
                self._grow(seen)

    def write(self, work: Callable[[Transaction], T]) -> T:
        """Run ``work`` in one transaction, durable on return; it is run again if the map has to grow."""
        with self._faults():
            while True:
                with self._inside() as env:
                    seen = self._map_bytes
                    self._reap(env)
                    with suppress(lmdb.MapFullError, lmdb.MapResizedError):
                        self._require_whole(env)
                        with env.begin(write=True, buffers=True) as transaction:
                            size = self._require_whole(env)  # it may have waited for another writer
                            result = work(transaction)
                        self._extend(env, size)
                        return result
                self._grow(seen)

    def scan(self, prefix: bytes, look: Callable[[bytes, memoryview], T]) -> Iterator[T]:
        """Yield ``look(key, value)`` for every key with ``prefix``.

        Each page is a separate transaction, so that a slow or abandoned iteration does not keep old pages in use.
        """
        start: bytes | None = prefix
        while start is not None:
            page: list[T] = []
            with self.reading() as transaction:
                cursor = transaction.cursor()
                found = cursor.set_range(start)
                start = None
                for raw, value in cursor.iternext() if found else ():
                    key = bytes(raw)
                    if not key.startswith(prefix):
                        break
                    if len(page) == _SCAN_PAGE:
                        start = key
                        break
                    page.append(look(key, value))
            yield from page

    def check(self) -> None:
        """Raise if nothing can be read, or if the path now leads to another file."""
        with self.reading():
            self._require_identity()

    def copy(self, folder: Path) -> None:
        """Write a snapshot without unused pages to ``data.mdb`` in ``folder``.

        Meanwhile, writing services cannot reuse the snapshot's pages, so the original file grows.
        """
        with self._faults(), self._inside() as env:
            self._require_whole(env)
            env.copy(str(folder), compact=True)

    @contextmanager
    def _faults(self) -> Iterator[None]:
        try:
            yield
        except lmdb.Error as error:
            if isinstance(error, lmdb.PanicError):
                self.close()  # LMDB refuses further use of this handle; the next caller opens a new one
            raise StoreUnavailableError(explain(self.path, error)) from error

    @contextmanager
    def _inside(self) -> Iterator[lmdb.Environment]:
        """Enter the gate, with the map open."""
        if os.getpid() != self._pid:
            raise StoreError(f"{self.path}: opened before a fork; open the store in the child process instead")
        while True:
            token = self._gate.enter()
            try:
                if self._lmdb is not None:
                    yield self._lmdb
                    return
            finally:
                self._gate.leave(token)
            with self._gate.alone():
                if self._lmdb is None:
                    self._reopen(self._map_bytes)

    def _open(self) -> None:
        """Map the file; if address space is short, with half the size, and so on."""
        _require_content(self.path)
        while self._lmdb is None:
            try:
                self._lmdb = lmdb.open(
                    str(self.path), map_size=self._map_bytes, max_readers=_MAX_READERS, mode=FILE_MODE
                )
            except lmdb.MemoryError:
                if self._map_bytes < 2 * _SMALLEST_MAP_BYTES:
                    raise
                self._map_bytes = _whole_pages(self._map_bytes // 2)
        try:
            self._page_bytes = self._lmdb.stat()["psize"]
            self._file = os.open(self.path / DATA_FILE, os.O_RDWR | os.O_CLOEXEC)
            self._require_whole(self._lmdb)
            self._lmdb.reader_check()
        except BaseException as error:
            self._shut()
            if isinstance(error, OSError):  # no descriptor is left, say
                raise StoreUnavailableError(explain(self.path, error)) from error
            raise

    def _shut(self) -> None:
        if self._lmdb is not None:
            self._lmdb.close()
            self._lmdb = None
        if self._file >= 0:
            file, self._file = self._file, _CLOSED  # even a close that fails frees the number for another file
            os.close(file)

    def _reopen(self, map_bytes: int) -> None:
        self._shut()
        # LMDB would create a new, empty file.
        self._require_identity()
        self._map_bytes = map_bytes
        self._open()

    def _require_identity(self) -> None:
        if _identity(self.path) != self.identity:
            raise StoreUnavailableError(f"{self.path}: the store was removed or replaced after it was opened")

    def _require_whole(self, env: lmdb.Environment) -> int:
        """Return the file's size; raise :class:`TruncatedStoreError` if it is too short to be read through the map."""
        while (size := os.fstat(self._file).st_size) < (needed := self._needed(env, size)):
            self._short_since = self._short_since or time.monotonic()  # who reads a truncated file waits once
            if time.monotonic() > self._short_since + _EXTENSION_S:
                raise TruncatedStoreError(
                    f"{self.path / DATA_FILE}: truncated to {size} of {needed} bytes; restore it, or embed the clips "
                    "again into an empty folder"
                )
            time.sleep(0.005)  # a writer may be about to extend it
        self._short_since = 0.0
        return size

    def _extend(self, env: lmdb.Environment, before: int) -> None:
        """Make the file, which had ``before`` bytes, as long as :meth:`_require_whole` wants it; no page is changed."""
        size = os.fstat(self._file).st_size
        if size < self._needed(env, size):
            with env.begin(write=True):  # nobody else can write meanwhile
                if (size := os.fstat(self._file).st_size) < before:
                    self._require_whole(env)  # it has lost pages: with others in their place it would look whole
                else:
                    os.ftruncate(self._file, max(size, self._needed(env, size)))
            os.fsync(self._file)

    def _needed(self, env: lmdb.Environment, size: int) -> int:
        """Return the bytes of all pages that LMDB has used; of the first two, which say that, if they are missing."""
        meta = _META_PAGES * self._page_bytes
        return meta if size < meta else int(env.info()["last_pgno"] + 1) * self._page_bytes

    def _grow(self, seen: int) -> None:
        """Open a map larger than ``seen`` bytes, unless another thread has done so."""
        with self._gate.alone():
            if self._map_bytes <= seen:
                self._reopen(2 * seen)
            if self._map_bytes <= seen:
                raise StoreUnavailableError(
                    f"{self.path}: not enough address space for a map of more than {seen} bytes (ulimit -v)"
                )

    def _reap(self, env: lmdb.Environment) -> None:
        """Clear dead readers periodically: the pages of their snapshots cannot be reused until then."""
        now = time.monotonic()
        if now - self._reaped_at > _REAP_EVERY_S:
            self._reaped_at = now
            env.reader_check()


def models(transaction: Transaction) -> dict[bytes, str]:
    """Return the ids of a store's registered models, by the prefixes of their records' keys."""
    found = {}
    cursor = transaction.cursor()
    for at, name in cursor.iternext() if cursor.set_range(RESERVED + b"\0") else ():
        if bytes(at[: len(RESERVED)]) != RESERVED:
            break
        if len(at) == _MODEL_KEY_BYTES:
            found[bytes(at[len(RESERVED) :])] = bytes(name).decode()
    return found


def register(transaction: Transaction, path: Path, prefix: bytes, model_id: str) -> None:
    """Register a model's name under its hash, for deletes and statistics; two models must not share a hash."""
    at, name = RESERVED + prefix, model_id.encode()
    known = transaction.get(at)
    if known is None:
        transaction.put(at, name)
    elif known != name:
        raise StoreError(f"{path}: model {model_id!r} has the same hash as {bytes(known).decode()!r}")


_environments: dict[tuple[int, int], Environment] = {}
_registry = threading.Lock()


def acquire(path: Path, map_bytes: int) -> Environment:
    """Return this process's environment of the folder ``path``, which is created if absent.

    ``map_bytes`` is used for the first user of the folder. Raises :class:`StoreError` if the folder cannot be used or
    contains other data, :class:`StoreUnavailableError` if the disk is full.
    """
    with _registry:
        try:
            path.mkdir(parents=True, exist_ok=True)
            is_new = not (path / DATA_FILE).exists()
            environment = None if is_new else _environments.get(_identity(path))
            if environment is None:
                environment = Environment(path, map_bytes)
                try:
                    _claim(environment)
                except BaseException:
                    environment.close()
                    raise
            if is_new:
                sync_folders(path)
        except (lmdb.DiskError, lmdb.ReadersFullError) as error:
            raise StoreUnavailableError(explain(path, error)) from error
        except (lmdb.Error, OSError, ValueError) as error:
            raise StoreError(explain(path, error)) from error
        _environments[environment.identity] = environment
        environment.users += 1
        return environment


def release(environment: Environment) -> None:
    """Release an environment; its last user closes it."""
    with _registry:
        if environment.users == 1:
            environment.close()
            del _environments[environment.identity]
        environment.users -= 1


def _claim(environment: Environment) -> None:
    """Mark a new environment as a store, or verify that an existing one is."""

    def mark(transaction: Transaction) -> None:
        if not transaction.stat()["entries"]:
            transaction.put(RESERVED, _FORMAT)

    with environment.reading() as transaction:
        known = bytes(transaction.get(RESERVED) or b"")
        is_empty = not transaction.stat()["entries"]
    if is_empty:
        environment.write(mark)
    elif known.startswith(_FORMAT_NAME) and known != _FORMAT:
        raise StoreError(
            f"{environment.path}: the store's format is {known.decode()!r}, this release's is {_FORMAT.decode()!r}. "
            "Use an empty folder and re-embed the clips"
        )
    elif known != _FORMAT:
        raise StoreError(f"{environment.path}: the LMDB file is not a store of this release")


def _require_content(path: Path) -> None:
    """Raise :class:`TruncatedStoreError` for an empty file, from which LMDB would make a store without records."""
    give_up_at = time.monotonic() + _CREATION_S
    file = path / DATA_FILE
    while file.exists() and not file.stat().st_size:
        if time.monotonic() > give_up_at:  # it is not being created by another process
            raise TruncatedStoreError(f"{file}: empty; restore it, or remove it to begin with an empty store")
        time.sleep(_CREATION_S / 100)


def bytes_on_disk(path: Path) -> int:
    """Return the bytes that the data file in the folder ``path`` occupies."""
    try:
        return (path / DATA_FILE).stat().st_blocks * _STAT_BLOCK
    except OSError as error:
        raise StoreUnavailableError(explain(path, error)) from error


def explain(path: Path, error: Exception) -> str:
    """Return one line that says what is wrong with the store in the folder ``path``."""
    reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    twin = "; does a process of the same id use it in another container?" if "temporarily unavail" in reason else ""
    return f"{path}: {' '.join(reason.removeprefix(f'{path}: ').split())}{twin}"


def _identity(path: Path) -> tuple[int, int]:
    """Return an id of a data file that does not depend on links to it; zeros if there is none."""
    with suppress(OSError):
        status = (path / DATA_FILE).stat()
        return status.st_dev, status.st_ino
    return 0, 0


def sync_folders(path: Path) -> None:
    """Make a new file's directory entries durable; LMDB does so only for its content."""
    for folder in (path, path.resolve().parent):
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _affordable(map_bytes: int) -> int:
    """Limit the map to a part of a limited address space (``ulimit -v``)."""
    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    return _whole_pages(map_bytes if limit == resource.RLIM_INFINITY else min(map_bytes, limit // 4))


def _whole_pages(size: int) -> int:
    return max(size // mmap.PAGESIZE, 1) * mmap.PAGESIZE
