"""Which server has which slots: read from a lone server, a cluster, or Sentinels.

Servers are asked one shortly after the other, each without waiting for the one before, and the first complete answer
counts. So a server that hangs delays nothing. The configured names are always among those that are asked: where all
servers have new addresses under the same names, nothing else leads to them.
"""

from __future__ import annotations

import queue
import random
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from redis.crc import REDIS_CLUSTER_HASH_SLOTS as SLOTS
from redis.exceptions import AuthenticationError, NoPermissionError
from redis.exceptions import ConnectionError as RedisConnectionError

from streamer.store.redis.answers import FAULTS, Meaning, meaning
from streamer.store.redis.exchange import Share, exchange, in_thread
from streamer.store.redis.nodes import Nodes

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from streamer.store.options import StoreOptions
    from streamer.store.redis.address import Address
    from streamer.store.redis.deadline import Deadline
    from streamer.store.redis.nodes import Node

_NEXT_AFTER_S = 0.05
"""After so many seconds without an answer the next server is asked, too."""


Place = tuple[str, int]
"""A host and a port."""


class Shard(NamedTuple):
    """A primary and its replicas, which have the same slots."""

    primary: Node
    replicas: tuple[Node, ...] = ()


class Topology:
    """The shard of each slot, None where no server is known to have it."""

    def __init__(self, by_slot: Sequence[Shard | None]) -> None:
        self._by_slot = [*by_slot]

    def shard(self, slot: int) -> Shard | None:
        """Return the shard that has a slot."""
        return self._by_slot[slot]

    def shards(self) -> list[Shard]:
        """Return all shards, in the order of their first slots."""
        return [*{shard.primary.name: shard for shard in self._by_slot if shard is not None}.values()]

    def shard_of(self, primary: Node) -> Shard | None:
        """Return the shard of a primary."""
        return next((shard for shard in self.shards() if shard.primary is primary), None)

    def missing(self) -> int:
        """Return how many slots no server is known to have."""
        return self._by_slot.count(None)

    def move(self, slot: int, to: Node) -> None:
        """Note that a slot has another primary, as a server has just said."""
        shard = self._by_slot[slot]
        if shard is None or shard.primary is not to:
            self._by_slot[slot] = self.shard_of(to) or Shard(to)


class Source(Protocol):
    """Where the topology is read."""

    def fetch(self, nodes: Nodes, deadline: Deadline) -> Topology:
        """Read it. Raises the error of the last server that was asked if there is none."""
        ...

    def keeps(self, nodes: Nodes) -> list[Node]:
        """Return the nodes that are needed for the next fetch whatever the topology is."""
        ...

    def at(self, host: str, port: int) -> Place:
        """Return where an address leads that a server has announced."""
        ...


def source_of(address: Address, options: StoreOptions, common: Mapping[str, Any]) -> Source:
    """Return the source for a URL; ``common``: the arguments of connections, without a database."""
    elsewhere = {_place(announced): _place(real) for announced, real in options.address_map.items()}
    if address.service is not None:
        without = {name: value for name, value in common.items() if name != "credential_provider"}
        sentinels = [Nodes({**each}, lambda: None) for each in (without, common)]
        return Sentinel(address.hosts, address.service, sentinels, elsewhere)
    if address.is_cluster:
        return Cluster(address.hosts, elsewhere)
    return Lone(*address.hosts[0])


class Lone:
    """One server under one name."""

    def __init__(self, host: str, port: int) -> None:
        self._place = host, port

    def fetch(self, nodes: Nodes, deadline: Deadline) -> Topology:
        """Ask whether it answers, and refuse a node of a cluster."""

        def accept(replies: list[Any], node: Node) -> Topology:
            if not isinstance(replies[0], NoPermissionError) and b"cluster_enabled:1" in _good(replies[0]):
                raise WrongKindError("the server is a node of a cluster; use redis+cluster://")
            return Topology([Shard(node)] * SLOTS)

        return _first(self.keeps(nodes), (("INFO", "cluster"),), accept, deadline)

    def keeps(self, nodes: Nodes) -> list[Node]:
        """Return its node."""
        return [nodes.at(*self._place)]

    def at(self, host: str, port: int) -> Place:
        """Return the address itself."""
        return host, port


class Cluster:
    """A cluster, of which some nodes are named; ``elsewhere`` maps announced addresses to those that lead there."""

    def __init__(self, places: Sequence[Place], elsewhere: Mapping[Place, Place]) -> None:
        self._places = places
        self._elsewhere = elsewhere

    def fetch(self, nodes: Nodes, deadline: Deadline) -> Topology:
        """Ask a node that has answered lately, then the configured ones, then all others."""
        named = self.keeps(nodes)
        others = [node for node in nodes if node not in named]
        random.shuffle(others)
        others.sort(key=lambda node: bool(node.resting))
        best: list[Topology] = []

        def accept(replies: list[Any], asked: Node) -> Topology | None:
            made = self._topology(_good(replies[0]), asked, nodes)
            if not made.missing():
                return made
            if made.shards() and not (best and best[0].missing() <= made.missing()):
                best[:] = [made]
            return None

        try:
            return _first([*others[:1], *named, *others[1:]], (("CLUSTER", "SLOTS"),), accept, deadline)
        except RedisConnectionError:
            if best:
                return best[0]
            raise

    def keeps(self, nodes: Nodes) -> list[Node]:
        """Return the configured nodes."""
        return [nodes.at(*place) for place in self._places]

    def at(self, host: str, port: int) -> Place:
        """Return where the address leads."""
        return self._elsewhere.get((host, port), (host, port))

    def _topology(self, ranges: Any, asked: Node, nodes: Nodes) -> Topology:
        """Read the answer of CLUSTER SLOTS: first and last slot, and for each server its address and more."""
        by_slot: list[Shard | None] = [None] * SLOTS
        for first, last, *servers in ranges:
            # A node that does not know its own address has none in its answer.
            places = [self.at((host or b"").decode() or asked.host, int(port)) for host, port, *_ in servers]
            replicas = tuple(nodes.at(*place, for_replica=True) for place in places[1:])
            by_slot[first : last + 1] = [Shard(nodes.at(*places[0]), replicas)] * (last + 1 - first)
        return Topology(by_slot)


class Sentinel:
    """The primary that Sentinels name for a ``service``.

    ``sentinels``: their nodes without and with the store's credentials, since most Sentinels want none.
    """

    def __init__(
        self,
        places: Sequence[Place],
        service: str,
        sentinels: Sequence[Nodes],
        elsewhere: Mapping[Place, Place],
    ) -> None:
        self._places = places
        self._service = service
        self._sentinels = sentinels
        self._elsewhere = elsewhere

    def fetch(self, nodes: Nodes, deadline: Deadline) -> Topology:
        """Ask all Sentinels; the first one that knows a primary which says so itself is believed."""

        def accept(replies: list[Any], _sentinel: Node) -> Topology | None:
            if not _good(replies[0]):
                return None  # it does not know the service
            host, port = replies[0]
            primary = nodes.at(*self.at(host.decode(), int(port)))
            role = Share(primary, [("ROLE",)])
            exchange([role], deadline.within(1.0))
            # A Sentinel that was away may name a server that has been demoted.
            if role.error is None and isinstance(role.replies[0], list) and role.replies[0][0] != b"master":
                return None
            fields = [dict(zip(each[::2], each[1::2], strict=True)) for each in _good(replies[1])]
            places = [(each[b"ip"].decode(), int(each[b"port"])) for each in fields]
            replicas = tuple(nodes.at(*self.at(*place)) for place in places)
            return Topology([Shard(primary, replicas)] * SLOTS)

        commands = tuple(("SENTINEL", what, self._service) for what in ("GET-MASTER-ADDR-BY-NAME", "REPLICAS"))
        without, with_credentials = ([nodes.at(*place) for place in self._places] for nodes in self._sentinels)
        try:
            return _first(without, commands, accept, deadline)
        except AuthenticationError:
            return _first(with_credentials, commands, accept, deadline)

    def keeps(self, _nodes: Nodes) -> list[Node]:
        """Return none: Sentinels have nodes of their own."""
        return []

    def at(self, host: str, port: int) -> Place:
        """Return where the address leads."""
        return self._elsewhere.get((host, port), (host, port))


class WrongKindError(Exception):
    """The server is not of the kind that the URL says."""


def _place(text: str) -> Place:
    host, _, port = text.rpartition(":")
    return host.strip("[]"), int(port)


def _good(reply: Any) -> Any:
    """Return a reply; raises it if it is an error."""
    if isinstance(reply, Exception):
        raise reply
    return reply


def _first(
    asked: Sequence[Node],
    commands: Sequence[tuple[Any, ...]],
    accept: Callable[[list[Any], Node], Topology | None],
    deadline: Deadline,
) -> Topology:
    """Return the first answer that ``accept`` makes a topology of: it takes the replies and the node.

    Raises what the servers have said, a final answer before others.
    """
    heard: queue.SimpleQueue[Share] = queue.SimpleQueue()

    def ask(share: Share) -> None:
        exchange([share], deadline)
        heard.put(share)

    waiting = [Share(node, commands) for node in asked]
    errors: list[Exception] = []
    begun = over = 0
    while over < len(waiting) and deadline.left():
        if begun < len(waiting):
            share = waiting[begun]
            begun += 1
            try:
                in_thread(partial(ask, share))
            except OSError as error:
                share.error = error
                heard.put(share)
        try:
            share = heard.get(timeout=min(_NEXT_AFTER_S, deadline.left()) if begun < len(waiting) else deadline.left())
        except queue.Empty:
            continue
        over += 1
        if share.error is not None:
            errors.append(share.error)
            continue
        try:
            found = accept(share.replies, share.node)
        except FAULTS as error:
            errors.append(error)
            continue
        if found is not None:
            return found
    if errors:
        raise min(errors, key=lambda each: meaning(each) is not Meaning.FINAL)
    names = ", ".join(node.name for node in asked)
    raise RedisConnectionError(f"no answer from {names} in time" if not over else f"{names} do not know all servers")
