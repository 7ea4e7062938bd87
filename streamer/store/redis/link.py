"""A store's access to its servers: which of them is asked for what, and what follows from their answers.

:class:`~streamer.store.redis.routing.Routing` knows which server has which slot, an exchange asks several nodes at once
until one deadline, and the table of answers says what to do after an error. Here they are put together.

Readers and writers differ in their patience. A read is part of an event, so it asks no node of which it is known that
it does not answer (:class:`~streamer.store.redis.resting.Resting`), but its replicas, where those are fresh enough.
Writers and commands of an operator ask every node, and again after what passes, until their deadline.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, NamedTuple

from redis.crc import key_slot
from redis.exceptions import SlotNotCoveredError
from redis.exceptions import TimeoutError as RedisTimeoutError

from streamer.store.protocol import StoreUnavailableError
from streamer.store.redis import info
from streamer.store.redis.answers import Meaning, is_answer, meaning
from streamer.store.redis.deadline import Deadline
from streamer.store.redis.exchange import Call, Share, exchange
from streamer.store.redis.nodes import is_fresh
from streamer.store.redis.resting import Resting
from streamer.store.redis.routing import Routing

if TYPE_CHECKING:
    from collections.abc import Sequence

    from streamer.store.options import StoreOptions
    from streamer.store.redis.address import Address
    from streamer.store.redis.nodes import Node
    from streamer.store.redis.topology import Topology

_LOST_LIMIT = 2
"""How often a patient caller asks again after a lost connection."""
_ROUNDS = 8
"""Most rounds of a read: each follows what servers have said about the places of slots."""
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.01, 0.25


class Read(NamedTuple):
    """The replies to the calls of a read, an exception where there is none, and how many of them are a replica's."""

    replies: list[Any]
    from_replicas: int


class Link:
    """A store's access to its servers. May be used by several threads; nothing is sent before the first call.

    Faults of servers are raised as :class:`StoreUnavailableError`, those that only an operator can mend as
    :class:`StoreRefusedError`.
    """

    def __init__(self, address: Address, options: StoreOptions) -> None:
        self.name = address.public
        self._timeout_s = options.timeout_s
        self._staleness_s = options.staleness_s
        self._routing = Routing(address, options)
        self._resting = Resting(self._routing, options)

    # -- for readers: no node is waited for twice ------------------------------------------------------------

    def read(self, calls: Sequence[Call], deadline: Deadline) -> Read:
        """Run commands that only read, those for one node in order, as far as nodes answer by the deadline.

        Raises only if no topology is known.
        """
        self._resting.read_at = time.monotonic()
        topology = self._routing.known(deadline)
        replies: list[Any] = [None] * len(calls)
        waiting: list[int] = [*range(len(calls))]
        asking: dict[int, Node] = {}
        from_replicas = 0
        for _ in range(_ROUNDS):
            topology = self._routing.topology or topology
            shares = self._shares(topology, calls, waiting, replies, asking, is_read=True)
            if not shares:
                break
            for share in exchange(shares, deadline, doubting=True):
                self._troubled(share, RedisTimeoutError(f"{share.node.name} gives no sign of life"))
            asking, waiting = {}, []
            for share in shares:
                again = self._heard(share, replies, asking)
                if share.is_of_replica and not share.error:
                    from_replicas += len(share.numbers) - len(again)
                    for number in {*share.numbers}.difference(again):
                        replies[number] = _without_absence(replies[number])
                waiting += again
        return Read(replies, from_replicas)

    # -- for all others: patient until the deadline ----------------------------------------------------------

    def all(self, calls: Sequence[Call], deadline: Deadline | None = None) -> list[Any]:
        """Run commands, and repeat those that failed by what passes; raises the first error that remains."""
        deadline = deadline or Deadline.after(self._timeout_s)
        topology = self._routing.known(deadline, patient=True)
        replies: list[Any] = [None] * len(calls)
        waiting: list[int] = [*range(len(calls))]
        asking: dict[int, Node] = {}
        pause_s, lost = _FIRST_PAUSE_S, 0
        said: Exception | None = None
        while True:
            # What servers have said of slots is noted in the newest topology, which may have been read meanwhile.
            topology = self._routing.topology or topology
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
                self._routing.refresh()
                # What a server has said tells more than that it did not say it again in the rest of the time.
                raise self.fault(said or replies[next(iter(failed))])
            said = next((replies[number] for number in failed if is_answer(replies[number])), said)
            if meanings & {Meaning.LOST, Meaning.ELSEWHERE}:
                self._routing.await_refresh(deadline)
                topology = self._routing.known(deadline, patient=True)
            if not meanings <= {Meaning.FOLLOW, Meaning.ASK}:
                time.sleep(min(pause_s, deadline.left()))
                pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)
            waiting = [*failed]

    def run(self, calls: Sequence[Call]) -> list[Any]:
        """Run commands once, those for one node in order on one connection; an error is the reply of its command."""
        deadline = Deadline.after(self._timeout_s)
        replies: list[Any] = [None] * len(calls)
        shares = self._shares(self._routing.known(deadline, patient=True), calls, range(len(calls)), replies, {})
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

    def primaries(self, *, fresh: bool = False) -> list[Node]:
        """Return the nodes that have slots; ``fresh`` reads the topology again."""
        deadline = Deadline.after(self._timeout_s)
        if fresh:
            self._routing.await_refresh(deadline)
            if self._routing.error is not None:
                raise self.fault(self._routing.error)
        return [shard.primary for shard in self._routing.known(deadline, patient=True).shards()]

    def replicas(self) -> list[Node]:
        """Return each replica that is known."""
        shards = self._routing.known(Deadline.after(self._timeout_s), patient=True).shards()
        return [replica for shard in shards for replica in shard.replicas]

    def ask(self, nodes: Sequence[Node], command: tuple[Any, ...], deadline: Deadline | None = None) -> list[Any]:
        """Run one command on each of some nodes, whatever slots they have; an error is the reply of its node."""
        deadline = deadline or Deadline.after(self._timeout_s)
        shares = [Share(node, (command,)) for node in nodes]
        exchange(shares, deadline)
        for each, share in enumerate(shares):
            if share.error is not None and meaning(share.error) is Meaning.LOST and not share.is_fresh:
                share.node.drop()  # its connections may have been closed long ago
                shares[each] = share.again()
        exchange([share for share in shares if not share.replies and share.error is None], deadline)
        return [share.error or share.replies[0] for share in shares]

    def told(self, node: Node, *command: bytes | str | int) -> Any:
        """Run one command on one node, as :meth:`ask` does; raises its error."""
        (reply,) = self.ask([node], command)
        if isinstance(reply, Exception):
            self._routing.refresh()
            raise self.fault(reply)
        return reply

    def ping(self, *, writes: bool) -> None:
        """Raise StoreUnavailableError if slots are not served, or a primary does not answer or is none any more.

        A lone server that is a replica may be read, as far as it is not too stale, but not written.
        """
        deadline = Deadline.after(self._timeout_s)
        topology = self._routing.known(deadline, patient=True)
        if topology.missing():
            self._routing.await_refresh(deadline)
            topology = self._routing.known(deadline)
        if topology.missing():
            raise StoreUnavailableError(f"{self.name}: no server is known for {topology.missing()} slots")
        for _ in range(2):
            shares = [Share(shard.primary, (("PING",), ("INFO", "replication"))) for shard in topology.shards()]
            exchange(shares, deadline)
            for share in shares:
                error = share.error or next((each for each in share.replies[:1] if isinstance(each, Exception)), None)
                if error is not None:
                    self._routing.refresh()
                    raise self.fault(error)
            said = [info.parsed(share.replies[1]) for share in shares]
            demoted = [share.node for share, each in zip(shares, said, strict=True) if info.is_replica(each)]
            if not demoted:
                return
            for node in demoted:
                node.drop()  # its name may lead to another server by now
            self._routing.await_refresh(deadline)
            topology = self._routing.known(deadline)
        ages = [info.staleness_s(each) for each in said]
        if writes or len(shares) > 1 or ages[0] is None or ages[0] > self._staleness_s:
            raise StoreUnavailableError(f"{self.name}: {demoted[0].name} is a replica")

    def place(self, slot: int) -> object:
        """Return an identifier of the node that serves a slot, for comparison."""
        shard = self._routing.known(Deadline.after(self._timeout_s), patient=True).shard(slot)
        if shard is None:
            raise self.fault(SlotNotCoveredError(f"no server is known for slot {slot}"))
        return shard.primary

    @property
    def generation(self) -> int:
        """A number that grows with each new connection and each change of the topology."""
        return self._routing.generation

    def close(self) -> None:
        """Close all connections."""
        self._routing.close()

    def fault(self, error: BaseException) -> StoreUnavailableError:
        """Return an error of a server or a connection as the store's."""
        return self._routing.fault(error)

    # -- inside ----------------------------------------------------------------------------------------------

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
                self._routing.refresh()
                continue
            node = shard.primary
            if is_read and node.resting:
                replica = next((each for each in shard.replicas if is_fresh(each) and not each.resting), None)
                if replica is None:
                    replies[number] = _RestingError(f"{self.name}: {node.resting}")
                    continue
                node = replica
            by_node.setdefault((node, False, node is not shard.primary), []).append(number)
        shares = []
        for (node, is_asking, is_of_replica), numbers in by_node.items():
            some = [calls[number] for number in numbers]
            sizes = [call.reply_bytes for call in some]
            share = Share(node, [call.command for call in some], numbers, sizes if any(sizes) else (), asking=is_asking)
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
            self._troubled(share, share.error)
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
                self._troubled(share, reply)
        return again

    def _redirect(self, error: Any, number: int, asking: dict[int, Node] | None, said_by: Node) -> None:
        node = self._routing.at(error.host or said_by.host, error.port)
        if asking is None:
            self._routing.moved(error.slot_id, node)
        else:
            asking[number] = node

    def _troubled(self, share: Share, error: BaseException) -> None:
        self._routing.refresh()
        if share.is_read:
            self._resting.rest(share, error)


def _without_absence(reply: Any) -> Any:
    """Return a replica's reply; what it has not is unknown, since it may not have it yet, or have lost it just now."""
    if reply is None:
        return _RestingError("the primary does not answer, and its replica has no such record")
    return [_without_absence(each) for each in reply] if isinstance(reply, list) else reply


class _RestingError(StoreUnavailableError):
    """A node is not asked at present; the message is the reason."""
