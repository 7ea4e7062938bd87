"""One store's part of a Redis keyspace: reads, replaces and lists records, registers models, waits for replicas."""

from __future__ import annotations

import re
import secrets
import time
from typing import TYPE_CHECKING, Any, NamedTuple

from redis.crc import key_slot
from redis.exceptions import NoPermissionError

from streamer.settings import EmbeddingSettings
from streamer.store import record_format
from streamer.store.protocol import StoreError, StoreUnavailableError
from streamer.store.redis import info, parts
from streamer.store.redis.address import (
    BUCKETS_PER_NODE,
    DEFAULT_BUCKETS,
    FORMAT_FIELD,
    MODELS,
    SALT_FIELD,
    VERSION,
    Buckets,
    buckets_of,
    common_models,
)
from streamer.store.redis.answers import Meaning, meaning
from streamer.store.redis.exchange import WINDOW_BYTES, Call
from streamer.store.redis.scripts import (
    BURY,
    BURY_PARTS,
    ENSURE,
    REGISTER,
    REPLACE,
    REPLACE_PARTS,
    REPLACED,
    TOUCH,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    from streamer.settings import Precision
    from streamer.store.options import StoreOptions
    from streamer.store.redis.address import Address
    from streamer.store.redis.deadline import Deadline
    from streamer.store.redis.link import Link
    from streamer.store.redis.nodes import Node

_CONTENTION_S = 30.0
"""Seconds for which a write is retried while other writers change the same record."""
_SCAN_KEYS = 1_000
_LAST_WRITE = MODELS + b"last write"
"""Follows a bucket's tag in the key that is written in order to wait for replicas."""
_NO_MODELS = {SALT_FIELD, FORMAT_FIELD}
TORN_READS = 5
"""How often two parts are read one after the other before a checksum that does not match counts as damage."""
_CALL_BYTES = WINDOW_BYTES // 4
"""The bytes that one command may ask for: a server does nothing else while it copies them."""
_LONGEST_DIM = 1_024
"""The length of the vectors of the models in use at most, where it is not known."""
_MAX_FRAMES: int = EmbeddingSettings.model_fields["max_frames"].default
_WAIT_SHARE = 0.5
"""The share of the timeout for which a server may wait for its replicas."""


class StoreReplacedError(StoreUnavailableError):
    """The store was created anew since this process opened it, so its clips are in other buckets: open it again."""


class Edit(NamedTuple):
    """A conditional replacement of one record.

    ``decide`` is called with the value stored under ``key`` and returns its replacement, or None to keep it. It is
    called again if another writer has changed the value meanwhile. ``lives_ms``: lifetime; 0 means for ever.
    """

    key: bytes
    decide: Callable[[bytes | None], bytes | None]
    lives_ms: int


class Space:
    """The store at an address, accessed through a link. May be used by several threads.

    ``record_bytes`` is the size of a record at most, by which servers are asked for bounded amounts. A model's vectors
    have one length, but only an embedder knows how many a clip has: the default counts until larger records are seen.
    """

    def __init__(self, link: Link, buckets: Buckets, options: StoreOptions) -> None:
        self.link = link
        self.buckets = buckets
        self.record_bytes = record_format.largest(_LONGEST_DIM, _MAX_FRAMES, "float16")
        self._compared_at = -1
        self._format_slot = key_slot(buckets.name)
        self._replicas = options.replicas
        self._wait_ms = max(1, int(1000 * _WAIT_SHARE * options.timeout_s))

    @classmethod
    def open(
        cls, link: Link, address: Address, options: StoreOptions, *, create: bool, deadline: Deadline
    ) -> Space | None:
        """Read the store's format, by a deadline; None if the store does not exist and is not created."""
        name = address.name.encode()
        if not create:
            (stored,), _ = link.read([Call(key_slot(name), ("GET", name))], deadline)
            if isinstance(stored, Exception):
                raise link.fault(stored)
            return None if stored is None else cls(link, buckets_of(stored, address), options)
        stored = link.one("GET", name)
        if stored is None:
            # The first process determines the number of buckets, the salt, and whether there are parts.
            made = _lost(link, address) or _new(link, address)
            (stored,) = link.all([_ensure(made)])
        if stored is None:
            raise StoreUnavailableError(f"{address.public}: the store was removed while it was created")
        return cls(link, buckets_of(stored, address), options)

    def get(self, keys: Sequence[bytes]) -> list[bytes | None]:
        """Return the records under ``keys``."""
        buckets = self.buckets
        if not buckets.in_parts:
            return self.link.all([self._call("GET", key) for key in keys])
        numbers = [buckets.of(key) for key in keys]
        calls = [
            Call(buckets.slots[n], ("MGET", buckets.heads[n] + key, buckets.rest(n, key)), self.record_bytes)
            for n, key in zip(numbers, keys, strict=True)
        ]
        return [
            self.get_apart(key) if isinstance(reply, Exception) else _joined(reply)
            for key, reply in zip(keys, self.link.run(calls), strict=True)
        ]

    def get_apart(self, key: bytes) -> bytes | None:
        """Return one record by commands with one key each, as a cluster requires while the key's slot migrates."""
        number = self.buckets.of(key)
        for attempt in range(1, TORN_READS + 1):
            value: bytes | None = self.link.one("GET", self.buckets.heads[number] + key)
            if value is None or not self.buckets.in_parts:
                return value
            value = parts.join(value, self.link.one("GET", self.buckets.rest(number, key)))
            # It may have been replaced between the two commands.
            if attempt == TORN_READS or record_format.version(memoryview(value)) is not None:
                break
        return value

    def expect(self, dim: int, precision: Precision) -> None:
        """Note the length and the precision of the vectors that will be read, as far as they are known."""
        self.record_bytes = record_format.largest(dim, _MAX_FRAMES, precision)

    def full(self, number: int, keys: Sequence[bytes]) -> list[bytes]:
        """Return the servers' keys of records of one bucket, then those of their second parts if there may be some."""
        rest = [self.buckets.rest(number, key) for key in keys] if self.buckets.in_parts else []
        return [*(self.buckets.heads[number] + key for key in keys), *rest]

    def whole(self, values: Sequence[Any]) -> Sequence[Any]:
        """Return the records of the values under :meth:`full`.

        An error of one part is the record's; where there is no second part, what is there is kept.
        """
        if not self.buckets.in_parts:
            return values
        count = len(values) // 2
        size = record_format.size
        return [  # as parts.join, which would cost a query of a hundred records as much again
            first
            if rest is None or not isinstance(first, bytes) or len(first) >= size(first)
            else first + rest
            if isinstance(rest, bytes)
            else rest
            for first, rest in zip(values[:count], values[count:], strict=True)
        ]

    def is_torn(self, values: Sequence[Any]) -> bool:
        """Return whether a record of the values under :meth:`full` is damaged, as if its parts were of two versions."""
        return self.buckets.in_parts and any(
            isinstance(value, bytes) and record_format.version(memoryview(value)) is None
            for value in self.whole(values)
        )

    def heads(self, keys: Sequence[bytes]) -> list[memoryview]:
        """Return enough of each record to see whether it is live and its id; empty if it is gone."""
        calls = [
            self._call("GET", key)
            if record_format.hides_id(key)
            else self._call("GETRANGE", key, 0, record_format.HEADER_BYTES - 1)
            for key in keys
        ]
        return [memoryview(head or b"") for head in self.link.all(calls)]

    def starts(self, keys: Sequence[bytes]) -> list[bytes]:
        """Return the first ``HEADER_BYTES`` of each record; empty if it is gone."""
        return self.link.all([self._call("GETRANGE", key, 0, record_format.HEADER_BYTES - 1) for key in keys])

    def apply(self, edits: Sequence[Edit], stored: Sequence[bytes | None]) -> list[tuple[bool, bytes | None]]:
        """Apply edits, each atomically and independently; edits of one record in order.

        ``stored``: the values that are assumed to be stored; a wrong assumption is harmless. Returns for each edit
        whether it was applied, and the value before it.
        """
        there = list(stored)
        made = [False] * len(edits)
        waiting: Sequence[int] = range(len(edits))
        deadline = time.monotonic() + _CONTENTION_S
        while waiting:
            asked, values = [], []
            for number in waiting:
                value = edits[number].decide(there[number])
                if value is not None:
                    asked.append(number)
                    values.append(value)
            if time.monotonic() > deadline:
                raise StoreUnavailableError(f"{self.link.name}: other writers keep changing the same clips")
            waiting = []
            some = [(edits[number], there[number]) for number in asked]
            for number, (replaced, stored_now) in zip(asked, self._replace(some, values), strict=True):
                if replaced:
                    made[number] = True
                else:
                    there[number] = stored_now
                    waiting.append(number)
        return list(zip(made, there, strict=True))

    def remove(self, keys: Sequence[bytes]) -> None:
        """Remove records unconditionally."""
        buckets = self.buckets
        numbers = [buckets.of(key) for key in keys]
        self.link.all(
            [
                Call(buckets.slots[n], ("UNLINK", full))
                for n, key in zip(numbers, keys, strict=True)
                for full in self.full(n, [key])
            ]
        )

    def register(self, numbers: Iterable[int], models: Mapping[bytes, str]) -> None:
        """Register models in some buckets, before any of their records is written there.

        The format's key is written again if it is lost, because a server kept no data or failed soon after the first
        write. Raises :class:`StoreReplacedError` if another process has created the store anew meanwhile.
        """
        slots, keys = self.buckets.slots, self.buckets.models
        fields = self.buckets.own_fields | {prefix: model_id.encode() for prefix, model_id in models.items()}
        pairs = [part for field in fields.items() for part in field]
        # The format first: otherwise a bucket of another salt would be marked with this one.
        self.compare_format(*self.link.all([_ensure(self.buckets)]))
        self.link.all([Call(slots[n], ("EVAL", REGISTER, 1, keys(n), *pairs)) for n in numbers])

    def check_format(self) -> None:
        """Raise :class:`StoreReplacedError` if the store's buckets or salt are not these any more."""
        self.compare_format(self.link.one("GET", self.buckets.name))

    def why_not_validated(self) -> Exception | None:
        """Return why servers do not run the script for cached records, None if they do or refuse all other calls too.

        What they refuse together, as after a change of the password, is no matter of the script.
        """
        slot = self._format_slot
        script, other = self.link.run([Call(slot, ("EVAL_RO", "return 1", 0)), Call(slot, ("GET", self.buckets.name))])
        is_refused = isinstance(script, Exception) and meaning(script) is Meaning.FINAL
        return script if is_refused and not isinstance(other, Exception) else None

    def format_call(self) -> Call | None:
        """Return the call that reads the format, None if no server or connection is new since it was last compared."""
        return (
            None if self.link.generation == self._compared_at else Call(self._format_slot, ("GET", self.buckets.name))
        )

    def compare_format(self, stored: bytes | None, generation: int | None = None) -> None:
        """Raise :class:`StoreReplacedError` if this is another store's format; ``generation``: of the link before."""
        if stored not in {None, self.buckets.format}:
            raise StoreReplacedError(
                f"{self.link.name}: the store was created anew, as {_shown(stored)} instead of "
                f"{_shown(self.buckets.format)}"
            )
        if generation is not None:
            self._compared_at = generation

    def check_model(self, prefix: bytes, model_id: str, deadline: Deadline | None = None) -> None:
        """Raise :class:`StoreError` if the prefix belongs to another model.

        Asked is a bucket beside the format, so that opening the store depends on one node only.
        """
        place, slots = self.link.place, self.buckets.slots
        beside = place(self._format_slot)
        number = next((n for n, slot in enumerate(slots) if place(slot) is beside), 0)
        (known,) = self.link.all([Call(slots[number], ("HGET", self.buckets.models(number), prefix))], deadline)
        if known not in {None, model_id.encode()}:
            raise StoreError(f"{self.link.name}: model {model_id!r} has the same hash as {known.decode()!r}")

    def forget(self, prefix: bytes) -> None:
        """Unregister a model in all buckets."""
        buckets = self.buckets
        self.link.all([Call(slot, ("HDEL", buckets.models(n), prefix)) for n, slot in enumerate(buckets.slots)])

    def prefixes(self, number: int) -> set[bytes]:
        """Return the prefixes of the models that have written to a bucket."""
        return set(self.link.one("HKEYS", self.buckets.models(number))) - _NO_MODELS

    def models(self) -> dict[bytes, str]:
        """Return the ids of all models by their prefixes."""
        slots, key = self.buckets.slots, self.buckets.models
        calls = [Call(slots[n], (command, key(n))) for n in range(self.buckets.count) for command in ("HKEYS", "HVALS")]
        replies = self.link.all(calls)
        return {
            prefix: name.decode()
            for prefixes, names in zip(replies[::2], replies[1::2], strict=True)
            for prefix, name in zip(prefixes, names, strict=False)  # a model may be added between the two commands
            if prefix not in _NO_MODELS
        }

    def scan(self, prefix: bytes = b"") -> Iterator[list[bytes]]:
        """Yield the keys of records that begin with ``prefix``, some hundred at once; a key may be repeated."""
        for node in self.link.primaries():
            cursor, keys = self.scan_node(node, 0, prefix)
            yield keys
            while cursor:
                cursor, keys = self.scan_node(node, cursor, prefix)
                yield keys

    def scan_node(self, node: Node, cursor: int, prefix: bytes = b"") -> tuple[int, list[bytes]]:
        """Return some keys of one server, and its next cursor, 0 at the end."""
        pattern = b"%s{*}%s*" % (self.buckets.name, re.sub(rb"([\[\]*?\\^-])", rb"\\\1", prefix))
        after, found = self.link.told(node, "SCAN", cursor, "MATCH", pattern, "COUNT", _SCAN_KEYS)
        return int(after), [key for full in found if (key := self.buckets.record_key(full)) is not None]

    def bytes_used(self) -> int:
        """Return the memory used by the servers that have records, including other data."""
        told = (info.parsed(self.link.told(node, "INFO", "memory")) for node in self.link.primaries())
        return sum(int(each["used_memory"]) for each in told)

    def settle(self, numbers: Iterable[int]) -> None:
        """Wait until the writes to some buckets are on as many replicas as :class:`StoreOptions` requires.

        WAIT returns how many replicas have one connection's writes. Replicas apply all writes in one order, so a final
        write on our connection covers all earlier writes of any connection.
        """
        if not self._replicas:
            return
        by_node = {self.link.place(self.buckets.slots[number]): number for number in numbers}
        calls = []
        for number in by_node.values():
            slot, key = self.buckets.slots[number], self.buckets.heads[number] + _LAST_WRITE
            calls += [
                Call(slot, ("EVAL", TOUCH, 1, key, time.time_ns())),
                Call(slot, ("WAIT", self._replicas, self._wait_ms)),
            ]
        replies = self.link.run(calls)
        for reply in replies:
            if isinstance(reply, Exception):
                raise self.link.fault(reply)
        fewest = min(replies[1::2], default=self._replicas)
        if fewest < self._replicas:
            raise StoreUnavailableError(
                f"{self.link.name}: {fewest} of {self._replicas} required replicas have the last write"
            )

    def _call(self, command: str, key: bytes, *more: int) -> Call:
        number, size = self.buckets.of(key), self.record_bytes if command == "GET" else 0
        return Call(self.buckets.slots[number], (command, self.buckets.heads[number] + key, *more), size)

    def _replace(
        self, edits: Sequence[tuple[Edit, bytes | None]], values: Sequence[bytes]
    ) -> list[tuple[bool, bytes | None]]:
        """Replace the records of ``edits``, given with what is assumed to be stored, by ``values``.

        Returns for each whether it was replaced, and what is stored otherwise.
        """
        buckets = self.buckets
        calls, whole = [], []
        for (edit, before), value in zip(edits, values, strict=True):
            number = buckets.of(edit.key)
            full = buckets.heads[number] + edit.key
            head = (before or b"")[: record_format.HEADER_BYTES]
            is_live = record_format.is_live(memoryview(value))
            script = REPLACE if is_live else BURY
            whole.append(Call(buckets.slots[number], ("EVAL", script, 1, full, head, value, edit.lives_ms)))
            if not buckets.in_parts:
                continue
            both = 2, full, buckets.rest(number, edit.key), head
            command: tuple[Any, ...] = ("EVAL", BURY_PARTS, *both, value, edit.lives_ms)
            if is_live:
                command = ("EVAL", REPLACE_PARTS, *both, *parts.split(value))
            calls.append(Call(buckets.slots[number], command))
        if not buckets.in_parts:
            return [(reply == REPLACED, reply) for reply in self.link.all(whole)]
        found: list[tuple[bool, bytes | None]] = []
        for (edit, _), alone, reply in zip(edits, whole, self.link.run(calls), strict=True):
            if isinstance(reply, Exception):
                # A migrating slot admits one key only, and a record may always be whole.
                is_replaced = self.link.all([alone]) == [REPLACED]
                found.append((is_replaced, None if is_replaced else self.get_apart(edit.key)))
            else:
                found.append((True, None) if reply == REPLACED else (False, _joined(reply)))
        return found


def by_bucket(buckets: Buckets, keys: Iterable[bytes], record_bytes: int) -> list[tuple[int, list[bytes]]]:
    """Group keys by bucket, no more together than one command may ask for; a bucket may be there repeatedly."""
    most = max(1, _CALL_BYTES // record_bytes)
    found: dict[int, list[bytes]] = {}
    for key in keys:
        found.setdefault(buckets.of(key), []).append(key)
    return [(number, some[at : at + most]) for number, some in found.items() for at in range(0, len(some), most)]


def _shown(stored: bytes | None) -> str:
    """Return a format without its salt, which is a secret."""
    return repr((stored or b"").decode(errors="replace").partition(" salt ")[0][:100])


def _ensure(buckets: Buckets) -> Call:
    return Call(key_slot(buckets.name), ("EVAL", ENSURE, 1, buckets.name, buckets.format))


def _joined(both: Sequence[bytes | None]) -> bytes | None:
    first, rest = both
    return None if first is None else parts.join(first, rest)


def _new(link: Link, address: Address) -> Buckets:
    """Return a new store: the first process determines its number of buckets, its salt, and whether it is in parts."""
    nodes = link.primaries()
    (said,) = link.ask(nodes[:1], ("INFO", "memory"))
    if isinstance(said, Exception) and not isinstance(said, NoPermissionError):
        raise link.fault(said)
    in_parts = parts.is_rounded(info.parsed(said).get("mem_allocator", ""))
    count = address.buckets or max(DEFAULT_BUCKETS, BUCKETS_PER_NODE * len(nodes))
    return Buckets(address.name, count, secrets.randbits(64), version=VERSION, in_parts=in_parts)


def _lost(link: Link, address: Address) -> Buckets | None:
    """Return the store whose format's key is lost; None if it has no bucket with a model.

    A cluster can lose that key and keep records, on other nodes. They would not be found with another format.
    """
    calls = [Call(slot, ("HGET", key, FORMAT_FIELD)) for slot, key in common_models(address.name)]
    if formats := [stored for stored in link.all(calls) if stored is not None]:
        return buckets_of(formats[0], address)
    buckets = Buckets(address.name, address.buckets or DEFAULT_BUCKETS)
    calls = [
        Call(slot, (*command, buckets.models(number), *more))
        for number, slot in enumerate(buckets.slots)
        for command, more in ((("HGET",), (SALT_FIELD,)), (("HKEYS",), ()))
    ]
    replies = link.all(calls)
    if salts := [salt for salt in replies[::2] if salt is not None]:
        return Buckets(address.name, buckets.count, int(salts[0], 16))
    return buckets if any(replies[1::2]) else None
