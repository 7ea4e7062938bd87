"""A store's servers: the topology as last read, and when it is read again.

It is read when somebody asks for that, because an answer contradicts it or a node does not answer, and at most every
quarter of a second: on a thread of its own, so that a read waits for it only where nothing is known at all.
"""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING

from streamer.store.protocol import StoreError, StoreRefusedError, StoreUnavailableError
from streamer.store.redis.answers import Meaning, meaning, words
from streamer.store.redis.deadline import Deadline
from streamer.store.redis.exchange import in_thread
from streamer.store.redis.nodes import Node, Nodes
from streamer.store.redis.topology import Topology, WrongKindError, source_of
from streamer.store.redis.wire import connection_options

if TYPE_CHECKING:
    from collections.abc import Iterator

    from streamer.store.options import StoreOptions
    from streamer.store.redis.address import Address

_REFRESH_EVERY_S = 0.25
"""The topology is read at most so often."""


class Routing:
    """The servers of the store at an address. May be used by several threads; nothing is sent before the first call.

    ``topology`` is None until it has been read for the first time, ``error`` why it could not be read the last time.
    ``generation`` grows with each new connection and each change of the topology.
    """

    def __init__(self, address: Address, options: StoreOptions) -> None:
        self.name = address.public
        self.topology: Topology | None = None
        self.error: Exception | None = None
        self.generation = 0
        self.is_closed = False
        self._timeout_s = options.timeout_s
        common = connection_options(address, options)
        self._nodes = Nodes(common | {"db": address.db}, self._count)
        self._source = source_of(address, options, common)
        self._news = threading.Condition()  # its lock may be taken twice by one thread
        self._is_wanted = self._is_refreshing = False
        self._refreshed_at = 0.0
        self._rounds = 0

    def known(self, deadline: Deadline, *, patient: bool = False) -> Topology:
        """Return the topology; a caller waits for the first one, and an impatient one only once.

        Raises :class:`StoreUnavailableError` if there is none.
        """
        topology = self.topology
        if topology is not None:
            return topology
        if self.is_closed:
            raise StoreError(f"{self.name}: the store is closed")
        if patient or self.error is None:
            self.await_refresh(deadline)
        else:
            self.refresh()
        if self.topology is None:
            if self.error is not None:
                raise self.fault(self.error)
            raise StoreUnavailableError(f"{self.name}: no server has answered in time")
        return self.topology

    def refresh(self) -> None:
        """Let the topology be read again soon."""
        with self._news:
            self._is_wanted = True
            if not self._is_refreshing and not self.is_closed:
                self._is_refreshing = True
                try:
                    in_thread(self._refresh)
                except OSError as error:
                    self._is_refreshing = False  # the next one to ask for it tries again
                    self.error = error
                    self._rounds += 1
                    self._news.notify_all()

    def await_refresh(self, deadline: Deadline) -> None:
        """Wait until the topology has been read again, whether that failed or not."""
        with self._news:
            rounds = self._rounds
            self.refresh()
            self._news.wait_for(lambda: self._rounds > rounds or self.is_closed, deadline.left())

    def moved(self, slot: int, to: Node) -> None:
        """Note what a server has said: that a slot is another node's."""
        if self.topology is not None:
            self.topology.move(slot, to)
        self._count()
        self.refresh()

    def at(self, host: str, port: int) -> Node:
        """Return the node at an address that a server has announced."""
        return self._nodes.at(*self._source.at(host, port))

    def has(self, node: Node) -> bool:
        """Tell whether a node is still one of the store's."""
        return not self.is_closed and node in {*self._nodes}

    def fault(self, error: BaseException) -> StoreUnavailableError:
        """Return an error of a server or a connection as the store's."""
        if isinstance(error, StoreUnavailableError):
            return error
        text = f"{self.name}: {words(error)}"
        is_final = isinstance(error, WrongKindError) or meaning(error) is Meaning.FINAL
        return StoreRefusedError(text) if is_final else StoreUnavailableError(text)

    def close(self) -> None:
        """Close all connections."""
        with self._news:
            self.is_closed = True
            self.topology = None
            self._news.notify_all()
        self._nodes.keep([])

    def _refresh(self) -> None:
        while True:
            time.sleep(max(0.0, self._refreshed_at + _REFRESH_EVERY_S - time.monotonic()))
            with self._news:
                if self.is_closed or not self._is_wanted:
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
                self.error = error
                if topology is not None and not self.is_closed:
                    self.topology = topology
                    self._nodes.keep([*self._source.keeps(self._nodes), *_members(topology)])
                    self._count()
                self._rounds += 1
                self._news.notify_all()

    def _count(self) -> None:
        self.generation += 1


def _members(topology: Topology) -> Iterator[Node]:
    for shard in topology.shards():
        yield shard.primary
        yield from shard.replicas
