"""The connections to one server or to a cluster's nodes.

redis-py tracks the cluster: the node of each slot, redirections and failures. Its overhead per command costs a query of
a hundred clips more than the transfer, so :meth:`Link.run` sends a caller's commands to all nodes at once over
redis-py's connections, and reads the replies in order. Commands that fail this way are repeated by :meth:`Link.one`,
which leaves everything to redis-py.
"""

from __future__ import annotations

from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any, NamedTuple

from hiredis import pack_command
from redis import Redis
from redis.backoff import ExponentialWithJitterBackoff
from redis.cluster import ClusterNode, RedisCluster, get_node_name
from redis.exceptions import (
    AuthenticationError,
    ClusterDownError,
    NoPermissionError,
    RedisClusterException,
    RedisError,
    ResponseError,
    SlotNotCoveredError,
    TimeoutError,  # noqa: A004 - redis-py's own, which it raises
)
from redis.retry import Retry

from streamer.store.protocol import StoreError, StoreUnavailableError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from redis.connection import ConnectionPool

    from streamer.store.options import StoreOptions
    from streamer.store.redis.address import Address

_RETRIES = 2
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.02, 0.25
_FAULTS = (RedisError, RedisClusterException, IndexError)
"""The errors that redis-py raises; the last one if no node of a cluster serves a slot."""
_READ_BYTES = 1 << 18
"""The size of a socket read: a node's share of a query is some hundred kilobytes."""


class Call(NamedTuple):
    """A command, and the slot of its keys, which determines its node."""

    slot: int
    command: tuple[Any, ...]  # of bytes, str and int


class _Share:
    """The commands of one :meth:`Link.run` for one node, by number, and their connection."""

    def __init__(self, pool: ConnectionPool, numbers: list[int]) -> None:
        self.pool = pool
        self.error: RedisError | None = None
        """The error of the node, if any; commands have their own errors."""
        self._numbers = numbers
        self._connection: Any = None
        self._is_done = False

    def send(self, calls: Sequence[Call]) -> None:
        """Send the commands in one write."""
        try:
            self._connection = self.pool.get_connection()
            packed = b"".join([pack_command(calls[number].command) for number in self._numbers])
            self._connection.send_packed_command([packed], check_health=False)
        except RedisError as error:
            self.error = error

    def receive(self, replies: list[Any]) -> None:
        """Store each command's reply by its number."""
        for number in self._numbers:
            if self.error is None:
                try:
                    replies[number] = self._connection.read_response(disable_decoding=True)
                    continue
                except ResponseError as error:
                    replies[number] = error
                    continue
                except RedisError as error:
                    self.error = error
            replies[number] = self.error
        self._is_done = self.error is None

    def end(self) -> None:
        """Return the connection to its pool, closed if unread replies may still arrive on it."""
        if self._connection is not None:
            if not self._is_done:
                self._connection.disconnect()
            self.pool.release(self._connection)


class Link:
    """A store's access to its servers. May be used by several threads.

    Errors of redis-py are raised as :class:`StoreUnavailableError`; the constructor raises :class:`StoreError` for
    errors that no retry can fix.
    """

    def __init__(self, address: Address, options: StoreOptions) -> None:
        self.name = address.public
        self._client: Any = None
        self._cluster: RedisCluster | None = None
        common: dict[str, Any] = {
            "username": options.user or address.user,
            "password": options.password or address.password,
            "socket_timeout": options.timeout_s,
            "socket_connect_timeout": options.timeout_s,
            "socket_keepalive": True,
            "socket_read_size": _READ_BYTES,
            "protocol": 2,
            "retry": Retry(ExponentialWithJitterBackoff(base=_FIRST_PAUSE_S, cap=_LONGEST_PAUSE_S), _RETRIES),
        }
        if address.tls:
            common |= {
                "ssl": True,
                "ssl_ca_certs": _path(options.ca),
                "ssl_certfile": _path(options.cert),
                "ssl_keyfile": _path(options.key),
            }
        try:
            if address.is_cluster:
                nodes = [ClusterNode(host, port) for host, port in address.hosts]  # type: ignore[no-untyped-call]
                self._client = self._cluster = RedisCluster(startup_nodes=nodes, require_full_coverage=False, **common)
            else:
                ((host, port),) = address.hosts
                self._client = Redis(host=host, port=port, db=address.db, **common)
                self._refuse_cluster(self._client)
        except _FAULTS as error:
            refusal = _refusal(error)
            if refusal is not None:
                raise StoreError(self._explain(refusal)) from error
            raise StoreUnavailableError(self._explain(error)) from error

    def run(self, calls: Sequence[Call]) -> list[Any]:
        """Run commands, those for one node in order; the error of a command or of its node is its reply.

        Raises if a node does not respond in time, so that no caller waits for it twice.
        """
        by_pool: dict[ConnectionPool, list[int]] = {}
        with self.faults():
            for number, call in enumerate(calls):
                by_pool.setdefault(self._pool(call.slot), []).append(number)
        replies: list[Any] = [None] * len(calls)
        shares = [_Share(pool, numbers) for pool, numbers in by_pool.items()]
        try:
            for share in shares:
                share.send(calls)
            for share in shares:
                share.receive(replies)
        finally:
            for share in shares:
                share.end()
        for share in shares:
            if isinstance(share.error, TimeoutError):
                self._look_again(share.pool)
                raise StoreUnavailableError(self._explain(share.error)) from share.error
        return replies

    def one(self, *command: bytes | str | int) -> Any:
        """Run one command on the current node of its key, with a few retries."""
        with self.faults():
            return self._client.execute_command(*command)

    def all(self, calls: Sequence[Call]) -> list[Any]:
        """Run commands by :meth:`run`, and repeat failed ones by :meth:`one`."""
        replies = self.run(calls)
        return [
            self.one(*call.command) if isinstance(reply, Exception) else reply
            for call, reply in zip(calls, replies, strict=True)
        ]

    def nodes(self, *, fresh: bool = False) -> list[Redis]:
        """Return a client for each primary; ``fresh`` reloads the topology from the cluster."""
        cluster = self._cluster
        if cluster is None:
            return [self._client]
        with self.faults():
            if fresh:
                cluster.nodes_manager.initialize()
            return [cluster.get_redis_connection(node) for node in cluster.get_primaries()]  # type: ignore[no-untyped-call]

    def replicas(self) -> list[Redis]:
        """Return a client for each replica of a cluster; those of a single server are not known here."""
        cluster = self._cluster
        if cluster is None:
            return []
        with self.faults():
            return [cluster.get_redis_connection(node) for node in cluster.get_replicas()]  # type: ignore[no-untyped-call]

    def ping(self, *, fresh: bool = False) -> None:
        """Ping each of :meth:`nodes`."""
        for node in self.nodes(fresh=fresh):
            with self.faults():
                node.ping()

    def place(self, slot: int) -> object:
        """Return an identifier of the node that serves a slot, for comparison."""
        with self.faults():
            return self._pool(slot)

    def close(self) -> None:
        """Close all connections."""
        self._client.close()

    def _refuse_cluster(self, client: Redis) -> None:
        """Ping a single server, and verify that it is not a node of a cluster."""
        with suppress(NoPermissionError):
            if client.info("cluster").get("cluster_enabled"):
                raise StoreError(f"{self.name}: the server is a node of a cluster; use redis+cluster://")

    def _pool(self, slot: int) -> ConnectionPool:
        """Return the connection pool of a slot's node; the library's own lookup takes five times as long."""
        cluster = self._cluster
        if cluster is None:
            lone: ConnectionPool = self._client.connection_pool
            return lone
        nodes = cluster.nodes_manager.slots_cache.get(slot)
        if not nodes:
            raise SlotNotCoveredError(f"no node serves slot {slot}")
        client = nodes[0].redis_connection or cluster.get_redis_connection(nodes[0])
        return client.connection_pool

    def _look_again(self, silent: ConnectionPool) -> None:
        """Reload the topology, asking the node that did not respond last: it may have been replaced."""
        if self._cluster is not None:
            host, port = (silent.connection_kwargs[key] for key in ("host", "port"))
            with self.faults():
                self._cluster.nodes_manager.initialize(last_failed_node_name=get_node_name(host, port))

    @contextmanager
    def faults(self) -> Iterator[None]:
        """Convert errors of redis-py to :class:`StoreUnavailableError`."""
        try:
            yield
        except _FAULTS as error:
            raise StoreUnavailableError(self._explain(error)) from error

    def _explain(self, error: BaseException) -> str:
        return f"{self.name}: {' '.join(str(error).split()) or type(error).__name__}"


def _refusal(error: BaseException) -> BaseException | None:
    """Return the cause of an error that means that reachable servers refuse us, if there is one."""
    each: BaseException | None = error
    while each is not None:
        refused = isinstance(each, AuthenticationError | ResponseError) and not isinstance(each, ClusterDownError)
        if refused or (isinstance(each, RedisClusterException) and "mode is not enabled" in str(each)):
            return each
        each = each.__cause__
    return None


def _path(path: Path | None) -> str | None:
    return None if path is None else str(path)
