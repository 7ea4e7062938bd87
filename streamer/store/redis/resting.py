"""Nodes that readers leave out, because they do not answer or refuse: until they have answered the same commands.

Only the first read waits for such a node. A thread then sends it that read's commands again and again, since a server
that answers PING may still be too slow for records. Meanwhile its replicas are asked how old their data can be.
"""

from __future__ import annotations

import threading
import time
from functools import partial
from typing import TYPE_CHECKING, Any

import structlog

from streamer.store.redis import info
from streamer.store.redis.answers import Meaning, meaning, words
from streamer.store.redis.deadline import Deadline
from streamer.store.redis.exchange import Share, exchange, in_thread

if TYPE_CHECKING:
    from streamer.store.options import StoreOptions
    from streamer.store.redis.nodes import Node
    from streamer.store.redis.routing import Routing

log = structlog.get_logger()

_AGAIN_AFTER_S = 0.1
"""The pause between two attempts to reach a node."""
_FORGOTTEN_S = 10.0
"""A node that no reader has wanted for so long is no longer tried; the next reader asks it."""
_REPLICA_S = 0.25
"""How long to wait for a replica's account of its own freshness."""
_PROMOTED_S = 2.0
"""How long a promoted replica is read as a replica: by then the topology has been read again."""


class Resting:
    """Puts nodes to rest and wakes them up. ``read_at``: when a reader has last wanted anything."""

    def __init__(self, routing: Routing, options: StoreOptions) -> None:
        self.read_at = 0.0
        self._routing = routing
        self._timeout_s = options.timeout_s
        self._staleness_s = options.staleness_s
        self._lock = threading.Lock()

    def rest(self, share: Share, error: BaseException) -> None:
        """Let readers leave a share's node out until it answers the same commands in time."""
        node = share.node
        with self._lock:
            if node.resting or self._routing.is_closed:
                return
            node.resting = words(error)
        log.warning("store node is left out", store=self._routing.name, node=node.name, error=node.resting)
        try:
            in_thread(partial(self._revive, share.again()))
        except OSError:
            node.resting = ""  # nobody would wake it up: readers ask it again

    def _revive(self, asked: Share) -> None:
        node = asked.node
        try:
            while self._routing.has(node) and time.monotonic() - self.read_at < _FORGOTTEN_S:
                self._look_at_replicas(node)
                share = asked.again()
                exchange([share], Deadline.after(self._timeout_s))
                if share.error is None and not any(_puts_off(reply) for reply in share.replies):
                    log.info("store node is asked again", store=self._routing.name, node=node.name)
                    return
                time.sleep(_AGAIN_AFTER_S)
        finally:
            node.resting = ""

    def _look_at_replicas(self, primary: Node) -> None:
        """Note until when the replicas of a resting primary may be read."""
        topology = self._routing.topology
        shard = topology.shard_of(primary) if topology else None
        if shard is None:
            return
        shares = [Share(replica, (("INFO", "replication"),)) for replica in shard.replicas]
        exchange(shares, Deadline.after(min(self._timeout_s, _REPLICA_S)))
        for share in shares:
            said = info.parsed(None if share.error else share.replies[0])
            if said and not info.is_replica(said):
                self._routing.refresh()  # it has been promoted, and is read until the topology says so, too
                share.node.fresh_until = time.monotonic() + _PROMOTED_S
                continue
            stale_s = info.staleness_s(said)
            share.node.fresh_until = 0.0 if stale_s is None else time.monotonic() + self._staleness_s - stale_s


def _puts_off(reply: Any) -> bool:
    return isinstance(reply, Exception) and meaning(reply) in {Meaning.LATER, Meaning.ELSEWHERE}
