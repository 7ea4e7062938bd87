"""The remote store: a server of the Redis protocol, or a cluster of them.

Operations are atomic per clip: each clip is written and read whole, but a put of several clips may be seen in part, and
a read of several is not a snapshot.
"""

from __future__ import annotations

import threading
import time
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING

import structlog

from streamer.store import record_format
from streamer.store.corrupt import CorruptRecordLog
from streamer.store.options import StoreOptions
from streamer.store.protocol import EvictingStoreError, PutOutcome, StoreError, StoreStats, StoreUnavailableError
from streamer.store.read_batch import Records
from streamer.store.redis.address import Address
from streamer.store.redis.cache import RecordCache
from streamer.store.redis.keyspace import Edit, Space, StoreReplacedError
from streamer.store.redis.link import Call
from streamer.store.redis.scripts import READ_UNLESS, UNCHANGED
from streamer.store.redis.servers import ask, refuse_eviction

if TYPE_CHECKING:
    import datetime as dt
    from collections.abc import Iterator, Sequence

    from streamer.settings import Precision
    from streamer.store.protocol import Clip, Position, StoreServer

log = structlog.get_logger()

_PUT_BYTES = 4 << 20
"""The bytes written at once; a server must accept them within its timeout."""
_ABSENT = b"-"
"""Bytes that differ from every record's checksum."""


class RedisStore:
    """:class:`~streamer.store.Store` at a URL of :mod:`streamer.store.redis.address`.

    If the store is unreachable when it is opened, each later call tries to connect, unless the store must exist already
    (``existing``). After a failed read, reads fail immediately for as long as the failed one took: queries must not
    wait for an unreachable store. :meth:`clip_ids` and :meth:`stats` read the header of every record, some ten seconds
    per million; an id may be repeated, and concurrent writes may be seen or not.
    """

    def __init__(
        self,
        url: str,
        *,
        model_id: str,
        dim: int | None,
        precision: Precision = "float16",
        read_only: bool = False,
        existing: bool = False,
        options: StoreOptions | None = None,
    ) -> None:
        self._address = Address.parse(url)
        self._options = options or StoreOptions()
        self._model_id = model_id
        self._prefix = record_format.model_prefix(model_id)
        self._dim = dim
        self._precision = precision
        self._read_only = read_only
        self._lock = threading.Lock()
        self._space: Space | None = None
        self._is_for_tools = existing
        self._servers: Sequence[StoreServer] = ()
        self._closed = False
        self._corrupt = CorruptRecordLog(self._address.public)
        self._cache = RecordCache(self._options.cache_bytes)
        self._away_until = 0.0
        self._why_away = ""
        try:
            found = self._opened()
        except EvictingStoreError:
            raise
        except StoreUnavailableError as error:
            if existing:
                raise
            log.warning("store unreachable, connecting later", error=str(error))
        else:
            if found is None and existing:
                raise StoreError(f"{self._address.public}: no such store")

    def put(self, clips: Sequence[Clip]) -> list[PutOutcome]:
        """Write clips, each atomically; if it raises, some may have been written, and the call can be repeated."""
        space = self._writable()
        edits, sizes = [], []
        for clip in clips:
            if clip.vectors.shape[-1:] != (self._dim,):
                raise ValueError(f"vectors of shape {clip.vectors.shape} in a store of vectors of length {self._dim}")
            key = record_format.key(self._prefix, clip.clip_id)
            value = record_format.encode(clip, self._precision)
            edits.append(
                Edit(key, partial(_upload, record_format.microseconds(clip.uploaded_at), clip.position, value), 0)
            )
            sizes.append(len(value))
        outcomes: list[PutOutcome] = []
        for some in _portions(edits, sizes):
            numbers = {space.buckets.of(edit.key) for edit in some}
            with self._same_store(space):
                space.register(numbers, {self._prefix: self._model_id})
            # Most clips are new: existing records are read only if this assumption fails.
            made = space.apply(some, [None] * len(some))
            space.settle(numbers)
            outcomes += [PutOutcome.WRITTEN if each else PutOutcome.SUPERSEDED for each, _ in made]
        return outcomes

    def delete(self, clip_id: str, deleted_at: dt.datetime, position: Position) -> bool:
        """Replace every model's record that is not later by a tombstone; for this model also an absent one."""
        space = self._writable()
        own = record_format.key(self._prefix, clip_id)
        number = space.buckets.of(own)
        with self._same_store(space):
            space.register([number], {self._prefix: self._model_id})
        keys = [record_format.key(prefix, clip_id) for prefix in space.prefixes(number) | {self._prefix}]
        lives_ms = int(1000 * self._options.tombstone_s)
        deleted_us = record_format.microseconds(deleted_at)
        edits = [Edit(key, partial(_delete, clip_id, deleted_us, position, key == own), lives_ms) for key in keys]
        made = space.apply(edits, space.get(keys))
        space.settle([number])
        buried, before = made[keys.index(own)]
        version = record_format.version(_view(before))
        return buried and version is not None and version.live

    @contextmanager
    def read(self, clip_ids: Sequence[str]) -> Iterator[Records]:
        """Read records, each atomically; None for an absent, deleted or corrupt one."""
        keys = record_format.keys(self._prefix, clip_ids)
        found, transferred = self._fetch(keys)

        def corrupt(position: int, error: Exception) -> None:
            self._cache.drop(keys[position])
            self._corrupt.note(keys[position], clip_ids[position], error)

        hits = len(found) - transferred
        records = Records(found.get, keys, clip_ids, self._dim, corrupt, cache_hits=hits, cache_misses=transferred)
        try:
            yield records
        finally:
            records.end()

    def clip_ids(self) -> Iterator[str]:
        """Yield the ids of this model's live clips."""
        space = self._opened()
        if space is None:
            return
        for keys in space.scan(self._prefix):
            for key, head in zip(keys, space.heads(keys), strict=True):
                if record_format.is_live(head):
                    try:
                        found = record_format.clip_id(key, head)
                    except record_format.CorruptRecordError:
                        # The id of a damaged record with a long id is lost; :meth:`read` reports the damage.
                        continue
                    yield found

    def stats(self) -> StoreStats:
        """Count the records of all models; ``bytes`` is the memory of the servers, including other data."""
        space = self._opened()
        if space is None:
            return StoreStats({}, 0, 0)
        models = space.models()
        clips = dict.fromkeys(models.values(), 0)
        tombstones = 0
        for keys in space.scan():
            for key, head in zip(keys, space.heads(keys), strict=True):
                name = models.get(key[: record_format.PREFIX_BYTES])
                if name is None or not head:
                    continue
                if record_format.is_live(head):
                    clips[name] += 1
                else:
                    tombstones += 1
        return StoreStats(clips, tombstones, space.bytes_used())

    def ping(self) -> None:
        """Raise :class:`StoreUnavailableError` if a server with records does not respond, or one may evict records."""
        space = self._opened()
        if space is None:
            return
        try:
            space.link.ping()
        except StoreUnavailableError:
            # It may have been replaced, which a process that neither reads nor writes has not noticed.
            space.link.ping(fresh=True)
        with self._same_store(space):
            space.check_format()
        self._look_at_servers(space)

    def servers(self) -> Sequence[StoreServer]:
        """Return the servers as the last :meth:`ping` found them."""
        return self._servers

    def close(self) -> None:
        """Close all connections."""
        with self._lock:
            self._closed = True
            if self._space is not None:
                self._space.link.close()
                self._space = None

    def _opened(self) -> Space | None:
        """Return the connected store; None if it does not exist yet, until a writer of this model creates it."""
        space = self._space
        if space is not None:
            return space
        with self._lock:
            if self._closed:
                raise StoreError(f"{self._address.public}: the store is closed")
            if self._space is None:
                self._space = self._open()
            return self._space

    def _open(self) -> Space | None:
        space = Space.open(self._address, self._options, create=not self._read_only)
        if space is None:
            return None
        try:
            if not self._is_for_tools:
                self._look_at_servers(space)
            space.check_model(self._prefix, self._model_id)
            if not self._read_only:
                space.register(range(space.buckets.count), {self._prefix: self._model_id})
        except BaseException:
            space.link.close()
            raise
        return space

    @contextmanager
    def _same_store(self, space: Space) -> Iterator[None]:
        """Let the next call open the store again if it was created anew."""
        try:
            yield
        except StoreReplacedError:
            with self._lock:
                if self._space is space:
                    self._space = None
                    space.link.close()
            raise

    def _writable(self) -> Space:
        if self._read_only:
            raise StoreError(f"{self._address.public}: the store was opened read-only")
        space = self._opened()
        if space is None:
            raise StoreUnavailableError(f"{self._address.public}: the store was removed")
        if any(each.evicts for each in self._servers):  # until they are seen to be configured otherwise
            self._look_at_servers(space)
        return space

    def _look_at_servers(self, space: Space) -> None:
        """Ask the servers for their state. Raises :class:`EvictingStoreError` if one may evict records."""
        self._servers = ask(space.link, self._options.timeout_s, is_cluster=self._address.is_cluster)
        refuse_eviction(self._address.public, self._servers)

    def _fetch(self, keys: Sequence[bytes]) -> tuple[dict[bytes, memoryview], int]:
        """Return the stored records by key, and how many of them were transferred.

        The others come from the cache, after the servers confirmed that they are current.
        """
        began = time.monotonic()
        if began < self._away_until:
            raise StoreUnavailableError(self._why_away)
        try:
            space = self._opened()
            return ({}, 0) if space is None or not keys else self._read(space, keys)
        except StoreUnavailableError as error:
            self._why_away = str(error)
            failed = time.monotonic()
            self._away_until = 2 * failed - began
            raise

    def _read(self, space: Space, keys: Sequence[bytes]) -> tuple[dict[bytes, memoryview], int]:
        buckets = space.buckets
        by_bucket: dict[int, list[bytes]] = {}
        for key in dict.fromkeys(keys):
            by_bucket.setdefault(buckets.of(key), []).append(key)
        held = self._cache.held(keys)
        calls = []
        for number, wanted in by_bucket.items():
            full = space.full(number, wanted)
            if held and any(key in held for key in wanted):
                known = [held[key][: record_format.CHECKED_FROM] if key in held else _ABSENT for key in wanted]
                calls.append(Call(buckets.slots[number], ("EVAL_RO", READ_UNLESS, len(full), *full, *known)))
            else:
                calls.append(Call(buckets.slots[number], ("MGET", *full)))
        fresh: dict[bytes, bytes] = {}
        found: dict[bytes, memoryview] = {}
        for wanted, reply in zip(by_bucket.values(), space.link.run(calls), strict=True):
            # One by one while a bucket migrates, when commands with several keys are refused.
            values = [space.get_apart(key) for key in wanted] if isinstance(reply, Exception) else space.whole(reply)
            for key, value in zip(wanted, values, strict=True):
                if value == UNCHANGED:
                    found[key] = memoryview(held[key])
                elif value is not None:
                    fresh[key] = value
                    found[key] = memoryview(value)
        self._cache.keep(fresh)
        return found, len(fresh)


def _upload(uploaded_us: int, position: Position, value: bytes, stored: bytes | None) -> bytes | None:
    return value if record_format.admits(record_format.version(_view(stored)), uploaded_us, position) else None


def _delete(clip_id: str, deleted_us: int, position: Position, is_own: bool, stored: bytes | None) -> bytes | None:
    if stored is None and not is_own:
        return None
    tombstone = record_format.tombstone(record_format.version(_view(stored)), deleted_us, position)
    return None if tombstone is None else record_format.encode_tombstone(clip_id, tombstone)


def _portions(edits: Sequence[Edit], sizes: Sequence[int]) -> Iterator[list[Edit]]:
    """Split uploads into portions that can be sent at once."""
    some: list[Edit] = []
    size = 0
    for edit, each in zip(edits, sizes, strict=True):
        some.append(edit)
        size += each
        if size >= _PUT_BYTES:
            yield some
            some, size = [], 0
    if some:
        yield some


def _view(value: bytes | None) -> memoryview | None:
    return None if value is None else memoryview(value)
