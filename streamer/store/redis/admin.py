"""An operator's view of a store beyond one host.

Servers promise of a scan that what is there from its beginning to its end comes at least once, but each server for
itself, for its own cursor, and as long as it runs: another one that takes its place has its keys in another order,
and a slot that moves may do so from a server that has yet to be scanned to one that has been. So a scan notes which
processes serve which slots, at which epochs. Where that has changed when it ends, or a slot was on the move at
either moment, or it is not what a cursor was made under, the scan begins anew, and ends after a round in which
nothing has changed.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, NamedTuple

import orjson
import structlog
from redis.crc import REDIS_CLUSTER_HASH_SLOTS as SLOTS
from xxhash import xxh3_64_hexdigest

from streamer.store import record_format
from streamer.store.admin import PAGE_BYTES, PAGE_RECORDS, Merged, Page, Raw
from streamer.store.options import StoreOptions
from streamer.store.protocol import StoreError, StoreUnavailableError
from streamer.store.redis.address import Address
from streamer.store.redis.keyspace import Edit, Space

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from pathlib import Path

    from redis import Redis

log = structlog.get_logger()

_FIRST_FETCH = 32
"""Records that are fetched at once before it is known how large they are."""
_ROUND_PAUSE_S = 1.0
"""Before a scan begins anew: slots are moved for minutes."""


class _Topology(NamedTuple):
    """Who serves what: ``mark`` is the same only while nothing has changed, ``nodes`` are in one order then."""

    mark: str
    is_settled: bool
    nodes: list[Redis]


class RedisAdmin:
    """:class:`~streamer.store.admin.StoreAdmin` of the store at a URL of :mod:`streamer.store.redis.address`.

    A tombstone that is put lives as long as a new one.
    """

    def __init__(
        self, url: str, *, create: bool = False, options: StoreOptions | None = None, page_records: int = PAGE_RECORDS
    ) -> None:
        self._options = options or StoreOptions()
        self._address = Address.parse(url)
        self._name = self._address.public
        self._page_records = page_records
        self._space: Space | None = Space.open(self._address, self._options, create=create)
        if self._space is None:
            raise StoreError(f"{self._name}: there is no store")
        # Behind what no store's name has in it.
        self._note_key = f"{self._address.name}/note".encode()

    @property
    def identity(self) -> str:
        """As :attr:`StoreAdmin.identity <streamer.store.admin.StoreAdmin.identity>`: changed by a restart, too."""
        link = self._opened().link
        with link.faults():
            if self._address.is_cluster:
                servers = ",".join(sorted(fields[0] for fields in _nodes(link.nodes(fresh=True)[0])))
            else:
                servers = str(link.nodes()[0].info("server")["run_id"])
        return f"redis:{_hash(servers)}/{self._address.db}/{self._address.name}"

    def models(self) -> dict[bytes, str]:
        """Return the models' ids by the prefix of their keys."""
        return self._opened().models()

    def register(self, models: Mapping[bytes, str]) -> None:
        """Make models known. Raises :class:`StoreError` where a prefix belongs to another model."""
        space = self._opened()
        for prefix, model_id in models.items():
            space.check_model(prefix, model_id)
        space.register(range(space.buckets.count), models)

    def forget(self, prefix: bytes) -> bool:
        """Take a model's name out; False where there still are records of it, which keep it.

        A service makes its model known with every write, so one that comes right afterwards has its name, too.
        """
        space = self._opened()
        name = space.models().get(prefix)
        space.forget(prefix)
        if name is not None and next(self.scan(prefix=prefix, heads=True), None) is not None:
            self.register({prefix: name})
            return False
        return True

    def count(self) -> int:
        """Return how many keys the servers have, those of others included."""
        link = self._opened().link
        with link.faults():
            return sum(int(node.dbsize()) for node in link.nodes(fresh=True))

    def scan(self, cursor: str = "", *, prefix: bytes = b"", heads: bool = False) -> Iterator[Page]:
        """As :meth:`StoreAdmin.scan <streamer.store.admin.StoreAdmin.scan>`; a record may come twice.

        A cursor is what the servers were, which of them is being scanned, and that one's own cursor.
        """
        mark, number, at = self._parsed(cursor)
        topology = self._topology()
        anew = bool(cursor) and mark != topology.mark
        if anew:
            number = at = 0
        while True:
            for page in self._round(topology, number, at, prefix, heads):
                yield page._replace(anew=anew)
                anew = False
            now = self._topology()
            if now.mark == topology.mark and now.is_settled:
                return
            log.info("servers or slots have moved, the scan begins anew", store=self._name)
            time.sleep(_ROUND_PAUSE_S)
            topology, number, at, anew = self._topology(), 0, 0, True

    def get(self, keys: Sequence[bytes]) -> list[bytes | None]:
        """Return the records under ``keys`` as they are, None where nothing is."""
        return self._opened().get(keys)

    def put(self, records: Sequence[Raw], note: Callable[[list[Merged]], bytes] | None = None) -> list[Merged]:
        """As :meth:`StoreAdmin.put <streamer.store.admin.StoreAdmin.put>`, each record on its own, the note last."""
        space = self._opened()
        edits = []
        for key, value in records:
            version = record_format.checked(key, memoryview(value))
            lives_ms = 0 if version.live else int(1000 * self._options.tombstone_s)
            edits.append(Edit(key, _merge(key, value, version), lives_ms))
        # Most are new to the store: what it has is asked for where this turns out to be wrong.
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
        """Return what a copy that is under way has left here."""
        found = self._opened().link.one("GET", self._note_key)
        return None if found is None else bytes(found)

    def clear_note(self) -> None:
        """Remove :meth:`note`."""
        self._opened().link.one("DEL", self._note_key)

    def compact(self, to: Path | None) -> tuple[int, int]:  # noqa: ARG002 - as the protocol has it
        """Refuse: the servers see to that."""
        raise StoreError(
            f"{self._name}: servers of the Redis protocol give memory back by themselves (activedefrag in Redis and "
            "Valkey), those on disks have a command of their own; there is nothing to do from here"
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
        """Go through the servers from the one at ``number`` on, of which ``at`` is the cursor."""
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
            raise StoreError(f"{self._name}: {cursor[:100]!r} is no cursor of a store of the Redis protocol") from None

    def _topology(self) -> _Topology:
        link = self._opened().link
        served: list[tuple[str, Redis]] = []
        is_settled = True
        slots = 0
        with link.faults():
            for node in link.nodes(fresh=True):
                process = str(node.info("server")["run_id"])
                if self._address.is_cluster:
                    own = _Own.of(node)
                    process += f" {own.epoch} {own.served}"
                    slots += own.slots
                    is_settled = is_settled and own.is_settled
                served.append((process, node))
        if self._address.is_cluster and slots != SLOTS:
            raise StoreUnavailableError(f"{self._name}: {slots} of {SLOTS} slots are served")
        served.sort(key=lambda each: each[0])
        return _Topology(_hash(";".join(process for process, _ in served)), is_settled, [node for _, node in served])


class _Own(NamedTuple):
    """What a node of a cluster says of itself; ``served`` are its ranges of slots."""

    epoch: str
    served: str
    slots: int
    is_settled: bool

    @classmethod
    def of(cls, node: Redis) -> _Own:
        (fields,) = (fields for fields in _nodes(node) if "myself" in fields[2].split(","))
        moving = [each for each in fields[8:] if each.startswith("[")]  # [slot->-node] goes, [slot-<-node] comes
        ranges = [each.split("-") for each in fields[8:] if not each.startswith("[")]
        slots = sum(int(each[-1]) - int(each[0]) + 1 for each in ranges)
        return cls(fields[6], " ".join(fields[8:]), slots, not moving and "master" in fields[2].split(","))


def _nodes(node: Redis) -> list[list[str]]:
    """Return the fields of CLUSTER NODES: id, address, flags, primary, two times, epoch, link, slots."""
    answer: bytes = node.execute_command("CLUSTER", "NODES")  # type: ignore[no-untyped-call]
    return [line.split(" ") for line in answer.decode().splitlines()]


def _hash(text: str) -> str:
    return xxh3_64_hexdigest(text.encode())


def _merge(key: bytes, value: bytes, version: record_format.Version) -> Callable[[bytes | None], bytes | None]:
    def decide(there: bytes | None) -> bytes | None:
        return (
            value if there != value and record_format.outranks(version, record_format.version_at(key, there)) else None
        )

    return decide
