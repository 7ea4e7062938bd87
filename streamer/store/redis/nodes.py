"""A store's servers: their idle connections, and which of them are asked."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING, Any

from redis.exceptions import ConnectionError as RedisConnectionError

from streamer.store.redis.answers import FAULTS
from streamer.store.redis.wire import TlsWire, Wire

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

_MOST_DIALLING = 4
"""Connections to one node that are being made at once: more would only wait for the same reason."""


class Node:
    """One server at an address. ``for_replica``: its connections may read what it has as a cluster's replica.

    ``resting`` is the reason why readers leave the node out, empty while they ask it. ``fresh_until`` is the moment
    until which a replica's data are fresh enough to be read.
    """

    def __init__(
        self, host: str, port: int, common: dict[str, Any], *, for_replica: bool, dialled: Callable[[], None]
    ) -> None:
        self.host = host
        self.port = port
        self.name = f"{host}:{port}"
        self.resting = ""
        self.fresh_until = 0.0
        self._common = common | {"host": host, "port": port}
        self._for_replica = for_replica
        self._dialled = dialled
        self._lock = threading.Lock()
        self._idle: list[Wire | TlsWire] = []
        self._dialling = 0
        self._epoch = 0

    def take(self) -> Wire | TlsWire | None:
        """Return an idle connection that is still open, None if there is none."""
        while True:
            with self._lock:
                if not self._idle:
                    return None
                wire = self._idle.pop()
            try:
                if not wire.can_read():
                    return wire
            except FAULTS:
                pass
            wire.disconnect()

    def dial(self) -> Wire | TlsWire:
        """Make a connection; the name is resolved and the password is read again. For a thread that may wait."""
        with self._lock:
            if self._dialling >= _MOST_DIALLING:
                raise RedisConnectionError(f"{self.name} has not accepted earlier connections yet")
            self._dialling += 1
            epoch = self._epoch
        try:
            wire = (TlsWire if "ssl_ca_certs" in self._common else Wire)(**self._common)
            wire.epoch = epoch
            wire.connect()
            if self._for_replica:
                wire.send_command("READONLY")
                wire.read_response()
        finally:
            with self._lock:
                self._dialling -= 1
        self._dialled()
        return wire

    def give(self, wire: Wire | TlsWire) -> None:
        """Take back a connection on which no reply is due."""
        with self._lock:
            if wire.epoch == self._epoch:
                self._idle.append(wire)
                return
        wire.disconnect()

    def drop(self) -> None:
        """Close the idle connections now, and those in use when they are given back."""
        with self._lock:
            self._epoch += 1
            idle, self._idle = self._idle, []
        for wire in idle:
            wire.disconnect()


class Nodes:
    """The nodes that a store has had so far, by their addresses."""

    def __init__(self, common: dict[str, Any], dialled: Callable[[], None]) -> None:
        self._common = common
        self._dialled = dialled
        self._lock = threading.Lock()
        self._known: dict[tuple[str, int, bool], Node] = {}

    def at(self, host: str, port: int, *, for_replica: bool = False) -> Node:
        """Return the node at an address, always the same one."""
        key = host, port, for_replica
        with self._lock:
            node = self._known.get(key)
            if node is None:
                node = Node(host, port, self._common, for_replica=for_replica, dialled=self._dialled)
                self._known[key] = node
            return node

    def keep(self, nodes: Iterable[Node]) -> None:
        """Forget all other nodes, and close their connections."""
        kept = {id(node) for node in nodes}
        with self._lock:
            gone = {key: node for key, node in self._known.items() if id(node) not in kept}
            for key in gone:
                del self._known[key]
        for node in gone.values():
            node.drop()

    def __iter__(self) -> Iterator[Node]:
        with self._lock:
            return iter([*self._known.values()])


def is_fresh(replica: Node) -> bool:
    """Tell whether a replica's data were at most as old as allowed when it was last asked, and still are."""
    return time.monotonic() < replica.fresh_until
