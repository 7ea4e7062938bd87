"""A small model of a Kafka cluster in memory: logs, groups, transactions, time. :mod:`tests.support.fake_clients`
are the clients that talk to it.

It does what the guarantees of the product rest on, and nothing else:

- A partition is a log of entries. Records of an open transaction hold the last stable offset back; markers take an
  offset of their own. Retention, compaction and an unclean election take entries away.
- A transactional id has an epoch, which each init raises: whoever comes with an older one is fenced. What its
  predecessor left open is aborted. An id may be forgotten.
- A group's commits carry metadata. Offsets that belong to an open transaction are pending, and whoever asks for the
  group's offsets is kept waiting. Of two commits that which was sent later counts. A commit by a member that the group
  does not know is refused; one without a member is accepted while the group is empty.
- Members take over a partition only when the one before has let go of it or was expelled.

Nothing happens by itself: time passes where somebody waits, and a member acts when it polls.
"""

from __future__ import annotations

import itertools
from bisect import bisect_left
from dataclasses import dataclass, field
from enum import Enum, auto
from typing import TYPE_CHECKING, TypeAlias

from confluent_kafka import KafkaError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

Place: TypeAlias = tuple[str, int]
Headers: TypeAlias = tuple[tuple[str, bytes | None], ...]
Produced: TypeAlias = tuple[bytes | None, bytes | None, Headers, float | None]
"""What a producer sends: key, value, headers, and the time in seconds where it sets one."""

_TRANSACTION_TIMEOUT_S = 60.0


class RefusedError(Exception):
    """A broker's error code in answer to a request; clients make a :class:`KafkaException` of it."""

    def __init__(self, code: int) -> None:
        super().__init__(KafkaError(code).str())
        self.code = code


class Clock:
    """In the place of the module ``time``: time passes only where somebody waits."""

    def __init__(self, *, wall: float = 1_790_000_000.0) -> None:
        self.now = 1_000.0
        self._offset = wall - self.now

    def monotonic(self) -> float:
        return self.now

    def time(self) -> float:
        return self.now + self._offset

    def sleep(self, seconds: float) -> None:
        self.now += seconds


class Event:
    """In the place of :class:`threading.Event`, for one thread: a wait for what is not set lets its time pass."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._is_set = False

    def set(self) -> None:
        self._is_set = True

    def clear(self) -> None:
        self._is_set = False

    def is_set(self) -> bool:
        return self._is_set

    def wait(self, timeout: float) -> bool:
        if not self._is_set:
            self._clock.sleep(timeout)
        return self._is_set


class Outcome(Enum):
    """What came of a transaction."""

    OPEN = auto()
    COMMITTED = auto()
    ABORTED = auto()


@dataclass(frozen=True)
class Committed:
    """A group's commit of one partition; ``sequence`` tells which of two was sent later."""

    offset: int
    metadata: str = ""
    sequence: int = 0
    leader_epoch: int | None = None


@dataclass(eq=False)
class Transaction:
    """One transaction of a transactional id's epoch."""

    transactional_id: str
    epoch: int
    began: float
    outcome: Outcome = Outcome.OPEN
    places: set[Place] = field(default_factory=set)
    offsets: dict[tuple[str, Place], Committed] = field(default_factory=dict)


@dataclass(frozen=True)
class Entry:
    """One offset of a log: a record, or the marker that ends a transaction."""

    offset: int
    key: bytes | None
    value: bytes | None
    headers: Headers
    at: float
    transaction: Transaction | None
    is_marker: bool = False
    leader_epoch: int = 0

    @property
    def size(self) -> int:
        return len(self.key or b"") + len(self.value or b"") + sum(len(n) + len(v or b"") for n, v in self.headers)


class Log:
    """One partition."""

    def __init__(self) -> None:
        self.entries: list[Entry] = []
        self.start = 0
        self.end = 0
        """The high watermark."""
        self.replicas = self.in_sync = 1
        """How many there are, and how many of them are in sync; 0: none leads the partition."""
        self.epochs = [(0, 0)]
        """The leaders' epochs, and the offset at which each begins."""
        self._first: dict[Transaction, int] = {}
        """Where each transaction begins that was open when it was looked last."""

    @property
    def stable_end(self) -> int:
        """The last stable offset: that of the first record of an open transaction, else the end."""
        undecided = (offset for each, offset in self._first.items() if each.outcome is Outcome.OPEN)
        return min(undecided, default=self.end)

    def append(
        self,
        key: bytes | None,
        value: bytes | None,
        headers: Headers,
        at: float,
        transaction: Transaction | None = None,
        *,
        is_marker: bool = False,
    ) -> int:
        entry = Entry(self.end, key, value, headers, at, transaction, is_marker, self.leader_epoch)
        if is_marker and transaction is not None:
            self._first.pop(transaction, None)
        elif transaction is not None:
            self._first.setdefault(transaction, entry.offset)
        self.entries.append(entry)
        self.end += 1
        return entry.offset

    def readable(self, start: int = 0) -> Iterator[Entry]:
        """Go through what a read_committed consumer is shown from an offset on."""
        end = self.stable_end
        for number in range(bisect_left(self.entries, start, key=lambda each: each.offset), len(self.entries)):
            each = self.entries[number]
            if each.offset >= end:
                return
            if not each.is_marker and (each.transaction is None or each.transaction.outcome is Outcome.COMMITTED):
                yield each

    @property
    def leader_epoch(self) -> int:
        return self.epochs[-1][0]

    def end_of_epoch(self, epoch: int) -> int:
        """Answer OffsetsForLeaderEpoch: where the records of an epoch, and of those before it, end."""
        return next((start for later, start in self.epochs if later > epoch), self.end)

    def delete_before(self, offset: int) -> None:
        """Retention."""
        self.start = max(self.start, offset)
        self.entries = [each for each in self.entries if each.offset >= self.start]

    def compact(self, offsets: Iterable[int]) -> None:
        """Take records out of the middle."""
        gone = set(offsets)
        self.entries = [each for each in self.entries if each.offset not in gone]

    def elect(self) -> None:
        """Let a replica that has everything lead, which begins another epoch."""
        self.epochs.append((self.leader_epoch + 1, self.end))

    def truncate(self, end: int) -> None:
        """Lose the end, as by an election of a replica that was behind, which begins another epoch."""
        self.entries = [each for each in self.entries if each.offset < end]
        self.end = min(self.end, end)
        self.start = min(self.start, self.end)
        self._first = {each: offset for each, offset in self._first.items() if offset < self.end}
        kept = [each for each in self.epochs if each[1] < self.end]
        self.epochs = [*kept, (self.leader_epoch + 1, self.end)]


class Topic:
    """A topic; one that is made anew has another id."""

    def __init__(self, topic_id: str, partitions: int) -> None:
        self.topic_id = topic_id
        self.logs = [Log() for _ in range(partitions)]
        self.max_message_bytes = 1 << 30
        self.accepts_since = float("-inf")
        """The oldest time, in seconds, that a producer may set."""
        self.config = {
            "cleanup.policy": "delete",
            "retention.ms": "-1",
            "message.timestamp.type": "CreateTime",
            "min.insync.replicas": "1",
        }


@dataclass(eq=False)
class Member:
    """A member of a group, and what it owns until it lets go or is expelled."""

    name: str
    topics: list[str]
    epoch: int = 0
    owned: set[Place] = field(default_factory=set)


class Group:
    """A consumer group."""

    def __init__(self) -> None:
        self.members: dict[str, Member] = {}
        self.committed: dict[Place, Committed] = {}
        self.wanted: dict[Place, str] | None = None
        """Which member is to own which partition, where a test says so; else all in turns."""

    def target(self, member: Member, places: Iterable[Place]) -> set[Place]:
        """Return what a member is to own."""
        if self.wanted is not None:
            return {place for place, name in self.wanted.items() if name == member.name}
        names = sorted(self.members)
        mine = sorted(place for place in places if place[0] in member.topics)
        return {place for number, place in enumerate(mine) if names[number % len(names)] == member.name}


class Cluster:
    """All brokers as one. ``down`` is that none of them answers."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self.topics: dict[str, Topic] = {}
        self.groups: dict[str, Group] = {}
        self.epochs: dict[str, int] = {}
        self.transactions: list[Transaction] = []
        self.denied: set[tuple[str, str]] = set()
        """Kind (topic, group, transactional-id) and name of what may not be used; for topics: not written to."""
        self.down = False
        self.max_metadata_bytes = 4_096
        self.protocols = {"consumer", "classic"}
        """The group protocols that the brokers offer."""
        self._ids = itertools.count(1)
        self._sequence = itertools.count(1)

    # -- topics --------------------------------------------------------------------------------------------

    def create_topic(self, name: str, partitions: int = 1) -> Topic:
        """Make a topic, with a new id where there was one of that name."""
        self.topics[name] = Topic(f"id{next(self._ids)}", partitions)
        return self.topics[name]

    def recreate_topic(self, name: str, partitions: int | None = None) -> Topic:
        """Delete a topic, which takes the groups' commits of it along, and make it anew."""
        for group in self.groups.values():
            group.committed = {place: each for place, each in group.committed.items() if place[0] != name}
        return self.create_topic(name, len(self.topics[name].logs) if partitions is None else partitions)

    def places(self) -> list[Place]:
        return [(name, number) for name, topic in self.topics.items() for number in range(len(topic.logs))]

    def log(self, topic: str, partition: int = 0) -> Log:
        return self.topics[topic].logs[partition]

    def publish(self, topic: str, *values: bytes, partition: int = 0, headers: Headers = ()) -> list[int]:
        """Append records outside any transaction; each one's key is its value."""
        log = self.log(topic, partition)
        return [log.append(value, value, headers, self.clock.time()) for value in values]

    def read(self, topic: str) -> list[Entry]:
        """Return what a read_committed consumer finds in a topic."""
        return [entry for log in self.topics[topic].logs for entry in log.readable()]

    # -- transactions --------------------------------------------------------------------------------------

    def init_transactions(self, transactional_id: str) -> int:
        """Raise the epoch, and abort what is left open. Returns the epoch."""
        self._check("transactional-id", transactional_id, KafkaError.TRANSACTIONAL_ID_AUTHORIZATION_FAILED)
        self._abort_open(transactional_id)
        self.epochs[transactional_id] = self.epochs.get(transactional_id, -1) + 1
        return self.epochs[transactional_id]

    def append(self, transaction: Transaction | None, place: Place, records: list[Produced]) -> list[int]:
        """Append a batch to a partition. Raises :class:`RefusedError`, for all of it."""
        name, partition = place
        if name not in self.topics or partition >= len(self.topics[name].logs):
            raise RefusedError(KafkaError.UNKNOWN_TOPIC_OR_PART)
        self._check("topic", name, KafkaError.TOPIC_AUTHORIZATION_FAILED)
        if transaction is not None:
            self._check_open(transaction)
            transaction.places.add(place)
        sizes = [Entry(0, *record[:3], 0.0, None).size for record in records]
        if sum(sizes) > self.topics[name].max_message_bytes:
            raise RefusedError(KafkaError.MSG_SIZE_TOO_LARGE)
        if any(at is not None and at < self.topics[name].accepts_since for *_, at in records):
            raise RefusedError(KafkaError.INVALID_TIMESTAMP)
        log = self.log(name, partition)
        return [
            log.append(key, value, headers, at or self.clock.time(), transaction) for key, value, headers, at in records
        ]

    def begin(self, transactional_id: str, epoch: int) -> Transaction:
        """Open a transaction, as its first partition does."""
        self.check_epoch(transactional_id, epoch)
        transaction = Transaction(transactional_id, epoch, self.clock.monotonic())
        self.transactions.append(transaction)
        return transaction

    def add_offsets(
        self, transaction: Transaction, group: str, member: tuple[str, int], offsets: dict[Place, Committed]
    ) -> None:
        """Take a group's offsets into a transaction. ``member`` is its name, empty for none, and its epoch."""
        self._check("group", group, KafkaError.GROUP_AUTHORIZATION_FAILED)
        self._check_open(transaction)
        name, epoch = member
        members = self.group(group).members
        if name not in members and (name or members):
            raise RefusedError(KafkaError.UNKNOWN_MEMBER_ID)
        if name and members[name].epoch != epoch:
            raise RefusedError(KafkaError.ILLEGAL_GENERATION)
        if any(len(each.metadata) > self.max_metadata_bytes for each in offsets.values()):
            raise RefusedError(KafkaError.OFFSET_METADATA_TOO_LARGE)
        for place, each in offsets.items():
            sent = Committed(each.offset, each.metadata, next(self._sequence), each.leader_epoch)
            transaction.offsets[group, place] = sent

    def end(self, transaction: Transaction, outcome: Outcome) -> None:
        """Commit or abort; again is allowed where it is the same."""
        self.check_epoch(transaction.transactional_id, transaction.epoch)
        if transaction.outcome not in (Outcome.OPEN, outcome):
            raise RefusedError(KafkaError.INVALID_TXN_STATE)
        self._end(transaction, outcome)

    def _end(self, transaction: Transaction, outcome: Outcome) -> None:
        if transaction.outcome is not Outcome.OPEN:
            return
        transaction.outcome = outcome
        for name, partition in sorted(transaction.places):
            self.log(name, partition).append(None, None, (), self.clock.time(), transaction, is_marker=True)
        if outcome is Outcome.COMMITTED:
            for (group, place), sent in transaction.offsets.items():
                known = self.group(group).committed.get(place)
                if known is None or known.sequence < sent.sequence:
                    self.group(group).committed[place] = sent

    def expire_transactions(self) -> None:
        """Abort what has been open for longer than transaction.timeout.ms, and fence its producer."""
        for each in self.open_transactions():
            if self.clock.monotonic() - each.began > _TRANSACTION_TIMEOUT_S:
                self._abort_open(each.transactional_id)
                self.epochs[each.transactional_id] += 1

    def forget_transactional_id(self, transactional_id: str) -> None:
        """Forget an id that was idle for days."""
        del self.epochs[transactional_id]

    def open_transactions(self) -> list[Transaction]:
        return [each for each in self.transactions if each.outcome is Outcome.OPEN]

    def check_epoch(self, transactional_id: str, epoch: int) -> None:
        """Raise :class:`RefusedError` for a producer whose id is forgotten or was taken over."""
        known = self.epochs.get(transactional_id)
        if known is None:
            raise RefusedError(KafkaError.INVALID_PRODUCER_ID_MAPPING)
        if known != epoch:
            raise RefusedError(KafkaError.PRODUCER_FENCED)

    def _check_open(self, transaction: Transaction) -> None:
        self.check_epoch(transaction.transactional_id, transaction.epoch)
        if transaction.outcome is not Outcome.OPEN:
            raise RefusedError(KafkaError.INVALID_TXN_STATE)

    def _abort_open(self, transactional_id: str) -> None:
        for each in self.open_transactions():
            if each.transactional_id == transactional_id:
                self._end(each, Outcome.ABORTED)

    # -- groups --------------------------------------------------------------------------------------------

    def group(self, name: str) -> Group:
        return self.groups.setdefault(name, Group())

    def committed(self, group: str, places: Iterable[Place]) -> dict[Place, Committed]:
        """Answer OffsetFetch. Raises :class:`RefusedError` while a transaction has pending offsets of one of them."""
        self._check("group", group, KafkaError.GROUP_AUTHORIZATION_FAILED)
        wanted = list(places)
        pending = {key for each in self.open_transactions() for key in each.offsets}
        if any((group, place) in pending for place in wanted):
            raise RefusedError(KafkaError.UNSTABLE_OFFSET_COMMIT)
        known = self.group(group).committed
        return {place: known[place] for place in wanted if place in known}

    def commit(self, group: str, place: Place, offset: int, metadata: str = "") -> None:
        """Commit outside any transaction and any membership, as an operator's reset of offsets does."""
        self.group(group).committed[place] = Committed(offset, metadata, next(self._sequence))

    def join(self, group: str, topics: list[str]) -> Member:
        """Make a member; what it may own shows when it polls. Raises :class:`RefusedError`."""
        self._check("group", group, KafkaError.GROUP_AUTHORIZATION_FAILED)
        member = Member(f"m{next(self._ids):04}", topics)
        self.group(group).members[member.name] = member
        return member

    def leave(self, group: str, member: Member) -> None:
        """Take a member out of its group, at its own wish or since nothing was heard of it."""
        self.group(group).members.pop(member.name, None)

    def rebalance(self, group: str, member: Member) -> tuple[set[Place], set[Place]]:
        """Return what a member is to let go of, and what it may take over now."""
        target = self.group(group).target(member, self.places())
        others = (each.owned for each in self.group(group).members.values() if each is not member)
        taken: set[Place] = set().union(*others)
        return member.owned - target, target - member.owned - taken

    def _check(self, kind: str, name: str, code: int) -> None:
        if (kind, name) in self.denied:
            raise RefusedError(code)
