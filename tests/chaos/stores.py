"""A store for the services of a run that is a cluster: three primaries with a replica each."""

from __future__ import annotations

from contextlib import ExitStack
from typing import TYPE_CHECKING, Any, Self

from tests.chaos.plan import SHARDS
from tests.support.cluster_faults import set_password, takes_password
from tests.support.redis_servers import Cluster
from tests.support.ways import Way

if TYPE_CHECKING:
    from pathlib import Path

    from tests.support.redis_servers import Server

_USER = "streamer"
_TIMEOUT_S = 5
"""A node that a busy machine has no time for is not to look like one that hangs."""
_OPTIONS: dict[str, Any] = {
    # What docs/store.md wants of servers that are to lose nothing.
    "appendonly": "yes",
    "appendfsync": "always",
    "min-replicas-to-write": 1,
    "cluster-node-timeout": 5_000,
}


class ClusterStore:
    """The cluster; it runs inside a ``with`` block.

    The services know ways to three of its nodes, which stay where they are when the nodes get other addresses, like
    names. They come as a user whose password is in a file.
    """

    def __init__(self, folder: Path) -> None:
        self.cluster = Cluster(folder, primaries=SHARDS, **_OPTIONS)
        self.password_file = folder / "password"
        self._password = "first"  # noqa: S105 - of servers of ours, which listen on the loopback interface only
        self._ways: list[Way] = []
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        for node in self.cluster.nodes:
            node.folder.mkdir(parents=True)
            users = node.folder / "users.acl"
            users.write_text(
                f"user default on nopass ~* &* +@all\nuser {_USER} on >{self._password} ~clips* &* +@all\n"
            )
            node.options["aclfile"] = users
        self.password_file.write_text(self._password)
        with ExitStack() as stack:
            stack.enter_context(self.cluster)
            for node in self._named():
                way = Way(node.port)
                stack.callback(way.close)
                self._ways.append(way)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    @property
    def url(self) -> str:
        """The URL as the services have it."""
        return "redis+cluster://" + ",".join(f"127.0.0.1:{way.port}" for way in self._ways)

    def variables(self) -> dict[str, str]:
        """Return the services' settings."""
        return {
            "STREAMER_STORE": self.url,
            "STREAMER_STORE_USER": _USER,
            "STREAMER_STORE_PASSWORD_FILE": str(self.password_file),
            "STREAMER_STORE_REPLICAS": "1",
            "STREAMER_STORE_TIMEOUT": str(_TIMEOUT_S),
        }

    def rotate(self, password: str) -> bool:
        """Let the servers take another password only; return whether all of them refuse the one before.

        The services' file still has that one.
        """
        before, self._password = self._password, password
        set_password(self.cluster.nodes, _USER, password)
        return not any(takes_password(node, _USER, before) for node in self.cluster.nodes)

    def tell_password(self) -> None:
        """Write the password into the services' file."""
        self.password_file.write_text(self._password)

    def move(self) -> bool:
        """Give all nodes other addresses, to which the names lead then; return whether each has another one."""
        before = {node.port for node in self.cluster.nodes}
        self.cluster.move()
        for way, node in zip(self._ways, self._named(), strict=True):
            way.target = node.port
        return before.isdisjoint(node.port for node in self.cluster.nodes)

    def _named(self) -> list[Server]:
        return self.cluster.nodes[:3]
