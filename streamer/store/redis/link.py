"""A store's access to its servers: which of them is asked for what, and what follows from their answers.

Three parts make it up. The topology says which server has which slot, and is read again when an answer contradicts it,
at most every quarter of a second. An exchange asks several nodes at once, until one deadline. And the table of answers
says what to do after an error.

Readers and writers differ in their patience. A read is part of an event, so it asks no node of which it is known that
it does not answer. Such a node *rests*: a thread sends it the same commands again and again, and readers ask it when it
has answered them in time. Meanwhile they ask its replicas, where those are fresh enough. Writers and commands of an
operator ask every node, and again after what passes, until their deadline.
"""

from __future__ import annotations

import threading
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

import structlog
from redis.crc import key_slot
from redis.exceptions import SlotNotCoveredError

from streamer.store.protocol import StoreError, StoreRefusedError, StoreUnavailableError
from streamer.store.redis.answers import FAULTS, Meaning, meaning, words
from streamer.store.redis.deadline import Deadline
from streamer.store.redis.exchange import Call, Share, exchange, in_thread
from streamer.store.redis.nodes import Node, Nodes, is_fresh
from streamer.store.redis.topology import Shard, Topology, WrongKindError, source_of
from streamer.store.redis.wire import connection_options

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from redis import Redis

    from streamer.store.options import StoreOptions
    from streamer.store.redis.address import Address

log = structlog.get_logger()

_REFRESH_EVERY_S = 0.25
"""The topology is read at most so often."""
_REVIVE_EVERY_S = 0.1
"""The pause between two attempts to reach a resting node."""
_FORGOTTEN_S = 10.0
"""A resting node that no reader has wanted for so long is no longer tried; the next reader asks it."""
_LOST_LIMIT = 2
"""How often a patient caller asks again after a lost connection."""
_ROUNDS = 8
"""Most rounds of a read: each follows what servers have said about the places of slots."""
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.01, 0.25
_PROMOTED_S = 2.0
"""How long a promoted replica is read as a replica: by then the topology has been read again."""
_REPLICA_S = 0.25
"""How long to wait for a replica's account of its own freshness."""


class Read(NamedTuple):
    """The replies to the calls of a read, an exception where there is none, and how many of them are a replica's."""

    replies: list[Any]
    from_replicas: int


class Link:
    """A store's access to its servers. May be used by several threads; nothing is sent before the first call.

    Faults of servers are raised as :class:`StoreUnavailableError`, those that only an operator can mend as
    :class:`StoreRefusedError`. ``generation`` grows with each new connection and each change of the topology.
    """

    def __init__(self, address: Address, options: StoreOptions) -> None:
        self.name = address.public
        self.generation = 0
        self._timeout_s = options.timeout_s
        self._staleness_s = options.staleness_s
        common = connection_options(address, options)
        self._nodes = Nodes(common | {"db": address.db}, self._changed_somehow)
        self._source = source_of(address, options, common)
        self._topology: Topology | None = None
        self._error: Exception | None = None
        self._news = threading.Condition()
        self._is_wanted = self._is_refreshing = self._is_closed = False
        self._refreshed_at = 0.0
        self._rounds = 0
        self._read_at = 0.0

    # -- for readers: no node is waited for twice ------------------------------------------------------------

    def read(self, calls: Sequence[Call], deadline: Deadline) -> Read:
        """Run commands that only read, those for one node in order, as far as nodes answer by the deadline.

        Raises only if no topology is known.
        """
        self._read_at = time.monotonic()
        topology = self._known(deadline)
        replies: list[Any] = [None] * len(calls)
        waiting: list[int] = [*range(len(calls))]
        asking: dict[int, Node] = {}
        from_replicas = 0
        for _ in range(_ROUNDS):
            topology = self._topology or topology
            shares = self._shares(topology, calls, waiting, replies, asking, is_read=True)
            if not shares:
                break
            exchange(shares, deadline)
            asking, waiting = {}, []
            for share in shares:
                again = self._heard(share, replies, asking)
                if share.is_of_replica and not share.error:
                    from_replicas += len(share.numbers) - len(again)
                waiting += again
        return Read(replies, from_replicas)

    # -- for all others: patient until the deadline ----------------------------------------------------------

    def all(self, calls: Sequence[Call], deadline: Deadline | None = None) -> list[Any]:
        """Run commands, and repeat those that failed by what passes; raises the first error that remains."""
        deadline = deadline or Deadline.after(self._timeout_s)
        topology = self._known(deadline, patient=True)
        replies: list[Any] = [None] * len(calls)
        waiting: list[int] = [*range(len(calls))]
        asking: dict[int, Node] = {}
        pause_s, lost = _FIRST_PAUSE_S, 0
        while True:
            shares = self._shares(topology, calls, waiting, replies, asking)
            exchange(shares, deadline)
            asking = {}
            for share in shares:
                self._heard(share, replies, asking)
            failed = {number: meaning(replies[number]) for number in waiting if isinstance(replies[number], Exception)}
            if not failed:
                return replies
            meanings = {*failed.values()}
            lost += Meaning.LOST in meanings
            if meanings & {Meaning.FINAL, Meaning.LATER, Meaning.SLOW} or lost > _LOST_LIMIT or not deadline.left():
                self.refresh()
                raise self.fault(replies[next(iter(failed))])
            if meanings & {Meaning.LOST, Meaning.ELSEWHERE}:
                self._await_refresh(deadline)
                topology = self._known(deadline, patient=True)
            if not meanings <= {Meaning.FOLLOW, Meaning.ASK}:
                time.sleep(min(pause_s, deadline.left()))
                pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)
            waiting = [*failed]

    def run(self, calls: Sequence[Call]) -> list[Any]:
        """Run commands once, those for one node in order on one connection; an error is the reply of its command."""
        deadline = Deadline.after(self._timeout_s)
        replies: list[Any] = [None] * len(calls)
        shares = self._shares(self._known(deadline, patient=True), calls, range(len(calls)), replies, {})
        exchange(shares, deadline)
        for share in shares:
            self._heard(share, replies, {})
        return replies

    def one(self, *command: bytes | str | int) -> Any:
        """Run one command whose first argument is its key, as :meth:`all` does."""
        key = command[1]
        slot = key_slot(key if isinstance(key, bytes) else str(key).encode())
        return self.all([Call(slot, command)])[0]

    # -- the servers -----------------------------------------------------------------------------------------

    def nodes(self, *, fresh: bool = False) -> list[Redis]:
        """Return redis-py's client of each primary; ``fresh`` reads the topology again."""
        deadline = Deadline.after(self._timeout_s)
        if fresh:
            self._await_refresh(deadline)
            if self._error is not None:
                raise self.fault(self._error)
        return [shard.primary.client() for shard in self._known(deadline, patient=True).shards()]

    def ping(self, *, writes: bool) -> None:
        """Raise StoreUnavailableError if slots are not served, or a primary does not answer or is none any more.

        A lone server that is a replica may be read, as far as it is not too stale, but not written.
        """
        deadline = Deadline.after(self._timeout_s)
        topology = self._known(deadline, patient=True)
        if topology.missing():
            self._await_refresh(deadline)
            topology = self._known(deadline)
        if topology.missing():
            raise StoreUnavailableError(f"{self.name}: no server is known for {topology.missing()} slots")
        for _ in range(2):
            shares = [Share(shard.primary, (("PING",), ("INFO", "replication"))) for shard in topology.shards()]
            exchange(shares, deadline)
            for share in shares:
                error = share.error or next((each for each in share.replies[:1] if isinstance(each, Exception)), None)
                if error is not None:
                    self.refresh()
                    raise self.fault(error)
            demoted = [share.node for share in shares if _role(share.replies[1]) == b"slave"]
            if not demoted:
                return
            for node in demoted:
                node.drop()  # its name may lead to another server by now
            self._await_refresh(deadline)
            topology = self._known(deadline)
        ages = [_stale_s(share.replies[1]) for share in shares]
        if writes or len(shares) > 1 or ages[0] is None or ages[0] > self._staleness_s:
            raise StoreUnavailableError(f"{self.name}: {demoted[0].name} is a replica")

    def place(self, slot: int) -> object:
        """Return an identifier of the node that serves a slot, for comparison."""
        shard = self._known(Deadline.after(self._timeout_s), patient=True).shard(slot)
        if shard is None:
            raise self.fault(SlotNotCoveredError(f"no server is known for slot {slot}"))
        return shard.primary

    def refresh(self) -> None:
        """Let the topology be read again soon."""
        with self._news:
            self._is_wanted = True
            if not self._is_refreshing and not self._is_closed:
                self._is_refreshing = True
                in_thread(self._refresh)

    def close(self) -> None:
        """Close all connections."""
        with self._news:
            self._is_closed = True
            self._topology = None
            self._news.notify_all()
        self._nodes.keep([])

    @contextmanager
    def faults(self) -> Iterator[None]:
        """Convert errors of redis-py's own clients."""
        try:
            yield
        except FAULTS as error:
            self.refresh()
            raise self.fault(error) from error

    def unavailable(self, error: BaseException) -> str:
        """Return what to say about an error."""
        return f"{self.name}: {words(error)}"

    # -- inside ----------------------------------------------------------------------------------------------

    def fault(self, error: BaseException) -> StoreUnavailableError:
        """Return an error of a server or a connection as the store's."""
        if isinstance(error, StoreUnavailableError):
            return error
        if isinstance(error, WrongKindError) or meaning(error) is Meaning.FINAL:
            return StoreRefusedError(self.unavailable(error))
        return StoreUnavailableError(self.unavailable(error))

    def _shares(
        self,
        topology: Topology,
        calls: Sequence[Call],
        waiting: Sequence[int],
        replies: list[Any],
        asking: dict[int, Node],
        *,
        is_read: bool = False,
    ) -> list[Share]:
        """Group calls by the node that is to be asked; where there is none, the reason becomes the reply."""
        by_node: dict[tuple[Node, bool, bool], list[int]] = {}
        for number in waiting:
            node = asking.get(number)
            if node is not None:
                by_node.setdefault((node, True, False), []).append(number)
                continue
            shard = topology.shard(calls[number].slot)
            if shard is None:
                replies[number] = SlotNotCoveredError(f"no server is known for slot {calls[number].slot}")
                self.refresh()
                continue
            node = shard.primary
            if is_read and node.resting:
                replica = next((each for each in shard.replicas if is_fresh(each) and not each.resting), None)
                if replica is None:
                    replies[number] = _Resting(node.resting)
                    continue
                node = replica
            by_node.setdefault((node, False, node is not shard.primary), []).append(number)
        shares = []
        for (node, is_asking, is_of_replica), numbers in by_node.items():
            share = Share(node, [calls[number].command for number in numbers], numbers, asking=is_asking)
            share.is_read, share.is_of_replica = is_read, is_of_replica
            shares.append(share)
        return shares

    def _heard(self, share: Share, replies: list[Any], asking: dict[int, Node]) -> list[int]:
        """Store the replies of a share, and act on what they mean; returns the numbers that are to be asked again."""
        if share.error is not None:
            for number in share.numbers:
                replies[number] = share.error
            share.node.drop()
            if meaning(share.error) is Meaning.LOST and not share.is_fresh:
                return [*share.numbers]  # the connection may have been closed long ago
            self._rest(share, share.error)
            return []
        again = []
        for number, reply in zip(share.numbers, share.replies[share.asking :: 1 + share.asking], strict=True):
            replies[number] = reply
            if not isinstance(reply, Exception):
                continue
            means = meaning(reply)
            if means in {Meaning.FOLLOW, Meaning.ASK}:
                self._redirect(reply, number, asking if means is Meaning.ASK else None, share.node)
                again.append(number)
            elif means in {Meaning.ELSEWHERE, Meaning.LATER}:
                if means is Meaning.ELSEWHERE:
                    share.node.drop()
                self._rest(share, reply)
        return again

    def _redirect(self, error: Any, number: int, asking: dict[int, Node] | None, said_by: Node) -> None:
        node = self._nodes.at(*self._source.at(error.host or said_by.host, error.port))
        if asking is not None:
            asking[number] = node
            return
        topology = self._topology
        if topology is not None:
            topology.move(error.slot_id, node)
        self.generation += 1
        self.refresh()

    def _rest(self, share: Share, error: BaseException) -> None:
        """Let readers leave a node out until it has answered the same commands in time."""
        self.refresh()
        node = share.node
        with self._news:
            if node.resting or not share.is_read or self._is_closed:
                return
            node.resting = words(error)
        log.warning("store node is left out", store=self.name, node=node.name, error=node.resting)
        in_thread(lambda: self._revive(node, share.commands))

    def _revive(self, node: Node, commands: Sequence[tuple[Any, ...]]) -> None:
        try:
            while not self._is_closed and time.monotonic() - self._read_at < _FORGOTTEN_S and node in {*self._nodes}:
                self._look_at_replicas(node)
                share = Share(node, commands)
                exchange([share], Deadline.after(self._timeout_s))
                if share.error is None and not any(_puts_off(reply) for reply in share.replies):
                    log.info("store node is asked again", store=self.name, node=node.name)
                    return
                time.sleep(_REVIVE_EVERY_S)
        finally:
            node.resting = ""

    def _look_at_replicas(self, primary: Node) -> None:
        """Note until when the replicas of a resting primary may be read."""
        topology = self._topology
        shard = next((each for each in topology.shards() if each.primary is primary), None) if topology else None
        shares = [Share(replica, (("INFO", "replication"),)) for replica in shard.replicas] if shard else []
        exchange(shares, Deadline.after(min(self._timeout_s, _REPLICA_S)))
        for share in shares:
            info = None if share.error else share.replies[0]
            if _role(info) == b"master":
                self.refresh()  # it has been promoted, and is read until the topology says so, too
                share.node.fresh_until = time.monotonic() + _PROMOTED_S
                continue
            stale_s = _stale_s(info)
            share.node.fresh_until = 0.0 if stale_s is None else time.monotonic() + self._staleness_s - stale_s

    def _known(self, deadline: Deadline, *, patient: bool = False) -> Topology:
        """Return the topology; a caller waits for the first one, and an impatient one only once."""
        topology = self._topology
        if topology is not None:
            return topology
        if self._is_closed:
            raise StoreError(f"{self.name}: the store is closed")
        if patient or self._error is None:
            self._await_refresh(deadline)
        else:
            self.refresh()
        if self._topology is None:
            if self._error is not None:
                raise self.fault(self._error)
            raise StoreUnavailableError(f"{self.name}: no server has answered in time")
        return self._topology

    def _await_refresh(self, deadline: Deadline) -> None:
        """Wait until the topology has been read again, whether that failed or not."""
        self.refresh()
        with self._news:
            rounds = self._rounds
            self._news.wait_for(lambda: self._rounds > rounds or self._is_closed, deadline.left())

    def _refresh(self) -> None:
        while True:
            time.sleep(max(0.0, self._refreshed_at + _REFRESH_EVERY_S - time.monotonic()))
            with self._news:
                if self._is_closed or not self._is_wanted:
                    self._is_refreshing = False
                    return
                self._is_wanted = False
            topology = error = None
            try:
                topology = self._source.fetch(self._nodes, Deadline.after(self._timeout_s))
            except Exception as fault:  # noqa: BLE001 - whatever a server has said, the next attempt may succeed
                error = fault
            self._refreshed_at = time.monotonic()
            with self._news:
                self._error = error
                if topology is not None and not self._is_closed:
                    self._topology = topology
                    self.generation += 1
                self._rounds += 1
                self._news.notify_all()
            if topology is not None:
                self._nodes.keep([*self._source.keeps(self._nodes), *_members(topology)])

    def _changed_somehow(self) -> None:
        self.generation += 1


class _Resting(StoreUnavailableError):
    """A node is not asked at present; the message is the reason."""


def _members(topology: Topology) -> Iterator[Node]:
    for shard in topology.shards():
        yield shard.primary
        yield from shard.replicas


def _puts_off(reply: Any) -> bool:
    return isinstance(reply, Exception) and meaning(reply) in {Meaning.LATER, Meaning.ELSEWHERE}


def _fields(info: Any) -> dict[bytes, bytes]:
    """Return the fields of an answer to INFO; none where the user may not ask for it."""
    if not isinstance(info, bytes):
        return {}
    return dict(line.split(b":", 1) for line in info.splitlines() if b":" in line)


def _role(info: Any) -> bytes:
    return _fields(info).get(b"role", b"")


def _stale_s(info: Any) -> float | None:
    """Return how old a replica's data can be, None if it does not say so."""
    fields = _fields(info)
    is_up = fields.get(b"master_link_status") == b"up"
    age = fields.get(b"master_last_io_seconds_ago" if is_up else b"master_link_down_since_seconds", b"-1")
    return None if int(age) < 0 else float(age)
