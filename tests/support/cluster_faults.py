"""What befalls the nodes of a cluster: each hangs, dies, is full, evicts, is flushed, or hands over what it serves."""

from __future__ import annotations

from contextlib import closing, contextmanager
from typing import TYPE_CHECKING

from redis.crc import key_slot
from redis.exceptions import AuthenticationError

from tests.support.processes import frozen
from tests.support.redis_servers import is_primary, move_slot
from tests.support.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from tests.support.redis_servers import Cluster, Server

_TAKEOVER_S = 60.0
_ASKED_AGAIN_S = 2.0
"""A manual failover is given up after five seconds at the latest; one that is under way is not hurt by another."""
_FLUSH = "local keys = redis.call('KEYS', '*') redis.call('FLUSHALL') return keys"


@contextmanager
def hanging(nodes: Iterable[Server]) -> Iterator[None]:
    """Have nodes stand still meanwhile: connections stay open, and nothing is answered."""
    with frozen(node.pid for node in nodes):
        yield


@contextmanager
def dead(cluster: Cluster, primary: Server) -> Iterator[Server]:
    """Have a primary dead meanwhile, and yield its replica as soon as that has taken over."""
    replica = cluster.replica_of(primary)
    primary.kill()
    try:
        wait_until(lambda: is_primary(replica), "the replica takes over", seconds=_TAKEOVER_S, alive=[replica])
        yield replica
    finally:
        primary.start()


@contextmanager
def configured(node: Server, **options: object) -> Iterator[None]:
    """Give a running node another configuration meanwhile; ``options`` have _ for -."""
    names = {name: name.replace("_", "-") for name in options}
    before = {name: node.command("CONFIG", "GET", names[name])[names[name].encode()] for name in options}
    try:
        for name, value in options.items():
            node.command("CONFIG", "SET", names[name], value)
        yield
    finally:
        for name, value in before.items():
            node.command("CONFIG", "SET", names[name], value)


def memory_counted(node: Server) -> int:
    """Return the bytes that a node compares with its ``maxmemory``."""
    info = node.command("INFO", "memory")
    return int(info["used_memory"]) - int(info["mem_not_counted_for_evict"])


def evicted(node: Server) -> int:
    """Return how many keys a node has evicted since its start."""
    return int(node.command("INFO", "stats")["evicted_keys"])


def promote(cluster: Cluster, primary: Server) -> Server:
    """Let a primary's replica take its place while both live, as before an upgrade; return that replica."""
    replica = cluster.replica_of(primary)

    def is_promoted() -> bool:
        if is_primary(replica):
            return True
        replica.command("CLUSTER", "FAILOVER")
        return False

    wait_until(is_promoted, "the replica is promoted", seconds=_TAKEOVER_S, pause=_ASKED_AGAIN_S)
    wait_until(lambda: not is_primary(primary), "the primary is demoted", seconds=_TAKEOVER_S)
    return replica


def keys_of(node: Server) -> set[bytes]:
    """Return all keys that a node has."""
    return set(node.command("KEYS", "*"))


def move_slots(source: Server, target: Server, most: int) -> dict[int, int]:
    """Hand over some of the slots that have keys, one after the other, a key at a time; return keys by slots."""
    slots = sorted({key_slot(key) for key in keys_of(source)})[:most]
    for slot in slots:
        move_slot(slot, source, target, keys_at_once=1)
    return {slot: int(target.command("CLUSTER", "COUNTKEYSINSLOT", slot)) for slot in slots}


def flush(node: Server) -> set[bytes]:
    """Remove all that a node and its replica have; return the keys, none of which is written in between."""
    return set(node.command("EVAL", _FLUSH, 0))


def set_password(nodes: Iterable[Server], user: str, password: str) -> None:
    """Give a user another password at all nodes and close the user's connections; the nodes keep it in their file."""
    for node in nodes:
        node.command("ACL", "SETUSER", user, "resetpass", f">{password}")
        node.command("ACL", "SAVE")
        node.command("CLIENT", "KILL", "USER", user)


def takes_password(node: Server, user: str, password: str) -> bool:
    """Tell whether a node accepts a user's password."""
    with closing(node.client(username=user, password=password)) as client:
        try:
            return bool(client.ping())
        except AuthenticationError:
            return False
