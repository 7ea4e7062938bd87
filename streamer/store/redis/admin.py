"""Operations on a whole remote store.

A server's SCAN returns every key that exists from its beginning to its end at least once, but only for that server, for
its own cursor and while it runs: a replica that takes over has its keys in another order, and a slot may migrate from a
server that has yet to be scanned to one that has been. So a scan notes which processes serve which slots, at which
epochs. If this has changed when it ends, if a slot was migrating at either moment, or if it differs from the state in a
cursor, the scan starts over, and it ends after a round without any change.
"""

from __future__ import annotations

import time
from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple

import orjson
import structlog
from redis.crc import REDIS_CLUSTER_HASH_SLOTS as SLOTS
from xxhash import xxh3_64_hexdigest

from streamer.store import record_format
from streamer.store.admin import PAGE_BYTES, PAGE_RECORDS, Merged, Page, Raw
from streamer.store.options import StoreOptions
from streamer.store.protocol import StoreError, StoreUnavailableError
from streamer.store.redis import info
from streamer.store.redis.address import Address
from streamer.store.redis.deadline import Deadline
from streamer.store.redis.keyspace import Edit, Space
from streamer.store.redis.link import Link
from streamer.store.redis.servers import ask, refuse_eviction

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from pathlib import Path

    from streamer.store.redis.nodes import Node

log = structlog.get_logger()

_FIRST_FETCH = 32
"""Number of records that are fetched at once while their sizes are unknown."""
_PATIENCE_S = 10.0
"""The shortest time limit for an exchange with the servers."""
_ROUND_PAUSE_S = 1.0
"""Pause before a scan starts over: a migration of slots takes minutes."""


class _Topology(NamedTuple):
    """The cluster's topology: ``mark`` stays equal, and the order of ``nodes``, only while nothing changes."""

    mark: str
    is_settled: bool
    nodes: list[Node]


class RedisAdmin:
    """:class:`~streamer.store.admin.StoreAdmin` of the store at a URL of :mod:`streamer.store.redis.address`.

    A tombstone that is put has the lifetime of a new one.
    """

    def __init__(
        self, url: str, *, create: bool = False, options: StoreOptions | None = None, page_records: int = PAGE_RECORDS
    ) -> None:
        self._options = options or StoreOptions()
        self._address = Address.parse(url)
        self._name = self._address.public
        self._page_records = page_records
        # Pages are megabytes, and no event waits for them.
        options = replace(self._options, timeout_s=max(self._options.timeout_s, _PATIENCE_S))
        link = Link(self._address, options)
        self._space: Space | None = None
        try:
            self._space = Space.open(link, self._address, options, create=create, deadline=Deadline.after(_PATIENCE_S))
        finally:
            if self._space is None:
                link.close()
        if self._space is None:
            raise StoreError(f"{self._name}: no such store")
        if create:
            servers = ask(link, Deadline.after(options.timeout_s), is_cluster=self._address.is_cluster)
            refuse_eviction(self._name, servers)
        # Separated by a character that no store's name contains.
        self._note_key = f"{self._address.name}/note".encode()

    @property
    def identity(self) -> str:
        """As :attr:`StoreAdmin.identity <streamer.store.admin.StoreAdmin.identity>`: also changed by a restart."""
        link = self._opened().link
        if self._address.is_cluster:
            servers = ",".join(sorted(fields[0] for fields in _nodes(link, link.primaries(fresh=True)[0])))
        else:
            servers = _process(link, link.primaries()[0])
        return f"redis:{_hash(servers)}/{self._address.db}/{self._address.name}"

    def models(self) -> dict[bytes, str]:
        """Return the models' ids by the prefix of their keys."""
        return self._opened().models()

    def register(self, models: Mapping[bytes, str]) -> None:
        """Register models. Raises :class:`StoreError` if a prefix belongs to another model."""
        space = self._opened()
        for prefix, model_id in models.items():
            space.check_model(prefix, model_id)
        space.register(range(space.buckets.count), models)

    def forget(self, prefix: bytes) -> bool:
        """Unregister a model; returns False if it still has records, and then keeps it.

        A service registers its model with every write, so a write right afterwards registers it again.
        """
        space = self._opened()
        name = space.models().get(prefix)
        space.forget(prefix)
        if name is not None and next(self.scan(prefix=prefix, heads=True), None) is not None:
            self.register({prefix: name})
            return False
        return True

    def count(self) -> int:
        """Return the servers' number of keys, including keys of other applications."""
        link = self._opened().link
        return sum(link.told(node, "DBSIZE") for node in link.primaries(fresh=True))

    def scan(self, cursor: str = "", *, prefix: bytes = b"", heads: bool = False) -> Iterator[Page]:
        """As :meth:`StoreAdmin.scan <streamer.store.admin.StoreAdmin.scan>`; a record may be returned twice.

        A cursor consists of the topology's mark, the number of the current server, and that server's own cursor.
        """
        mark, number, at = self._parsed(cursor)
        topology = self._topology()
        restarted = bool(cursor) and mark != topology.mark
        if restarted:
            number = at = 0
        while True:
            for page in self._round(topology, number, at, prefix, heads):
                yield page._replace(restarted=restarted)
                restarted = False
            now = self._topology()
            if now.mark == topology.mark and now.is_settled:
                return
            log.info("servers or slots have changed, scan starts over", store=self._name)
            time.sleep(_ROUND_PAUSE_S)
            topology, number, at, restarted = self._topology(), 0, 0, True

    def get(self, keys: Sequence[bytes]) -> list[bytes | None]:
        """Return the records under ``keys`` unchanged, None for an absent one."""
        return self._opened().get(keys)

    def put(self, records: Sequence[Raw], note: Callable[[list[Merged]], bytes] | None = None) -> list[Merged]:
        """As :meth:`StoreAdmin.put <streamer.store.admin.StoreAdmin.put>`, each record separately, the note last."""
        space = self._opened()
        edits = []
        for key, value in records:
            version = record_format.checked(key, memoryview(value))
            lives_ms = 0 if version.live else int(1000 * self._options.tombstone_s)
            edits.append(Edit(key, _merge(key, value, version), lives_ms))
        # Most records are new to the store: existing ones are read only if this assumption fails.
        made = space.apply(edits, [None] * len(edits))
        space.settle({space.buckets.of(edit.key) for edit in edits})
        outcomes = [
            Merged.WRITTEN if written else Merged.PRESENT if there == raw.value else Merged.KEPT
            for raw, (written, there) in zip(records, made, strict=True)
        ]
        if note is not None:
            space.link.one("SET", self._note_key, note(outcomes))
        return outcomes

    def remove(self, keys: Sequence[bytes]) -> None:
        """Remove records durably, whatever their versions, without tombstones."""
        space = self._opened()
        space.remove(keys)
        space.settle({space.buckets.of(key) for key in keys})

    def note(self) -> bytes | None:
        """Return the progress note of an unfinished copy, None if there is none."""
        found = self._opened().link.one("GET", self._note_key)
        return None if found is None else bytes(found)

    def clear_note(self) -> None:
        """Remove :meth:`note`."""
        self._opened().link.one("DEL", self._note_key)

    def compact(self, to: Path | None) -> tuple[int, int]:  # noqa: ARG002 - as the protocol has it
        """Raise StoreError: the servers free memory themselves."""
        raise StoreError(
            f"{self._name}: servers of the Redis protocol free memory by themselves (activedefrag in Redis and "
            "Valkey), servers on disk have their own command; this command cannot do it"
        )

    def close(self) -> None:
        """Close all connections."""
        if self._space is not None:
            self._space.link.close()
            self._space = None

    def _opened(self) -> Space:
        if self._space is None:
            raise StoreError(f"{self._name}: the store is closed")
        return self._space

    def _round(self, topology: _Topology, number: int, at: int, prefix: bytes, heads: bool) -> Iterator[Page]:
        """Scan the servers from number ``number`` on, whose cursor is ``at``."""
        space = self._opened()
        at_once = min(_FIRST_FETCH, self._page_records)
        for each in range(number, len(topology.nodes)):
            ended = False
            while not ended:
                after, keys = space.scan_node(topology.nodes[each], at, prefix)
                ended = not after
                here = orjson.dumps([topology.mark, each, str(at)]).decode()
                behind = orjson.dumps([topology.mark, each + ended, str(after)]).decode()
                while keys:
                    some, keys = keys[:at_once], keys[at_once:]
                    page = Page(self._fetch(some, heads), here if keys else behind)
                    size = sum(len(raw.value) for raw in page.records) // max(len(page.records), 1)
                    at_once = max(1, min(self._page_records, PAGE_BYTES // max(size, 1)))
                    yield page
                at = after

    def _fetch(self, keys: list[bytes], heads: bool) -> list[Raw]:
        space = self._opened()
        found: Sequence[bytes | None] = space.starts(keys) if heads else space.get(keys)
        return [Raw(key, value) for key, value in zip(keys, found, strict=True) if value]

    def _parsed(self, cursor: str) -> tuple[str, int, int]:
        if not cursor:
            return "", 0, 0
        try:
            mark, number, at = orjson.loads(cursor)
            return str(mark), int(number), int(at)
        except (TypeError, ValueError):
            raise StoreError(
                f"{self._name}: {cursor[:100]!r} is not a cursor of a store of the Redis protocol"
            ) from None

    def _topology(self) -> _Topology:
        link = self._opened().link
        served: list[tuple[str, Node]] = []
        is_settled = True
        slots = 0
        for node in link.primaries(fresh=True):
            process = _process(link, node)
            if self._address.is_cluster:
                own = _Own.of(link, node)
                process += f" {own.epoch} {own.served}"
                slots += own.slots
                is_settled = is_settled and own.is_settled
            served.append((process, node))
        if self._address.is_cluster and slots != SLOTS:
            raise StoreUnavailableError(f"{self._name}: only {slots} of {SLOTS} slots are served")
        served.sort(key=lambda each: each[0])
        return _Topology(_hash(";".join(process for process, _ in served)), is_settled, [node for _, node in served])


class _Own(NamedTuple):
    """A node's own entry of CLUSTER NODES; ``served``: its ranges of slots."""

    epoch: str
    served: str
    slots: int
    is_settled: bool

    @classmethod
    def of(cls, link: Link, node: Node) -> _Own:
        (fields,) = (fields for fields in _nodes(link, node) if "myself" in fields[2].split(","))
        moving = [
            each for each in fields[8:] if each.startswith("[")
        ]  # [slot->-node]: migrating, [slot-<-node]: importing
        ranges = [each.split("-") for each in fields[8:] if not each.startswith("[")]
        slots = sum(int(each[-1]) - int(each[0]) + 1 for each in ranges)
        return cls(fields[6], " ".join(fields[8:]), slots, not moving and "master" in fields[2].split(","))


def _process(link: Link, node: Node) -> str:
    """Return what identifies a server's process."""
    return info.parsed(link.told(node, "INFO", "server"))["run_id"]


def _nodes(link: Link, node: Node) -> list[list[str]]:
    """Return the fields of CLUSTER NODES: id, address, flags, primary, two times, epoch, link, slots."""
    answer: bytes = link.told(node, "CLUSTER", "NODES")
    return [line.split(" ") for line in answer.decode().splitlines()]


def _hash(text: str) -> str:
    return xxh3_64_hexdigest(text.encode())


def _merge(key: bytes, value: bytes, version: record_format.Version) -> Callable[[bytes | None], bytes | None]:
    def decide(there: bytes | None) -> bytes | None:
        return (
            value if there != value and record_format.outranks(version, record_format.version_at(key, there)) else None
        )

    return decide
