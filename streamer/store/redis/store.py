"""The remote store: a server of the Redis protocol, or a cluster of them.

Operations are atomic per clip: each clip is written and read whole, but a put of several clips may be seen in part, and
a read of several is not a snapshot.
"""

from __future__ import annotations

import threading
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

import structlog

from streamer.pooling import MAX
from streamer.store import record_format
from streamer.store.corrupt import CorruptRecordLog
from streamer.store.options import StoreOptions
from streamer.store.protocol import PutOutcome, StoreError, StoreRefusedError, StoreStats, StoreUnavailableError
from streamer.store.read_batch import Records
from streamer.store.redis.address import Address
from streamer.store.redis.answers import Meaning, meaning, words
from streamer.store.redis.cache import RecordCache
from streamer.store.redis.deadline import Deadline
from streamer.store.redis.exchange import Call
from streamer.store.redis.keyspace import TORN_READS, Edit, Space, StoreReplacedError, by_bucket
from streamer.store.redis.link import Link
from streamer.store.redis.scripts import READ_UNLESS, UNCHANGED
from streamer.store.redis.servers import ask, refuse_eviction

if TYPE_CHECKING:
    import datetime as dt
    from collections.abc import Iterator, Mapping, Sequence

    import numpy as np
    import numpy.typing as npt

    from streamer.scoring import ClipScores
    from streamer.settings import Precision
    from streamer.store.protocol import Clip, Position, StoreServer

log = structlog.get_logger()


@dataclass(slots=True)
class _Fetched:
    """The stored records of a read, by key.

    ``transferred``: how many of them a server has sent; the others come from the cache, after the servers confirmed
    that they are current. ``unavailable``: the keys about which no server has answered, ``why``: the first reason.
    """

    records: dict[bytes, memoryview]
    transferred: int = 0
    unavailable: set[bytes] = field(default_factory=set)
    why: str = ""
    replica_reads: int = 0


_PUT_BYTES = 4 << 20
"""The bytes written at once; a server must accept them within its timeout."""
_LOOK_SHARE = 0.5
"""The share of the rest of its time for which a reader that opens a store waits for what servers say of themselves."""
_ABSENT = b"-"
"""Bytes that differ from every record's checksum."""


class RedisStore:
    """:class:`~streamer.store.Store` at a URL of :mod:`streamer.store.redis.address`.

    If the store is unreachable when it is opened, later calls use it as soon as it is there, unless it must exist
    already (``existing``). Whatever a server answers later, calls raise :class:`StoreUnavailableError`, since no event
    is at fault. Reads do not wait for servers of which it is known that they do not answer. :meth:`clip_ids` and
    :meth:`stats` read the header of every record, some ten seconds per million; an id may be repeated, and concurrent
    writes may be seen or not.
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
        self._validates = self._options.cache_bytes > 0
        self._corrupt = CorruptRecordLog(self._address.public)
        self._cache = RecordCache(self._options.cache_bytes)
        self._link = Link(self._address, self._options)
        try:
            found = self._opened()
            if found is not None and self._validates:
                self._check_validation(found)
        except StoreUnavailableError as error:
            if existing or isinstance(error, StoreError):
                self._link.close()
                raise
            log.warning("store unreachable, connecting later", error=str(error))
            return
        if found is None and existing:
            self._link.close()
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
        """Read records, each atomically; None for an absent, deleted or corrupt one. Raises if any is unavailable."""
        keys = record_format.keys(self._prefix, clip_ids)
        found = self._fetch(keys, Deadline.after(self._options.timeout_s))
        if found.unavailable:
            raise StoreUnavailableError(found.why)
        with self._records(clip_ids, keys, found) as records:
            yield records

    def score(
        self, clip_ids: Sequence[str], vector: npt.NDArray[np.float32], deadline: float | None, pooling: str = MAX
    ) -> ClipScores:
        """As :meth:`Store.score <streamer.store.Store.score>`: clips on servers that do not answer are unavailable."""
        keys = record_format.keys(self._prefix, clip_ids)
        by = Deadline.after(self._options.timeout_s) if deadline is None else Deadline(deadline)
        found = self._fetch(keys, by)
        with self._records(clip_ids, keys, found) as records:
            scores = records.scores(vector, pooling)
        missing = found.unavailable
        return scores._replace(
            unavailable=[place for place, key in enumerate(keys) if key in missing] if missing else (),
            why=found.why,
            replica_reads=found.replica_reads,
        )

    @contextmanager
    def _records(self, clip_ids: Sequence[str], keys: Sequence[bytes], found: _Fetched) -> Iterator[Records]:
        def corrupt(position: int, error: Exception) -> None:
            self._cache.drop(keys[position])
            self._corrupt.note(keys[position], clip_ids[position], error)

        hits = len(found.records) - found.transferred
        get = found.records.get
        records = Records(get, keys, clip_ids, self._dim, corrupt, cache_hits=hits, cache_misses=found.transferred)
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
        """Raise :class:`StoreUnavailableError` if slots are not served, or a server does not answer or has changed.

        Also if a server may evict records.
        """
        if not self._closed:
            self._link.ping(writes=not self._read_only)
        space = self._opened()
        if space is not None:
            with self._same_store(space):
                space.check_format()
        self._look_at_servers()

    def servers(self) -> Sequence[StoreServer]:
        """Return the servers as the last :meth:`ping` found them."""
        return self._servers

    def close(self) -> None:
        """Close all connections."""
        self._closed = True
        self._space = None
        self._link.close()

    def _opened(self, deadline: Deadline | None = None) -> Space | None:
        """Return the opened store; None if it does not exist yet, until a writer of this model creates it."""
        space = self._space
        if space is not None:
            return space
        deadline = deadline or Deadline.after(self._options.timeout_s)
        if not self._lock.acquire(timeout=deadline.left()):
            raise StoreUnavailableError(f"{self._address.public}: it is being opened")
        try:
            if self._space is None and not self._closed:
                self._space = self._open(deadline)
        except StoreUnavailableError:
            raise
        except StoreError as error:
            raise StoreRefusedError(str(error)) from error
        finally:
            self._lock.release()
        if self._closed:
            raise StoreError(f"{self._address.public}: the store is closed")
        return self._space

    def _open(self, deadline: Deadline) -> Space | None:
        create = not self._read_only
        looks = not self._is_for_tools and (not self._servers or any(each.evicts for each in self._servers))
        if looks and create:  # before there is a store
            self._look_at_servers()
        space = Space.open(self._link, self._address, self._options, create=create, deadline=deadline)
        if space is not None:
            if self._dim is not None:
                space.expect(self._dim, self._precision)
            space.check_model(self._prefix, self._model_id, deadline)
            if create:
                space.register(range(space.buckets.count), {self._prefix: self._model_id})
        if looks and not create:
            # Also where there is no store yet, which a reader would otherwise wait for. A server that does not answer
            # costs it only that server's clips, and a query that opens the store has to be answered in time.
            self._look_at_servers(deadline.within(_LOOK_SHARE * deadline.left()))
        return space

    def _check_validation(self, space: Space) -> None:
        """Turn the cache off where the servers cannot compare its records."""
        error = space.why_not_validated()
        if error is not None:
            self._validates = False
            log.warning(
                "the store's servers do not run EVAL_RO for this user: records are not cached, and each query "
                "transfers all of its records",
                store=self._address.public,
                error=words(error),
            )

    @contextmanager
    def _same_store(self, space: Space) -> Iterator[None]:
        """Let the next call open the store again if it was created anew."""
        try:
            yield
        except StoreReplacedError:
            with self._lock:
                if self._space is space:
                    self._space = None
            raise

    def _writable(self) -> Space:
        if self._read_only:
            raise StoreError(f"{self._address.public}: the store was opened read-only")
        space = self._opened()
        if space is None:
            raise StoreUnavailableError(f"{self._address.public}: the store was removed")
        if any(each.evicts for each in self._servers):  # until they are seen to be configured otherwise
            self._look_at_servers()
        return space

    def _look_at_servers(self, impatient: Deadline | None = None) -> None:
        """Ask the servers for their state, those that answer by an impatient caller's deadline, else all primaries.

        Raises :class:`EvictingStoreError` if one may evict records.
        """
        deadline = impatient or Deadline.after(self._options.timeout_s)
        is_cluster = self._address.is_cluster
        self._servers = ask(self._link, deadline, is_cluster=is_cluster, patient=impatient is None)
        refuse_eviction(self._address.public, self._servers)

    def _fetch(self, keys: Sequence[bytes], deadline: Deadline) -> _Fetched:
        space = self._opened(deadline)
        if space is None or not keys:
            return _Fetched({})
        with self._same_store(space):
            return self._read(space, keys, deadline)

    def _read(self, space: Space, keys: Sequence[bytes], deadline: Deadline) -> _Fetched:
        buckets = by_bucket(space.buckets, dict.fromkeys(keys), space.record_bytes)
        held = self._cache.held(keys) if self._validates else {}
        calls = [_read_call(space, number, wanted, held) for number, wanted in buckets]
        generation = self._link.generation
        format_call = space.format_call()
        replies, replica_reads = self._link.read([*calls, format_call] if format_call else calls, deadline)
        if format_call is not None and not isinstance(stored := replies.pop(), Exception):
            space.compare_format(stored, generation)
        self._one_by_one(space, buckets, replies, deadline)
        found = _Fetched({}, replica_reads=replica_reads)
        fresh: dict[bytes, bytes] = {}
        for (_, wanted), reply in zip(buckets, replies, strict=True):
            values = [reply] * len(wanted) if isinstance(reply, Exception) else space.whole(reply)
            for key, value in zip(wanted, values, strict=True):
                if isinstance(value, bytes):
                    fresh[key] = value
                    found.records[key] = memoryview(value)
                elif value == UNCHANGED:
                    found.records[key] = memoryview(held[key])
                elif value is not None:
                    found.unavailable.add(key)
                    found.why = found.why or str(self._link.fault(value))
        space.record_bytes = max(space.record_bytes, max(map(len, fresh.values()), default=0))
        self._cache.keep(fresh)
        found.transferred = len(fresh)
        return found

    def _one_by_one(
        self, space: Space, buckets: Sequence[tuple[int, list[bytes]]], replies: list[Any], deadline: Deadline
    ) -> None:
        """Ask again for what servers refuse together: the keys of a migrating bucket, and scripts; in one exchange."""
        refused = [
            each
            for each, reply in enumerate(replies)
            if isinstance(reply, Exception) and meaning(reply) in {Meaning.AGAIN, Meaning.FINAL}
        ]
        if not refused:
            return
        if self._validates and any(meaning(replies[each]) is Meaning.FINAL for each in refused):
            self._check_validation(space)
        full = [space.full(*buckets[each]) for each in refused]
        calls = [
            Call(space.buckets.slots[buckets[each][0]], ("GET", key), space.record_bytes)
            for each, keys in zip(refused, full, strict=True)
            for key in keys
        ]
        for _ in range(TORN_READS):
            values = iter(self._link.read(calls, deadline).replies)
            for each, keys in zip(refused, full, strict=True):
                replies[each] = [next(values) for _ in keys]
            # Parts that were read one after the other may be of two versions.
            if not any(space.is_torn(replies[each]) for each in refused):
                return


def _read_call(space: Space, number: int, wanted: Sequence[bytes], held: Mapping[bytes, bytes]) -> Call:
    """Return the call that reads some records of a bucket, except cached ones that are current."""
    full, slot, size = space.full(number, wanted), space.buckets.slots[number], len(wanted) * space.record_bytes
    if not any(key in held for key in wanted):
        return Call(slot, ("MGET", *full), size)
    known = [held[key][: record_format.CHECKED_FROM] if key in held else _ABSENT for key in wanted]
    return Call(slot, ("EVAL_RO", READ_UNLESS, len(full), *full, *known), size)


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
